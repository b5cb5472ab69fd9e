// The live page: the feed's rows go to the map, the lists and the panel of a city.
import { Cities } from './cities.js';
import { Feed } from './feed.js';
import { CATEGORIES, Units, age, fullTime, integer, lag, timeWithSeconds } from './format.js';
import { ServiceClock, liveState } from './freshness.js';
import { Lists } from './lists.js';
import { WorldMap } from './map.js';
import { Panel } from './panel.js';

const LISTS_EVERY_MS = 250;
const DESCRIBE_EVERY_MS = 1000;
const TICK_MS = 1000;
/** Cities that the service is asked for by a search. */
const MOST_FOUND = 200;
/** More new cities at once are described by the whole list. */
const FEW_CITIES = 8;
const STATES = {
  connecting: 'Connecting',
  waiting: 'Reconnecting',
  catching_up: 'Catching up',
  unauthorized: 'Token needed',
};

const byId = (id) => document.getElementById(id);
const part = (name) => document.querySelector(`[data-test="${name}"]`);

/** A setting that outlives the page where there is storage. */
function remember(storage, key, value) {
  try {
    if (value === null) storage().removeItem(`swelter.${key}`);
    else storage().setItem(`swelter.${key}`, value);
  } catch {
    // Without storage it holds until the page is closed.
  }
}

function recall(storage, key) {
  try {
    return storage().getItem(`swelter.${key}`);
  } catch {
    return null;
  }
}

const local = () => localStorage;
const session = () => sessionStorage;

const clock = new ServiceClock();
const cities = new Cities(clock);
let unitsAreChosen = recall(local, 'units') !== null;
let units = new Units(recall(local, 'units') === 'celsius');
let state = { name: 'connecting', retryAt: 0 };
let asOf = 0;
let lastCounts = null;
let generation = '';
let described = 'no';
let landIsDrawn = false;
let shownRows = -1;

const feed = new Feed({
  state: showState,
  hello: showHello,
  now: (ms) => clock.tell(ms),
  asOf: (ms) => (asOf = ms),
  status: showStatus,
});
const panel = new Panel(feed, clock, units);
const lists = new Lists(cities, clock, {
  select: choose,
  filter: (ranks) => (map.setFilter(ranks), showLists()),
  search: findKeys,
});
const map = new WorldMap(
  { frame: byId('map'), base: byId('map-base'), overlay: byId('map-overlay') },
  cities,
  { select: choose, hover: showTip },
);
cities.onChange = (city, categoryChanged) => map.pulse(city, categoryChanged);

/** The keys of the cities that the service finds, by names in any language: the page has only one of each. */
async function findKeys(text) {
  const { body } = await feed.get(`v1/cities?search=${encodeURIComponent(text)}&limit=${MOST_FOUND}`);
  return body?.cities?.map(({ city }) => city) ?? [];
}

function showState(name, retryAt) {
  state = { name, retryAt };
  document.body.dataset.state = name;
  if (name === 'live') {
    describeCities();
    drawLand();
  }
  if (name === 'unauthorized' && !byId('token-dialog').open) byId('token-dialog').showModal();
  showTicks();
}

async function drawLand() {
  if (landIsDrawn) return;
  landIsDrawn = true;
  const { body } = await feed.get('ui/land.json');
  landIsDrawn = Boolean(body?.rings);
  if (landIsDrawn) map.setLand(body);
}

/** A connection alone makes nothing live. */
function nameState() {
  if (state.name === 'live') return liveState(cities);
  const wait = Math.max(0, Math.ceil((state.retryAt - Date.now()) / 1000));
  return { name: state.name, text: STATES[state.name], detail: state.name === 'waiting' ? ` in ${wait} s` : '' };
}

// The directory does not change while a service runs; a restarted one may have another.
function showHello(hello) {
  clock.hello(hello);
  if (hello.generation !== generation) described = 'no';
  generation = hello.generation;
  // Until somebody has chosen, the page has the units of the service.
  if (!unitsAreChosen) showUnits(hello.units === 'celsius');
  panel.hello(hello);
}

async function describeCities() {
  if (described !== 'no') return;
  described = 'asked';
  const { status, body } = await feed.get('v1/cities');
  described = status === 200 ? 'yes' : 'no';
  if (status !== 200) {
    setTimeout(() => state.name === 'live' && describeCities(), 2000);
    return;
  }
  cities.describe(body.cities);
  followHash();
}

// Cities whose first reading has come since the list did.
async function describeNewCities() {
  const { undescribed } = cities;
  if (described !== 'yes' || state.name !== 'live' || !undescribed.size) return;
  if (undescribed.size > FEW_CITIES) {
    described = 'no';
    describeCities();
    return;
  }
  const keys = [...undescribed];
  const answers = await Promise.all(keys.map((key) => feed.get(`v1/cities/${encodeURIComponent(key)}`)));
  // A path cannot name some keys, such as "..": they stay without an entry.
  const entries = answers.map(({ status, body }, i) => (status === 404 ? { city: keys[i] } : status === 200 && body));
  cities.describe(entries.filter(Boolean));
  followHash();
}

/** One after the other, however long the answers take. */
async function keepDescribing() {
  await describeNewCities();
  setTimeout(keepDescribing, DESCRIBE_EVERY_MS);
}

function showStatus({ lag_ms: ms, counts, as_of: at }) {
  part('lag').textContent = Number.isFinite(ms) ? lag(ms) : '–';
  const total = counts ? counts.inserted + counts.corrected + counts.withdrawn : NaN;
  const now = performance.now();
  const seconds = lastCounts ? (now - lastCounts.now) / 1000 : 0;
  if (lastCounts && total >= lastCounts.total && seconds > 0.5) {
    part('rate').textContent = integer((total - lastCounts.total) / seconds);
  }
  if (!lastCounts || seconds > 0.5) lastCounts = { total, now };
  asOf = Math.max(asOf, at ?? 0);
}

/** What changes with time alone. */
function showTicks() {
  const { name, text, detail } = nameState();
  part('state').dataset.state = name;
  if (byId('state-name').textContent !== text) byId('state-name').textContent = text;
  if (byId('state-detail').textContent !== detail) byId('state-detail').textContent = detail;
  const element = part('as-of');
  if (!asOf) return;
  const iso = new Date(asOf).toISOString();
  if (element.dateTime === iso) return;
  element.dateTime = iso;
  element.textContent = timeWithSeconds(asOf);
  element.title = fullTime(asOf);
}

function showLists() {
  shownRows = cities.rowChanges;
  lists.update(units, panel.city);
  panel.update();
}

function showTip(city, x, y) {
  const tip = byId('tip');
  tip.hidden = !city?.row;
  if (tip.hidden) return;
  tip.querySelector('strong').textContent = city.name;
  tip.querySelector('span').textContent =
    `${units.temperature(city.row.heat_index)} · ${city.stale ? `stale: ${age(clock.age(city.at))}` : CATEGORIES[city.rank].name}`;
  const left = Math.max(4, Math.min(x + 14, map.view.width - tip.offsetWidth - 4));
  const top = y + 14 + tip.offsetHeight > map.view.height ? y - 14 - tip.offsetHeight : y + 14;
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

function choose(city) {
  const hash = `#city=${encodeURIComponent(city.key)}`;
  if (location.hash !== hash) history.pushState(null, '', hash);
  followHash();
  const element = byId('city');
  const { top } = element.getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.7) element.scrollIntoView({ block: 'start' });
  byId('announcements').textContent = `${city.name} is selected.`;
}

/** Selects the city that the address names. */
function followHash() {
  const key = new URLSearchParams(location.hash.slice(1).replaceAll('+', '%2B')).get('city');
  if (key && !cities.get(key) && described !== 'yes') return;
  const city = key ? cities.named(key) : null;
  if (city !== panel.city) panel.select(city);
  map.select(city);
  document.title = city ? `${city.name} – swelter` : 'swelter – live heat index';
  showLists();
}

function closeCity() {
  const { city } = panel;
  history.pushState(null, '', location.pathname + location.search);
  followHash();
  const item = document.querySelector(`[data-test="hottest"] [data-city="${CSS.escape(city?.key ?? '')}"] button`);
  (item ?? byId('map')).focus();
}

function showUnits(celsius) {
  byId(celsius ? 'celsius' : 'fahrenheit').checked = true;
  if (celsius === units.celsius) return;
  units = new Units(celsius);
  panel.setUnits(units);
  showLists();
}

function setUnits(celsius) {
  remember(local, 'units', celsius ? 'celsius' : 'fahrenheit');
  unitsAreChosen = true;
  showUnits(celsius);
}

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  remember(local, 'theme', theme === 'auto' ? null : theme);
  recolour();
}

function recolour() {
  map.recolour();
  panel.recolour();
}

function listen() {
  addEventListener('hashchange', followHash);
  addEventListener('popstate', followHash);
  byId('close-city').addEventListener('click', closeCity);
  byId('zoom-in').addEventListener('click', () => map.view.zoomIn());
  byId('zoom-out').addEventListener('click', () => map.view.zoomOut());
  byId('zoom-reset').addEventListener('click', () => map.view.reset());
  byId('city').addEventListener('keydown', (event) => event.key === 'Escape' && closeCity());
  const celsius = byId('celsius');
  showUnits(units.celsius);
  celsius.form.addEventListener('change', () => setUnits(celsius.checked));
  const theme = byId('theme');
  theme.value = recall(local, 'theme') ?? 'auto';
  theme.addEventListener('change', () => setTheme(theme.value));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolour);
  byId('token-form').addEventListener('submit', () => {
    const token = byId('token').value.trim();
    byId('token').value = '';
    remember(session, 'token', token);
    feed.authorize(token);
  });
}

function frame(now) {
  map.draw(now);
  panel.draw(now);
  requestAnimationFrame(frame);
}

listen();
feed.subscribe({ cities: 'all', rows: 'latest' }, cities);
feed.start(recall(session, 'token'));
setInterval(() => {
  showTicks();
  if (shownRows !== cities.rowChanges) showLists();
}, LISTS_EVERY_MS);
setInterval(() => {
  cities.tick();
  panel.tick();
}, TICK_MS);
requestAnimationFrame(frame);
keepDescribing();
drawLand();
