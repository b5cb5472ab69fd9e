// The panel of the selected city: its current values, chart, and what has just changed.
import { Chart } from './chart.js';
import { CATEGORIES, age, country, datedTime, dayAndTime, fullTime, integer, percent, rankOf, shortTime, timeWithSeconds } from './format.js';
import { Series } from './series.js';

const MAX_CHANGES = 12;
const MAX_EVENTS = 3;
const TABLE_ROWS = 24;
const ANNOUNCE_EVERY_MS = 10000;

const part = (name) => document.querySelector(`[data-test="${name}"]`);

export class Panel {
  #feed;
  #clock;
  #element = document.getElementById('city');
  #chart;
  #units;
  #city = null;
  #series = null;
  #subscription = null;
  #windowMs = 86400000;
  #formula = '';
  #announcedAt = 0;
  #shown = null;
  #shownGroup = -1;

  constructor(feed, clock, units) {
    this.#feed = feed;
    this.#clock = clock;
    this.#units = units;
    this.#chart = new Chart(document.getElementById('chart'), { readout: (index) => this.#readout(index) });
    document.getElementById('table').addEventListener('toggle', () => this.#fillTable());
  }

  hello({ window_s: seconds, formula }) {
    this.#windowMs = seconds * 1000;
    this.#formula = formula;
  }

  get city() {
    return this.#city;
  }

  select(city) {
    if (this.#subscription !== null) this.#feed.unsubscribe(this.#subscription);
    this.#subscription = null;
    this.#city = city;
    this.#shown = null;
    this.#element.hidden = !city;
    if (!city) return;
    this.#series = new Series(this.#windowMs);
    part('changes').replaceChildren();
    document.getElementById('no-changes').hidden = false;
    document.getElementById('chart-note').textContent = 'Loading…';
    this.#chart.show(this.#series, this.#units);
    this.#subscription = this.#feed.subscribe({ cities: [city.key], rows: 'window' }, this.#receiver(this.#series));
    this.update();
  }

  setUnits(units) {
    this.#units = units;
    if (!this.#city) return;
    this.#shown = null;
    this.#chart.show(this.#series, units);
    this.#readout(null);
    this.#fillTable();
    for (const item of part('changes').children) item.firstChild.textContent = item.describe();
    this.update();
  }

  recolour() {
    this.#chart.recolour();
  }

  draw(now) {
    if (this.#city) this.#chart.draw(now);
  }

  /** Shows the name and the current row, where they are not those that are shown. */
  update() {
    const city = this.#city;
    if (!city) return;
    const named = part('city-name').textContent === city.name;
    if (named && this.#shown === (city.row ?? city.name) && this.#shownGroup === city.group) return;
    this.#shown = city.row ?? city.name;
    this.#shownGroup = city.group;
    part('city-name').textContent = city.name;
    part('city-country').textContent = country(city.country);
    this.#element.dataset.city = city.key;
    document.getElementById('city-values').hidden = !city.row;
    document.getElementById('city-none').hidden = Boolean(city.row);
    if (city.row) this.#showRow(city.row, city.stale);
    this.tick();
  }

  /** Shows how old the reading is by now. */
  tick() {
    const city = this.#city;
    if (!city?.row) return;
    const text = age(this.#clock.age(city.at));
    if (part('city-age').textContent !== text) part('city-age').textContent = text;
    if (this.#series.times.length) this.#showChartNote();
    const note = part('city-stale');
    const was = note.hidden;
    note.hidden = !city.stale;
    if (note.hidden) return;
    const stale = `Stale: read ${text}. It says nothing of now.`;
    if (note.textContent !== stale) note.textContent = stale;
    if (was) this.#announce(stale);
  }

  #showRow(row, stale) {
    const units = this.#units;
    const set = (name, value, text) => {
      const element = part(name);
      element.value = value ?? '';
      element.textContent = value === null || value === undefined ? '–' : text(value);
    };
    set('city-heat-index', row.heat_index, (f) => units.temperature(f));
    set('city-rolling', row.rolling_heat_index, (f) => units.temperature(f));
    set('city-count', row.count, integer);
    set('city-trend', row.trend, (f) => units.difference(f));
    set('city-temperature', row.temperature, (f) => units.temperature(f));
    set('city-humidity', row.humidity, percent);
    set('city-wind', row.wind_speed, (mph) => units.speed(mph));
    const category = CATEGORIES[rankOf(row.category)];
    part('city-category').textContent = stale ? `Was: ${category.name.toLowerCase()}` : category.name;
    this.#element.dataset.category = category.key;
    this.#element.classList.toggle('stale', stale);
    document.querySelector('#city-mark use').setAttribute('href', `#mark-${stale ? 'stale' : category.key}`);
    const at = part('city-reading-at');
    at.dateTime = row.reading_at;
    at.textContent = datedTime(Date.parse(row.reading_at));
    at.title = fullTime(Date.parse(row.reading_at));
    document.getElementById('formula-note').hidden = this.#formula !== 'rothfusz' || category.key !== 'none';
  }

  #receiver(series) {
    const done = (change) => series === this.#series && this.#changed(change);
    return {
      snapshot: (rows, part) => {
        const change = series.snapshot(rows, part);
        if (part.complete) done(change);
      },
      changes: (upserts, removals) => done(series.apply(upserts, removals)),
      refused: (detail) => {
        document.getElementById('chart-note').textContent = `The chart of this city is not to be had: ${detail}.`;
      },
    };
  }

  /** `change` is that of [`Series.apply`], null for a first snapshot. */
  #changed(change) {
    this.#chart.changed(change);
    const { times } = this.#series;
    this.#showChartNote();
    this.#fillTable();
    this.#setSlider(times.length - 1);
    const past = change?.events.filter(({ kind }) => kind !== 'new') ?? [];
    if (past.length) this.#listChange(past, change.changed);
  }

  /** The chart's own times have no date. */
  #showChartNote() {
    const newest = this.#series.times.at(-1);
    const dated = () => (this.#clock.isStale(newest) ? `Until ${datedTime(newest)}` : '');
    const text = newest === undefined ? 'No reading in the window yet.' : dated();
    const note = document.getElementById('chart-note');
    if (note.textContent !== text) note.textContent = text;
  }

  #listChange(events, rows) {
    const describe = () => {
      const parts = events.slice(0, MAX_EVENTS).map((event) => this.#describe(event));
      if (events.length > MAX_EVENTS) parts.push(`and ${integer(events.length - MAX_EVENTS)} more`);
      return `${parts.join('; ')}, ${integer(rows)} ${rows === 1 ? 'row' : 'rows'} changed`;
    };
    const item = document.createElement('li');
    const text = document.createElement('span');
    text.textContent = describe();
    const when = document.createElement('time');
    when.dateTime = new Date().toISOString();
    when.textContent = timeWithSeconds(Date.now());
    item.append(text, when);
    item.dataset.kind = events[0].kind;
    item.dataset.rows = rows;
    item.describe = describe;
    const list = part('changes');
    list.prepend(item);
    while (list.children.length > MAX_CHANGES) list.lastChild.remove();
    document.getElementById('no-changes').hidden = true;
    this.#announce(text.textContent);
  }

  #describe({ kind, time, before, after }) {
    const units = this.#units;
    const at = shortTime(time);
    if (kind === 'withdrawal') return `Withdrawal of ${at}: ${units.temperature(before)} removed`;
    if (kind === 'late') return `Late reading of ${at}: ${units.temperature(after)}`;
    return `Correction of ${at}: ${units.bare(before)} → ${units.temperature(after)}`;
  }

  #announce(text) {
    if (performance.now() - this.#announcedAt < ANNOUNCE_EVERY_MS) return;
    this.#announcedAt = performance.now();
    document.getElementById('announcements').textContent = `${this.#city.name}: ${text}`;
  }

  #readout(index) {
    const readout = part('readout');
    if (!this.#city || index === null) {
      readout.textContent = '';
      return;
    }
    const row = this.#series.rows[index];
    const units = this.#units;
    const text = [
      dayAndTime(this.#series.times[index]),
      `heat index ${units.temperature(row.heat_index)}`,
      `rolling mean ${units.temperature(row.rolling_heat_index)} of ${integer(row.count)}`,
      CATEGORIES[rankOf(row.category)].name.toLowerCase(),
    ].join(' · ');
    readout.textContent = text;
    this.#setSlider(index, text);
  }

  #setSlider(index, text) {
    const chart = document.getElementById('chart');
    const last = Math.max(0, this.#series.times.length - 1);
    chart.setAttribute('aria-valuemax', last);
    if (text === undefined && document.activeElement === chart) return;
    chart.setAttribute('aria-valuenow', Math.max(0, index));
    chart.setAttribute('aria-valuetext', text ?? 'newest reading');
  }

  #fillTable() {
    if (!document.getElementById('table').open || !this.#series) return;
    const { rows, times } = this.#series;
    const body = document.querySelector('#table tbody');
    const cells = rows.slice(-TABLE_ROWS).map((row, i, all) => [
      dayAndTime(times[times.length - all.length + i]),
      this.#units.temperature(row.heat_index),
      this.#units.temperature(row.rolling_heat_index),
      CATEGORIES[rankOf(row.category)].name,
    ]);
    body.replaceChildren(
      ...cells.reverse().map(([at, ...values]) => {
        const row = document.createElement('tr');
        const head = document.createElement('th');
        head.scope = 'row';
        head.textContent = at;
        row.append(head, ...values.map((value) => Object.assign(document.createElement('td'), { textContent: value })));
        return row;
      }),
    );
  }
}
