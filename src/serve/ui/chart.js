// The chart of one city: heat index and rolling mean over time. What a correction changed flashes, and the old lines stay for a while.
import { CATEGORIES, time as clock, day } from './format.js';
import { palette } from './palette.js';

const MARGIN = { left: 44, right: 12, top: 12, bottom: 24 };
const GHOST_MS = 8000;
const FLASH_MS = 2500;
const MAX_GHOSTS = 8;
const MAX_MARKS = 20;
const HOUR = 3600000;
const TIME_STEPS = [1 / 60, 1 / 12, 1 / 4, 1, 2, 3, 6, 12, 24, 48, 168].map((hours) => hours * HOUR);
const NAME_HEIGHT = 13;
const FONT = '11px system-ui, sans-serif';

const heatIndex = (row) => row.heat_index;
const rolling = (row) => row.rolling_heat_index;

/** Steps of 1, 2 or 5 times a power of ten: about `count` of them in `range`. */
function niceStep(range, count) {
  const rough = range / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((n) => n * power >= rough);
}

export class Chart {
  #canvas;
  #series = null;
  #units;
  #colours = null;
  #ghosts = [];
  #cursor = null;
  #isOld = true;
  #on;
  #width = 0;
  #height = 0;
  #calm = matchMedia('(prefers-reduced-motion: reduce)');

  /** `on.readout(index)` is told the row under the pointer or cursor, null where there is none. */
  constructor(canvas, on) {
    this.#canvas = canvas;
    this.#on = on;
    canvas.addEventListener('pointermove', (event) => this.#point(event));
    canvas.addEventListener('pointerdown', (event) => this.#point(event));
    canvas.addEventListener('pointerleave', () => this.#setCursor(null));
    canvas.addEventListener('keydown', (event) => this.#key(event));
    canvas.addEventListener('blur', () => this.#setCursor(null));
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  show(series, units) {
    if (series !== this.#series) {
      this.#ghosts = [];
      this.#setCursor(null);
    }
    this.#series = series;
    this.#units = units;
    this.#isOld = true;
  }

  recolour() {
    this.#colours = palette();
    this.#isOld = true;
  }

  /** The rows have changed. `change` is that of [`Series.apply`], null where there is nothing to compare with. */
  changed(change) {
    this.#isOld = true;
    if (this.#cursor !== null) this.#on.readout(this.#index());
    if (!change?.old) return;
    const marks = change.events.filter(({ kind, after }) => kind !== 'new' && after !== null).slice(0, MAX_MARKS);
    this.#ghosts.push({ ...change.old, marks, since: performance.now() });
    if (this.#ghosts.length > MAX_GHOSTS) this.#ghosts.shift();
  }

  draw(now) {
    const animated = this.#ghosts.length > 0;
    if (!this.#isOld && !animated) return;
    this.#ghosts = this.#ghosts.filter(({ since }) => now - since < GHOST_MS);
    this.#isOld = false;
    if (!this.#series || !this.#width || !this.#colours) return;
    const context = this.#canvas.getContext('2d');
    const ratio = this.#canvas.width / this.#width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.#width, this.#height);
    if (!this.#series.times.length) return;
    const scales = this.#scales();
    this.#drawAxes(context, scales);
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, this.#width - MARGIN.left - MARGIN.right + 4, this.#height - MARGIN.bottom);
    context.clip();
    for (const ghost of this.#ghosts) this.#drawGhost(context, scales, ghost, now - ghost.since);
    const { times, rows } = this.#series;
    this.#line(context, scales, times, rows, heatIndex, 'heat-index', 1.4);
    this.#line(context, scales, times, rows, rolling, 'rolling', 2.6);
    for (const ghost of this.#ghosts) this.#drawMarks(context, scales, ghost, now - ghost.since);
    context.restore();
    this.#drawCursor(context, scales);
  }

  #resize() {
    this.#width = this.#canvas.clientWidth;
    this.#height = this.#canvas.clientHeight;
    const ratio = Math.min(2, devicePixelRatio || 1);
    this.#canvas.width = Math.round(this.#width * ratio);
    this.#canvas.height = Math.round(this.#height * ratio);
    this.recolour();
    this.draw(performance.now());
  }

  #scales() {
    const { times, rows } = this.#series;
    let [low, high] = [Infinity, -Infinity];
    for (const part of [rows, ...this.#ghosts.map((ghost) => ghost.rows)]) {
      for (const row of part) {
        low = Math.min(low, row.heat_index, row.rolling_heat_index);
        high = Math.max(high, row.heat_index, row.rolling_heat_index);
      }
    }
    [low, high] = [this.#units.degrees(low), this.#units.degrees(high)];
    const room = Math.max(1, (high - low) * 0.08);
    [low, high] = [low - room, high + room];
    const last = times[times.length - 1];
    const first = Math.min(times[0], last - 60000);
    const width = this.#width - MARGIN.left - MARGIN.right;
    const height = this.#height - MARGIN.top - MARGIN.bottom;
    return {
      first,
      last,
      low,
      high,
      x: (time) => MARGIN.left + ((time - first) / (last - first)) * width,
      y: (degrees) => MARGIN.top + (1 - (degrees - low) / (high - low)) * height,
      timeAt: (x) => first + ((x - MARGIN.left) / width) * (last - first),
    };
  }

  #drawAxes(context, scales) {
    const right = this.#width - MARGIN.right;
    const bottom = this.#height - MARGIN.bottom;
    context.font = FONT;
    context.strokeStyle = this.#colours.grid;
    context.fillStyle = this.#colours.muted;
    context.lineWidth = 1;
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    const step = niceStep(scales.high - scales.low, Math.max(2, (bottom - MARGIN.top) / 36));
    for (let value = Math.ceil(scales.low / step) * step; value <= scales.high; value += step) {
      const y = Math.round(scales.y(value)) + 0.5;
      this.#stroke(context, MARGIN.left, y, right, y);
      context.fillText(`${Number(value.toFixed(6))}°`, MARGIN.left - 7, y);
    }
    this.#drawThresholds(context, scales, right);
    context.textBaseline = 'top';
    context.textAlign = 'center';
    context.fillStyle = this.#colours.muted;
    context.strokeStyle = this.#colours.grid;
    const span = scales.last - scales.first;
    const spacing = TIME_STEPS.find((each) => (each / span) * (right - MARGIN.left) > (span > 36 * HOUR ? 84 : 64)) ?? span;
    const zone = new Date(scales.last).getTimezoneOffset() * 60000;
    for (let time = Math.ceil((scales.first - zone) / spacing) * spacing + zone; time <= scales.last; time += spacing) {
      const x = Math.round(scales.x(time)) + 0.5;
      this.#stroke(context, x, bottom, x, bottom + 4);
      const label = span > 36 * HOUR ? `${day(time)} ${clock(time)}` : clock(time);
      context.fillText(label, Math.min(Math.max(x, MARGIN.left + 10), right - 12), bottom + 8);
    }
  }

  /** Where the categories begin. */
  #drawThresholds(context, scales, right) {
    context.setLineDash([2, 4]);
    context.textBaseline = 'bottom';
    let named = -Infinity;
    for (const { key, name, from } of [...CATEGORIES].reverse()) {
      const y = scales.y(this.#units.degrees(from));
      if (!(y > MARGIN.top + 10 && y < this.#height - MARGIN.bottom)) continue;
      context.strokeStyle = this.#colours[key];
      this.#stroke(context, MARGIN.left, y, right, y);
      // Where they are close together, the names of the hotter ones are there.
      if (y - named < NAME_HEIGHT) continue;
      named = y;
      context.fillStyle = this.#colours.muted;
      context.strokeStyle = this.#colours.panel;
      context.lineWidth = 3;
      context.setLineDash([]);
      context.strokeText(name, right, y - 2);
      context.fillText(name, right, y - 2);
      context.lineWidth = 1;
      context.setLineDash([2, 4]);
    }
    context.setLineDash([]);
  }

  #stroke(context, x1, y1, x2, y2) {
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
  }

  /** Of the rows within one column of pixels only the first, the extremes and the last are drawn. */
  #line(context, scales, times, rows, value, colour, width) {
    const gap = Math.max(HOUR, (scales.last - scales.first) / 24);
    context.beginPath();
    let [column, least, most, last] = [-1, 0, 0, 0];
    const finish = () => {
      if (column < 0) return;
      context.lineTo(column, least);
      context.lineTo(column, most);
      context.lineTo(column, last);
    };
    for (let i = 0; i < times.length; i += 1) {
      const x = Math.round(scales.x(times[i]) * 2) / 2;
      const y = scales.y(this.#units.degrees(value(rows[i])));
      if (x === column) {
        [least, most, last] = [Math.min(least, y), Math.max(most, y), y];
        continue;
      }
      finish();
      if (i === 0 || times[i] - times[i - 1] > gap) context.moveTo(x, y);
      else context.lineTo(x, y);
      [column, least, most, last] = [x, y, y, y];
    }
    finish();
    context.strokeStyle = this.#colours[colour];
    context.lineWidth = width;
    context.lineJoin = 'round';
    context.stroke();
  }

  /** How much is left of something that is to be seen for so long. */
  #left(age, over) {
    if (this.#calm.matches) return age < over ? 0.6 : 0;
    return Math.max(0, 1 - age / over);
  }

  #drawGhost(context, scales, { from, to, times, rows }, age) {
    const [left, right] = [scales.x(from) - 2, scales.x(to) + 2];
    context.fillStyle = this.#colours.flash;
    context.globalAlpha = 0.45 * this.#left(age, FLASH_MS);
    context.fillRect(left, MARGIN.top, Math.max(4, right - left), this.#height - MARGIN.top - MARGIN.bottom);
    context.globalAlpha = 0.7 * Math.sqrt(this.#left(age, GHOST_MS));
    context.setLineDash([4, 3]);
    this.#line(context, scales, times, rows, heatIndex, 'muted', 1.2);
    this.#line(context, scales, times, rows, rolling, 'muted', 1.8);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  /** Circles the readings that were corrected or came late. */
  #drawMarks(context, scales, { marks }, age) {
    context.globalAlpha = Math.sqrt(this.#left(age, GHOST_MS));
    context.strokeStyle = this.#colours.text;
    context.lineWidth = 1.5;
    for (const { time, after } of marks) {
      context.beginPath();
      context.arc(scales.x(time), scales.y(this.#units.degrees(after)), 5, 0, 2 * Math.PI);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  #drawCursor(context, scales) {
    const index = this.#index();
    if (index === null) return;
    const row = this.#series.rows[index];
    const x = scales.x(this.#series.times[index]);
    context.strokeStyle = this.#colours.muted;
    context.lineWidth = 1;
    this.#stroke(context, x, MARGIN.top, x, this.#height - MARGIN.bottom);
    for (const [value, colour] of [[heatIndex(row), 'heat-index'], [rolling(row), 'rolling']]) {
      context.beginPath();
      context.arc(x, scales.y(this.#units.degrees(value)), 4, 0, 2 * Math.PI);
      context.fillStyle = this.#colours[colour];
      context.fill();
      context.strokeStyle = this.#colours.panel;
      context.lineWidth = 1.5;
      context.stroke();
    }
  }

  /** The row at the cursor, which is a time: rows come and go beneath it. */
  #index() {
    const { times } = this.#series ?? { times: [] };
    if (this.#cursor === null || !times.length) return null;
    const after = Math.min(this.#series.indexOf(this.#cursor), times.length - 1);
    const before = Math.max(0, after - 1);
    return this.#cursor - times[before] < times[after] - this.#cursor ? before : after;
  }

  #setCursor(time) {
    this.#cursor = time;
    this.#isOld = true;
    this.#on.readout(this.#index());
  }

  #point(event) {
    if (!this.#series?.times.length) return;
    const x = event.clientX - this.#canvas.getBoundingClientRect().left;
    this.#setCursor(this.#scales().timeAt(x));
  }

  #key(event) {
    const { times } = this.#series ?? { times: [] };
    if (!times.length) return;
    const at = this.#index() ?? times.length - 1;
    const jump = Math.max(2, Math.round(times.length / 24));
    const to = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      PageDown: at - jump,
      PageUp: at + jump,
      Home: 0,
      End: times.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#setCursor(times[Math.min(times.length - 1, Math.max(0, to))]);
  }
}
