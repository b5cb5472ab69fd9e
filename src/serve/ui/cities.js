// Every city and its current row.
import { CATEGORIES, STALE, country, folded, rankOf } from './format.js';
import { Arrivals } from './freshness.js';
import { project } from './projection.js';

class City {
  constructor(key) {
    this.key = key;
    this.name = key;
    this.country = '';
    this.population = 0;
    this.placed = false;
    this.x = 0;
    this.y = 0;
    this.row = null;
    /** When it was read, ms. */
    this.at = 0;
    this.rank = -1;
    /** Its rank, or [`STALE`]: what it is counted and shown as. */
    this.group = -1;
    this.folded = '';
    this.foldedCountry = '';
    this.described = false;
    this.snapshot = 0;
  }

  get stale() {
    return this.group === STALE;
  }
}

/** Greatest first: by category, and by heat index within one. Plain `rothfusz` says 101.7 °F of a cold and humid day. */
const hotter = (a, b) => b.rank - a.rank || b.row.heat_index - a.row.heat_index || (a.key < b.key ? -1 : 1);

/** By its code, or the beginning of its name in the language of the browser. */
const isCountry = (city, wanted) =>
  city.country.toLowerCase() === wanted || (wanted.length > 2 && city.foldedCountry.startsWith(wanted));

export class Cities {
  #byKey = new Map();
  #snapshots = 0;
  #clock;
  /** Cities by population, greatest first, as far as the directory has come. */
  all = [];
  /** Cities with a fresh row by category, and at [`STALE`] those with a stale one. */
  counts = [...CATEGORIES.map(() => 0), 0];
  arrivals = new Arrivals();
  /** The time of the newest reading of all, ms. */
  newest = -Infinity;
  /** Counts up whenever a row changes, or a city its place or category. */
  rowChanges = 0;
  dotChanges = 0;
  /** Keys of cities with a row that no entry has described yet. */
  undescribed = new Set();
  /** Called with each city whose row has changed, and whether its category has. */
  onChange = () => {};

  constructor(clock) {
    this.#clock = clock;
  }

  get stale() {
    return this.counts[STALE];
  }

  get fresh() {
    return this.counts.reduce((sum, count) => sum + count, 0) - this.stale;
  }

  get(key) {
    return this.#byKey.get(key);
  }

  /** The city with this key, which need not have had a reading yet. */
  named(key) {
    let city = this.#byKey.get(key);
    if (!city) {
      city = new City(key);
      this.#byKey.set(key, city);
      this.all.push(city);
    }
    return city;
  }

  /** Takes entries of `GET /v1/cities`, all or some; their rows come by the feed. */
  describe(entries) {
    for (const { city: key, name, country: code, latitude, longitude, population } of entries) {
      const city = this.named(key);
      city.name = name ?? key;
      city.country = code ?? '';
      city.foldedCountry = folded(country(city.country));
      city.population = population ?? 0;
      city.folded = '';
      city.described = true;
      this.undescribed.delete(key);
      city.placed = Number.isFinite(latitude) && Number.isFinite(longitude);
      if (city.placed) [city.x, city.y] = project(longitude, latitude);
    }
    this.all.sort((a, b) => b.population - a.population);
    this.dotChanges += 1;
    this.rowChanges += 1;
  }

  #set(city, row) {
    if (row && !city.described) this.undescribed.add(city.key);
    city.row = row;
    city.at = row ? Date.parse(row.reading_at) : 0;
    city.rank = row ? rankOf(row.category) : -1;
    this.newest = Math.max(this.newest, row ? city.at : -Infinity);
    this.rowChanges += 1;
    return this.#group(city);
  }

  /** Counts a city where it belongs by now, and says whether that has changed. */
  #group(city) {
    const group = city.row && this.#clock.isStale(city.at) ? STALE : city.rank;
    if (group === city.group) return false;
    if (city.group >= 0) this.counts[city.group] -= 1;
    if (group >= 0) this.counts[group] += 1;
    city.group = group;
    this.dotChanges += 1;
    return true;
  }

  /** A second has passed: rows become stale by that alone. */
  tick() {
    this.arrivals.tick();
    let newest = -Infinity;
    for (const city of this.all) {
      if (!city.row) continue;
      newest = Math.max(newest, city.at);
      this.#group(city);
    }
    this.newest = newest;
    // Their ages are shown.
    if (this.stale) this.rowChanges += 1;
  }

  /** The rows of a snapshot take the place of all others once it is complete. */
  snapshot(rows, { first, complete }) {
    if (first) this.#snapshots += 1;
    for (const row of rows) {
      const city = this.named(row.city);
      city.snapshot = this.#snapshots;
      this.#set(city, row);
    }
    if (!complete) return;
    for (const city of this.all) if (city.row && city.snapshot !== this.#snapshots) this.#set(city, null);
  }

  changes(upserts, removals) {
    for (const { city: key } of removals) {
      const city = this.#byKey.get(key);
      if (city?.row) this.#set(city, null);
    }
    for (const row of upserts) {
      const city = this.named(row.city);
      const before = city.row ? city.at : -Infinity;
      const moved = this.#set(city, row);
      if (city.at > before) this.arrivals.add(city.stale);
      this.onChange(city, moved);
    }
  }

  /** How many cities `takes` takes, and the first `limit` of them by `order`. */
  #first(limit, takes, order) {
    const found = [];
    let total = 0;
    for (const city of this.all) {
      if (!city.row || !takes(city)) continue;
      total += 1;
      if (found.length === limit && order(found[limit - 1], city) <= 0) continue;
      let at = found.length;
      while (at > 0 && order(city, found[at - 1]) < 0) at -= 1;
      found.splice(at, 0, city);
      if (found.length > limit) found.pop();
    }
    return { total, found };
  }

  /** The `limit` hottest cities of the categories in `filter` (of all, where it is empty); none of them is stale. */
  hottest(limit, filter) {
    const takes = (city) => !city.stale && (!filter.size || filter.has(city.group));
    return this.#first(limit, takes, hotter).found;
  }

  /** How many cities with a row are on no map, and the first `limit` of them: the hottest, stale ones last. */
  unplaced(limit) {
    return this.#first(limit, (city) => city.described && !city.placed, (a, b) => a.stale - b.stale || hotter(a, b));
  }

  /**
   * How many cities a search finds, and the first `limit`: those whose name starts with it, then those where a later word does, those
   * that the service finds by another name, whose keys are `others`, and those of a country of that name.
   */
  search(text, limit, others) {
    const wanted = folded(text.trim());
    if (!wanted) return { total: 0, found: [] };
    const [starts, within, ofCountry, renamed] = [[], [], [], []];
    for (const city of this.all) {
      city.folded ||= folded(city.name);
      if (city.folded.startsWith(wanted) || city.key === wanted) starts.push(city);
      else if (city.folded.includes(` ${wanted}`) || city.folded.includes(`-${wanted}`)) within.push(city);
      else if (city.country && isCountry(city, wanted)) ofCountry.push(city);
      else if (others.has(city.key)) renamed.push(city);
    }
    const all = [...starts, ...within, ...renamed, ...ofCountry];
    return { total: all.length, found: all.slice(0, limit) };
  }
}
