// Units, numbers, times and categories as people read them.

export const CATEGORIES = [
  { key: 'none', name: 'No caution', from: -Infinity },
  { key: 'caution', name: 'Caution', from: 80 },
  { key: 'extreme_caution', name: 'Extreme caution', from: 90 },
  { key: 'danger', name: 'Danger', from: 103 },
  { key: 'extreme_danger', name: 'Extreme danger', from: 125 },
];

/** The place of cities whose row is stale, behind those of the categories. */
export const STALE = CATEGORIES.length;

export const RANK = new Map(CATEGORIES.map(({ key }, rank) => [key, rank]));

/** The rank of a category; of one that is not known here, that of `none`. */
export const rankOf = (key) => RANK.get(key) ?? 0;

const one = new Intl.NumberFormat(undefined, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const signed = new Intl.NumberFormat(undefined, {
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
  signDisplay: 'exceptZero',
});
const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const clockSeconds = new Intl.DateTimeFormat(undefined, {
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  hourCycle: 'h23',
});
const dayClock = new Intl.DateTimeFormat(undefined, {
  weekday: 'short',
  hour: '2-digit',
  minute: '2-digit',
  hourCycle: 'h23',
});
const monthDay = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const WEEK_MS = 6 * 86400000;
const dated = new Intl.DateTimeFormat(undefined, {
  day: 'numeric',
  month: 'short',
  year: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
  hourCycle: 'h23',
  timeZoneName: 'short',
});
const full = new Intl.DateTimeFormat(undefined, { dateStyle: 'long', timeStyle: 'long' });
const regions = new Intl.DisplayNames(undefined, { type: 'region', fallback: 'code' });

/** Of the month. */
export const day = (ms) => monthDay.format(ms);
export const integer = (n) => whole.format(n);
export const time = (ms) => clock.format(ms);
export const timeWithSeconds = (ms) => clockSeconds.format(ms);
/** Without the day, where that is today. */
export const shortTime = (ms) =>
  new Date(ms).toDateString() === new Date().toDateString() ? time(ms) : dayAndTime(ms);
/** With date and time zone. */
export const datedTime = (ms) => dated.format(ms);
/** With the day of the week, or with the date where that could be of another week. */
export const dayAndTime = (ms) => (Math.abs(Date.now() - ms) < WEEK_MS ? dayClock : dated).format(ms);
export const fullTime = (ms) => full.format(ms);
export const percent = (n) => `${whole.format(n)} %`;

export function country(code) {
  try {
    return code ? regions.of(code) : '';
  } catch {
    return code;
  }
}

/** How temperatures and speeds are shown: what the page holds is °F and mph. */
export class Units {
  constructor(celsius) {
    this.celsius = celsius;
    this.symbol = celsius ? '°C' : '°F';
  }

  /** A temperature as a number of these units: as the service has it, from whole 1e-6 °F and divided once. */
  degrees(fahrenheit) {
    return this.celsius ? (Math.round(fahrenheit * 1e6) - 32e6) / 1.8e6 : fahrenheit;
  }

  fahrenheit(degrees) {
    return this.celsius ? degrees * 1.8 + 32 : degrees;
  }

  bare(fahrenheit) {
    return one.format(this.degrees(fahrenheit));
  }

  temperature(fahrenheit) {
    return `${this.bare(fahrenheit)} ${this.symbol}`;
  }

  difference(fahrenheit) {
    return `${signed.format(this.celsius ? fahrenheit / 1.8 : fahrenheit)} ${this.symbol}`;
  }

  speed(mph) {
    return this.celsius ? `${whole.format(mph * 1.609344)} km/h` : `${whole.format(mph)} mph`;
  }
}

export function lag(ms) {
  return ms < 1000 ? `${whole.format(Math.max(0, ms))} ms` : `${one.format(ms / 1000)} s`;
}

const MINUTE_MS = 60000;
const SPANS = [
  ['year', 525960 * MINUTE_MS],
  ['month', 43830 * MINUTE_MS],
  ['day', 1440 * MINUTE_MS],
  ['hour', 60 * MINUTE_MS],
  ['minute', MINUTE_MS],
];

/** A length of time in its largest unit of which there are two, as in "16 months" and "90 minutes". */
export function span(ms) {
  const [unit, length] = SPANS.find(([, each]) => ms >= 2 * each) ?? SPANS[SPANS.length - 1];
  const count = Math.floor(ms / length);
  return `${integer(count)} ${unit}${count === 1 ? '' : 's'}`;
}

/** An age in words. */
export function age(ms) {
  if (ms <= -MINUTE_MS) return `${span(-ms)} ahead of the clock`;
  return ms < MINUTE_MS ? 'less than a minute ago' : `${span(ms)} ago`;
}

const MARKS = /\p{M}/gu;

/** Without case and accents, for searching. */
export const folded = (text) => text.normalize('NFD').replace(MARKS, '').toLowerCase();
