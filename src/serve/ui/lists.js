// The lists beside the map, which are also what it says in words: counts by category, the hottest cities, and the search.
import { CATEGORIES, STALE, Units, age, country, datedTime, integer, span } from './format.js';

const HOTTEST = 20;
const FOUND = 8;
const UNPLACED = 50;
/** After the last key, before the service is asked for other names. */
const SEARCH_AFTER_MS = 200;
const SVG = 'http://www.w3.org/2000/svg';

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** The shape and colour of a category. What it means is always beside it in words. */
function mark(key) {
  const svg = document.createElementNS(SVG, 'svg');
  const use = document.createElementNS(SVG, 'use');
  svg.setAttribute('class', 'mark');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#mark-${key}`);
  svg.append(use);
  return svg;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A button that names a city, its country, heat index and category; they are changed in place. */
class CityButton {
  #clock;

  constructor(clock, select) {
    this.#clock = clock;
    this.key = '';
    this.city = null;
    this.mark = mark('none');
    this.name = make('span', 'name');
    this.place = make('span', 'place');
    this.value = make('data', 'value');
    this.category = make('span', 'category');
    const text = make('span', 'who', this.name, this.place);
    this.button = make('button', 'city-button', this.mark, text, make('span', 'what', this.value, this.category));
    this.button.type = 'button';
    this.button.addEventListener('click', () => this.city && select(this.city));
    this.item = make('li', '', this.button);
  }

  show(city, units, selected) {
    this.city = city;
    this.item.hidden = !city;
    if (!city) return;
    if (this.item.dataset.city !== city.key) this.item.dataset.city = city.key;
    setText(this.name, city.name);
    setText(this.place, country(city.country));
    const { row } = city;
    this.value.value = row?.heat_index ?? '';
    setText(this.value, row ? units.temperature(row.heat_index) : '–');
    const category = row ? CATEGORIES[city.rank] : null;
    const stale = city.stale ? `Stale: ${age(this.#clock.age(city.at))}` : null;
    this.button.classList.toggle('stale', city.stale);
    setText(this.category, stale ?? category?.name ?? 'No reading');
    const href = `#mark-${city.stale ? 'stale' : (category?.key ?? 'none')}`;
    const use = this.mark.firstChild;
    if (use.getAttribute('href') !== href) use.setAttribute('href', href);
    const current = String(city === selected);
    if (this.button.getAttribute('aria-current') !== current) this.button.setAttribute('aria-current', current);
  }
}

const KINDS = [...CATEGORIES, { key: 'stale', name: 'Stale' }];

export class Lists {
  #cities;
  #clock;
  #on;
  #units = new Units(false);
  #selected = null;
  #points = matchMedia('(hover: hover)');
  #filter = new Set();
  #categories = [];
  #hottest = [];
  #found = [];
  #unplaced = [];
  /** Keys that the service has found for the text that was searched for. */
  #others = { text: '', keys: new Set() };
  #searchTimer = 0;
  #list = document.querySelector('[data-test="hottest"]');
  #search = document.getElementById('search');

  /** `on` has `select(city)`, `filter(ranks)`, and `search(text)`, the keys that the service finds. */
  constructor(cities, clock, on) {
    this.#cities = cities;
    this.#clock = clock;
    this.#on = on;
    this.#buildCategories();
    this.#hottest = Array.from({ length: HOTTEST }, () => new CityButton(clock, on.select));
    this.#list.append(...this.#hottest.map(({ item }) => item));
    this.#found = Array.from({ length: FOUND }, () => new CityButton(clock, (city) => this.#choose(city)));
    document.querySelector('[data-test="found"]').append(...this.#found.map(({ item }) => item));
    this.#unplaced = Array.from({ length: UNPLACED }, () => new CityButton(clock, on.select));
    document.querySelector('[data-test="unplaced"]').append(...this.#unplaced.map(({ item }) => item));
    this.#search.addEventListener('input', () => this.#searchText());
    this.#search.form.addEventListener('submit', (event) => this.#submit(event));
    this.#search.form.addEventListener('keydown', (event) => this.#key(event));
  }

  #buildCategories() {
    const list = document.querySelector('[data-test="counts"]');
    KINDS.forEach(({ key, name }, rank) => {
      const count = make('data', 'count', '0');
      const range = make('span', 'range');
      const button = make('button', 'category-button', mark(key), make('span', 'name', name), range, count);
      button.type = 'button';
      button.dataset.category = key;
      button.setAttribute('aria-pressed', 'false');
      button.addEventListener('click', () => this.#toggle(rank));
      const item = make('li', '', button);
      this.#categories.push({ button, count, range, item });
      // The hottest are first, and those that are in no category last.
      if (rank === STALE) list.append(item);
      else list.prepend(item);
    });
    document.getElementById('all-categories').addEventListener('click', () => this.#toggle(null));
  }

  #toggle(rank) {
    if (rank === null) this.#filter.clear();
    else if (!this.#filter.delete(rank)) this.#filter.add(rank);
    this.#categories.forEach(({ button }, i) => button.setAttribute('aria-pressed', this.#filter.has(i)));
    document.getElementById('all-categories').hidden = !this.#filter.size;
    this.#on.filter(this.#filter);
  }

  update(units, selected) {
    this.#categories.forEach(({ count, range, item }, rank) => {
      if (rank === STALE) item.hidden = !this.#cities.stale && !this.#filter.has(STALE);
      count.value = this.#cities.counts[rank];
      setText(count, integer(this.#cities.counts[rank]));
      setText(range, this.#range(rank, units));
    });
    setText(document.querySelector('[data-test="total"]'), integer(this.#cities.fresh));
    this.#updateHottest(units, selected);
    this.#updateUnplaced(units, selected);
    for (const button of this.#found) if (button.city) button.show(button.city, units, selected);
    this.#units = units;
    this.#selected = selected;
  }

  #range(rank, units) {
    const degrees = (f) => `${Math.round(units.degrees(f))}`;
    if (rank === STALE) return Number.isFinite(this.#clock.staleAfterMs) ? `older than ${span(this.#clock.staleAfterMs)}` : '';
    if (rank === 0) return `below ${degrees(CATEGORIES[1].from)} ${units.symbol}`;
    return `from ${degrees(CATEGORIES[rank].from)} ${units.symbol}`;
  }

  // Under the pointer, or with the keyboard's focus in it, the list keeps its order: nobody should choose a city that has just moved there.
  #updateHottest(units, selected) {
    const held = (this.#points.matches && this.#list.matches(':hover')) || this.#list.querySelector(':focus-visible');
    const best = held ? null : this.#cities.hottest(HOTTEST, this.#filter);
    this.#hottest.forEach((button, i) => button.show(best ? (best[i] ?? null) : button.city, units, selected));
    const empty = document.getElementById('hottest-empty');
    empty.hidden = !this.#hottest.every(({ city }) => !city);
    if (!empty.hidden) setText(empty, this.#whyEmpty());
  }

  #updateUnplaced(units, selected) {
    const { total, found } = this.#cities.unplaced(UNPLACED);
    document.getElementById('unplaced-section').hidden = !total;
    this.#unplaced.forEach((button, i) => button.show(found[i] ?? null, units, selected));
    const more = total > UNPLACED ? `; the first ${UNPLACED} are shown, the search finds all` : '';
    setText(document.getElementById('unplaced-count'), `${integer(total)} without a place${more}`);
  }

  #whyEmpty() {
    const { fresh, stale, newest } = this.#cities;
    if (fresh) return 'No city with a fresh reading is in these categories.';
    return stale ? `No fresh readings. The newest is of ${datedTime(newest)}.` : 'No readings yet.';
  }

  #searchText() {
    this.#showFound();
    clearTimeout(this.#searchTimer);
    const text = this.#search.value.trim();
    if (!text) return;
    this.#searchTimer = setTimeout(async () => {
      const keys = await this.#on.search(text);
      if (this.#search.value.trim() !== text) return;
      this.#others = { text, keys: new Set(keys) };
      this.#showFound();
    }, SEARCH_AFTER_MS);
  }

  #showFound() {
    const text = this.#search.value.trim();
    const others = this.#others.text === text ? this.#others.keys : new Set();
    const { total, found } = this.#cities.search(text, FOUND, others);
    this.#found.forEach((button, i) => button.show(found[i] ?? null, this.#units, this.#selected));
    const asked = this.#search.value.trim() !== '';
    document.getElementById('found').hidden = !asked;
    const more = total > FOUND ? `, the first ${FOUND} are shown` : '';
    const count = total === 0 ? 'No city found' : `${integer(total)} ${total === 1 ? 'city' : 'cities'} found${more}`;
    setText(document.getElementById('found-count'), asked ? count : '');
  }

  #choose(city) {
    this.#search.value = '';
    this.#showFound();
    this.#search.focus();
    this.#on.select(city);
  }

  #submit(event) {
    event.preventDefault();
    const first = this.#found[0].city;
    if (first && this.#search.value.trim()) this.#choose(first);
  }

  #key(event) {
    if (event.key === 'Escape' && this.#search.value) {
      event.preventDefault();
      this.#search.value = '';
      this.#showFound();
      this.#search.focus();
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const stops = [this.#search, ...this.#found.filter(({ city }) => city).map(({ button }) => button)];
    const next = stops[stops.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }
}
