// The rows of one city by their times, and what each message did to them.

const MAX_ROWS = 200000;

// After a restart all rows come again, most of them as they were.
const sameValues = (a, b) =>
  a.heat_index === b.heat_index &&
  a.rolling_heat_index === b.rolling_heat_index &&
  a.count === b.count &&
  a.category === b.category;

export class Series {
  /** Sorted, ms. */
  times = [];
  rows = [];
  #span;
  #pending = null;

  constructor(windowMs) {
    this.#span = windowMs;
  }

  /** The index of the first row at or after `time`. */
  indexOf(time) {
    let [low, high] = [0, this.times.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #at(time) {
    const i = this.indexOf(time);
    return this.times[i] === time ? this.rows[i] : null;
  }

  /** Collects the parts of a snapshot. With the last it says how what was held before differs: see [`Series.apply`]. */
  snapshot(rows, { first, complete }) {
    if (first) this.#pending = [];
    for (const row of rows) this.#pending?.push(row);
    if (!complete || !this.#pending) return null;
    const fresh = this.#pending;
    this.#pending = null;
    const times = new Set(fresh.map((row) => Date.parse(row.reading_at)));
    // What is older than the snapshot is final now, and was not withdrawn; of an empty one, nothing is.
    let oldest = times.size ? Infinity : -Infinity;
    for (const time of times) oldest = Math.min(oldest, time);
    const gone = this.rows.filter((_, i) => this.times[i] >= oldest && !times.has(this.times[i]));
    const begins = this.times.length === 0;
    const done = this.apply(fresh, gone);
    if (times.size) this.#span = Math.max(this.#span, this.times[this.times.length - 1] - oldest);
    return begins ? null : done;
  }

  /**
   * Sets and deletes rows. Answers with the `events` (a reading's kind, time, and values before and after), how many rows other
   * than new ones have `changed`, and the rows `old` as they were where they were changed.
   */
  apply(upserts, removals) {
    const newest = this.times[this.times.length - 1] ?? -Infinity;
    const events = [];
    const touched = [];
    const withdrawn = new Map();
    for (const { reading_at } of removals) {
      const time = Date.parse(reading_at);
      const before = this.#at(time);
      if (!before) continue;
      withdrawn.set(time, before);
      events.push({ kind: 'withdrawal', time, before: before.heat_index, after: null });
      touched.push(time);
    }
    const fresh = [];
    for (const row of upserts) {
      const time = Date.parse(row.reading_at);
      const before = this.#at(time);
      const kind = before ? 'correction' : time > newest ? 'new' : 'late';
      if (!before) fresh.push({ time, row });
      if (!before || before.heat_index !== row.heat_index) {
        events.push({ kind, time, before: before?.heat_index ?? null, after: row.heat_index });
      }
      if (kind !== 'new' && !(before && sameValues(before, row))) touched.push(time);
    }
    const old = this.#copy(touched);
    for (const row of upserts) {
      const i = this.indexOf(Date.parse(row.reading_at));
      if (this.times[i] === Date.parse(row.reading_at)) this.rows[i] = row;
    }
    this.#delete(withdrawn);
    this.#insert(fresh);
    this.#trim();
    return { events, changed: touched.length, old };
  }

  /** The rows from the first to the last of some times, with one more at each end so that a line joins the rest. */
  #copy(times) {
    if (!times.length || !this.times.length) return null;
    const [from, to] = times.reduce(([low, high], t) => [Math.min(low, t), Math.max(high, t)], [Infinity, -Infinity]);
    const start = Math.max(0, this.indexOf(from) - 1);
    const end = Math.min(this.times.length, this.indexOf(to + 1) + 1);
    return { from, to, times: this.times.slice(start, end), rows: this.rows.slice(start, end) };
  }

  #delete(withdrawn) {
    if (!withdrawn.size) return;
    const kept = this.times.map((time, i) => i).filter((i) => !withdrawn.has(this.times[i]));
    this.rows = kept.map((i) => this.rows[i]);
    this.times = kept.map((i) => this.times[i]);
  }

  #insert(fresh) {
    fresh.sort((a, b) => a.time - b.time);
    const inOrder = !fresh.length || !this.times.length || fresh[0].time > this.times[this.times.length - 1];
    if (inOrder || fresh.length > 64) {
      for (const { time, row } of fresh) {
        this.times.push(time);
        this.rows.push(row);
      }
      if (!inOrder) this.#sort();
      return;
    }
    for (const { time, row } of fresh) {
      const i = this.indexOf(time);
      this.times.splice(i, 0, time);
      this.rows.splice(i, 0, row);
    }
  }

  #sort() {
    const order = this.times.map((time, i) => i).sort((a, b) => this.times[a] - this.times[b]);
    this.rows = order.map((i) => this.rows[i]);
    this.times = order.map((i) => this.times[i]);
  }

  /** Rows that have aged out no longer change and are not shown. */
  #trim() {
    const newest = this.times[this.times.length - 1] ?? 0;
    const from = Math.max(this.indexOf(newest - this.#span), this.times.length - MAX_ROWS);
    if (from <= 0) return;
    this.times.splice(0, from);
    this.rows.splice(0, from);
  }
}
