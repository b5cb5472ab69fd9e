// The world map. The land is drawn once for each view, the dots when one changes its category, and pulses, selection and labels on
// a canvas above; nothing more than once a frame.
import { DotLayer, Sprite } from './dots.js';
import { CATEGORIES, STALE } from './format.js';
import { palette } from './palette.js';
import { project, projectRing } from './projection.js';
import { View } from './view.js';

const DOTS_EVERY_MS = 250;
const PULSE_MS = 900;
const PULSE_EVERY_MS = 30;
const MAX_PULSES = 160;
const PULSES_PER_FRAME = 6;
const REACH_PX = { mouse: 9, touch: 22 };
const LABELS_FROM_ZOOM = 2.5;
const MAX_LABELS = 60;
const FONT = '12px system-ui, sans-serif';

const LATITUDES = Array.from({ length: 37 }, (_, i) => i * 5 - 90);

/** The edge of the world. */
const EDGE = [...LATITUDES.map((latitude) => [180, latitude]), ...LATITUDES.toReversed().map((latitude) => [-180, latitude])];

/** Half the size of each category's dot, in pixels: hotter is larger, and has another shape. */
const RADII = [1.7, 2.4, 3.3, 3.8, 3.4];
/** Of what is stale: a ring, whatever its category was. */
const STALE_RADIUS = 2.8;

function shape(context, rank, centre, r) {
  context.beginPath();
  if (rank < 2) context.arc(centre, centre, r, 0, 2 * Math.PI);
  else if (rank === 2) polygon(context, centre, [[0, -r], [r, 0], [0, r], [-r, 0]]);
  else if (rank === 3) polygon(context, centre, [[0, -r], [r, r * 0.8], [-r, r * 0.8]]);
  else context.rect(centre - r, centre - r, 2 * r, 2 * r);
}

function polygon(context, centre, corners) {
  for (const [x, y] of corners) context.lineTo(centre + x, centre + y);
  context.closePath();
}

export class WorldMap {
  #frame;
  #base;
  #overlay;
  #land = new OffscreenCanvas(1, 1);
  #rings = [];
  #cities;
  #on;
  #filter = new Set();
  #colours = {};
  #sprites = [];
  #dotSize = 0;
  #dots = new DotLayer();
  #pixelRatio = 1;
  #drawnDots = -1;
  #drawnAt = 0;
  #landIsOld = true;
  #dotsAreOld = true;
  #overlayIsOld = true;
  #pulses = [];
  #newPulses = 0;
  #pulsedAt = 0;
  #hovered = null;
  #selected = null;
  #labels = new Map();
  #calm = matchMedia('(prefers-reduced-motion: reduce)');
  view;

  /** `on` has `select(city)` and `hover(city, x, y)`, with null where there is none. */
  constructor({ frame, base, overlay }, cities, on) {
    this.#frame = frame;
    this.#base = base;
    this.#overlay = overlay;
    this.#cities = cities;
    this.#on = on;
    this.view = new View(frame, {
      moved: () => this.#moved(),
      tapped: (x, y, coarse) => this.#tap(x, y, coarse),
      hovered: (x, y) => this.#hover(this.#nearest(x, y, REACH_PX.mouse)),
      left: () => this.#hover(null),
    });
    for (const event of ['focus', 'blur']) frame.addEventListener(event, () => (this.#overlayIsOld = true));
    new ResizeObserver(() => this.#resize(frame.clientWidth, frame.clientHeight)).observe(frame);
  }

  setLand({ rings }) {
    this.#rings = rings.flatMap(projectRing);
    this.#moved();
  }

  /** The ranks that are shown, [`STALE`] beside them; all, where it is empty. */
  setFilter(filter) {
    this.#filter = new Set(filter);
    this.#dotsAreOld = true;
  }

  recolour() {
    this.#colours = palette();
    this.#dotSize = 0;
    this.#moved();
  }

  /** Small maps have small dots, and what is looked at closely larger ones. */
  #sizeDots() {
    const map = Math.min(1, Math.max(0.55, this.view.width / 1150));
    const size = Math.round(map * Math.min(1.6, this.view.zoom ** 0.3) * 10) / 10;
    if (size === this.#dotSize) return;
    this.#dotSize = size;
    this.#sprites = CATEGORIES.map(({ key }, rank) => this.#sprite(RADII[rank] * size, rank, this.#colours[key]));
    this.#sprites[STALE] = this.#ringSprite(STALE_RADIUS * size);
  }

  select(city) {
    this.#selected = city;
    this.#overlayIsOld = this.#dotsAreOld = true;
    if (city?.placed) this.view.show(city.x, city.y);
  }

  /** Of very many changes only some pulse: enough to see that the world moves. */
  pulse(city, categoryChanged) {
    if (!city.placed || document.hidden || this.#calm.matches) return;
    if (this.#newPulses >= PULSES_PER_FRAME || this.#pulses.length >= MAX_PULSES) return;
    if (!categoryChanged && Math.random() > 0.2) return;
    this.#newPulses += 1;
    this.#pulses.push({ city, since: performance.now() });
  }

  /** Draws what has changed since the last frame. */
  draw(now) {
    if (this.view.width < 2) return;
    const changed = this.#drawnDots !== this.#cities.dotChanges && now - this.#drawnAt >= DOTS_EVERY_MS;
    if (this.#landIsOld) this.#drawLand();
    if (this.#landIsOld || this.#dotsAreOld || changed) {
      this.#drawDots();
      this.#drawnDots = this.#cities.dotChanges;
      this.#drawnAt = now;
    }
    if (this.#overlayIsOld || (this.#pulses.length && now - this.#pulsedAt >= PULSE_EVERY_MS)) this.#drawOverlay(now);
    this.#landIsOld = this.#dotsAreOld = this.#overlayIsOld = false;
    this.#newPulses = 0;
  }

  #moved() {
    this.#landIsOld = this.#overlayIsOld = true;
    if (this.#hovered) this.#hover(null);
  }

  #resize(width, height) {
    if (!width || !height) return;
    this.#pixelRatio = Math.min(2, devicePixelRatio || 1);
    for (const canvas of [this.#base, this.#overlay, this.#land]) {
      canvas.width = Math.round(width * this.#pixelRatio);
      canvas.height = Math.round(height * this.#pixelRatio);
    }
    this.view.resize(width, height);
    this.recolour();
    this.draw(performance.now());
  }

  #sprite(radius, rank, colour) {
    const ratio = this.#pixelRatio;
    const half = Math.ceil((radius + 1) * ratio);
    const canvas = new OffscreenCanvas(2 * half, 2 * half);
    const context = canvas.getContext('2d');
    shape(context, rank, half, radius * ratio);
    if (rank >= 2) {
      context.strokeStyle = this.#colours.land;
      context.lineWidth = 1.2 * ratio;
      context.stroke();
    }
    context.fillStyle = colour;
    context.fill();
    return new Sprite(canvas, half);
  }

  #ringSprite(radius) {
    const ratio = this.#pixelRatio;
    const half = Math.ceil((radius + 1.5) * ratio);
    const canvas = new OffscreenCanvas(2 * half, 2 * half);
    const context = canvas.getContext('2d');
    context.arc(half, half, radius * ratio, 0, 2 * Math.PI);
    context.fillStyle = this.#colours.land;
    context.fill();
    context.strokeStyle = this.#colours.muted;
    context.lineWidth = 1.1 * ratio;
    context.stroke();
    return new Sprite(canvas, half);
  }

  #drawLand() {
    const context = this.#land.getContext('2d', { alpha: false, willReadFrequently: true });
    const { view } = this;
    const ratio = this.#pixelRatio;
    const [scale, left, top] = [view.scale * ratio, view.screenX(0) * ratio, view.screenY(0) * ratio];
    context.fillStyle = this.#colours.sea;
    context.fillRect(0, 0, this.#land.width, this.#land.height);
    const place = (longitude, latitude) => {
      const [x, y] = project(longitude, latitude);
      return [x * scale + left, y * scale + top];
    };
    this.#drawGraticule(context, place);
    context.save();
    context.beginPath();
    for (const [longitude, latitude] of EDGE) context.lineTo(...place(longitude, latitude));
    context.clip();
    context.beginPath();
    for (const ring of this.#rings) {
      context.moveTo(ring[0][0] * scale + left, ring[0][1] * scale + top);
      for (const [x, y] of ring) context.lineTo(x * scale + left, y * scale + top);
      context.closePath();
    }
    context.fillStyle = this.#colours.land;
    context.fill('evenodd');
    context.strokeStyle = this.#colours.coast;
    context.lineWidth = ratio * 0.8;
    context.stroke();
    context.restore();
    this.#dots.setBackground(context);
  }

  #drawGraticule(context, place) {
    context.beginPath();
    const line = ([first, ...rest]) => {
      context.moveTo(...place(...first));
      for (const point of rest) context.lineTo(...place(...point));
    };
    for (let longitude = -180; longitude <= 180; longitude += 30) line(LATITUDES.map((latitude) => [longitude, latitude]));
    for (let latitude = -60; latitude <= 60; latitude += 30) line([[-180, latitude], [180, latitude]]);
    context.strokeStyle = this.#colours.graticule;
    context.lineWidth = this.#pixelRatio * 0.7;
    context.stroke();
  }

  #shown(city) {
    return city.placed && city.group >= 0 && (!this.#filter.size || this.#filter.has(city.group));
  }

  #drawDots() {
    this.#sizeDots();
    const context = this.#base.getContext('2d', { alpha: false });
    const byGroup = this.#sprites.map(() => []);
    // The selected city is above the others.
    let chosen = null;
    const { width, height } = this.#base;
    const ratio = this.#pixelRatio;
    const [scale, left, top] = [
      this.view.scale * ratio,
      this.view.screenX(0) * ratio,
      this.view.screenY(0) * ratio,
    ];
    for (const city of this.#cities.all) {
      if (!this.#shown(city)) continue;
      const [x, y] = [city.x * scale + left, city.y * scale + top];
      if (!(x > -9 && y > -9 && x < width + 9 && y < height + 9)) continue;
      if (city === this.#selected) chosen = [x, y];
      else byGroup[city.group].push(x, y);
    }
    this.#dots.clear();
    // What is stale is below what is not.
    this.#dots.draw(this.#sprites[STALE], byGroup[STALE]);
    byGroup.slice(0, STALE).forEach((places, rank) => this.#dots.draw(this.#sprites[rank], places));
    if (chosen) this.#dots.draw(this.#sprites[this.#selected.group], chosen);
    this.#dots.put(context);
    if (this.view.zoom >= LABELS_FROM_ZOOM) this.#drawLabels(context, ratio);
  }

  /** Names the largest cities, as far as the names do not overlap. */
  #drawLabels(context, ratio) {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = FONT;
    context.lineJoin = 'round';
    const taken = [];
    const { view } = this;
    for (const city of this.#cities.all) {
      if (taken.length >= MAX_LABELS) break;
      if (!this.#shown(city) || city === this.#selected) continue;
      const [x, y] = [view.screenX(city.x) + 7, view.screenY(city.y)];
      if (x < 0 || y < 8 || x > view.width || y > view.height - 8) continue;
      const right = x + this.#labelWidth(context, city);
      const free = taken.every((other) => right + 6 < other.x || x > other.right + 6 || Math.abs(y - other.y) > 15);
      if (!free || right > view.width) continue;
      taken.push({ x, y, right });
      this.#text(context, city.name, x, y);
    }
  }

  #labelWidth(context, city) {
    let width = this.#labels.get(city);
    if (width === undefined) {
      width = context.measureText(city.name).width;
      this.#labels.set(city, width);
    }
    return width;
  }

  #text(context, text, x, y) {
    context.textBaseline = 'middle';
    context.lineWidth = 3;
    context.strokeStyle = this.#colours.land;
    context.strokeText(text, x, y);
    context.fillStyle = this.#colours.text;
    context.fillText(text, x, y);
  }

  #drawOverlay(now) {
    this.#pulsedAt = now;
    const context = this.#overlay.getContext('2d');
    const ratio = this.#pixelRatio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.view.width, this.view.height);
    this.#pulses = this.#pulses.filter(({ since }) => now - since < PULSE_MS);
    context.strokeStyle = this.#colours.accent;
    context.lineWidth = 1.2;
    for (const { city, since } of this.#pulses) {
      const age = (now - since) / PULSE_MS;
      context.globalAlpha = 0.55 * (1 - age);
      this.#ring(context, city, 3 + 6 * age);
    }
    context.globalAlpha = 1;
    this.#drawMarks(context);
  }

  #drawMarks(context) {
    context.strokeStyle = this.#colours.text;
    if (this.#hovered) this.#ring(context, this.#hovered, 7);
    if (this.#selected?.placed) {
      context.lineWidth = 2.2;
      this.#ring(context, this.#selected, 9);
      context.font = `600 ${FONT}`;
      this.#text(context, this.#selected.name, this.view.screenX(this.#selected.x) + 14, this.view.screenY(this.#selected.y));
    }
    if (this.#frame.matches(':focus-visible')) this.#drawCrosshair(context);
  }

  #drawCrosshair(context) {
    const [x, y] = [this.view.width / 2, this.view.height / 2];
    context.strokeStyle = this.#colours.accent;
    context.lineWidth = 1.5;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 5 * dx, y + 5 * dy);
      context.lineTo(x + 13 * dx, y + 13 * dy);
    }
    context.stroke();
  }

  #ring(context, city, radius) {
    context.beginPath();
    context.arc(this.view.screenX(city.x), this.view.screenY(city.y), radius, 0, 2 * Math.PI);
    context.stroke();
  }

  #nearest(x, y, reach) {
    let [best, least] = [null, reach * reach];
    for (const city of this.#cities.all) {
      if (!this.#shown(city)) continue;
      const [dx, dy] = [this.view.screenX(city.x) - x, this.view.screenY(city.y) - y];
      const distance = dx * dx + dy * dy;
      if (distance < least) [best, least] = [city, distance];
    }
    return best;
  }

  #tap(x, y, coarse) {
    const city = this.#nearest(x, y, coarse ? REACH_PX.touch : REACH_PX.mouse);
    if (city) this.#on.select(city);
  }

  #hover(city) {
    if (city === this.#hovered) return;
    this.#hovered = city;
    this.#overlayIsOld = true;
    this.#on.hover(city, city ? this.view.screenX(city.x) : 0, city ? this.view.screenY(city.y) : 0);
  }
}
