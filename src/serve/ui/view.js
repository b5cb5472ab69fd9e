// Which part of the world the map shows, and the gestures and keys that change it.
import { project } from './projection.js';

const [EAST] = project(180, 0);
const NORTH = project(0, 84)[1];
const SOUTH = project(0, -58)[1];
const MAX_ZOOM = 60;
const STEP = 1.6;
const TAP_PX = 6;

export class View {
  #on;
  #element;
  #pointers = new Map();
  #travelled = 0;
  width = 1;
  height = 1;
  zoom = 1;
  x = 0;
  y = (NORTH + SOUTH) / 2;

  /** `on` has `moved()`, `tapped(x, y)`, `hovered(x, y)` and `left()`, in pixels of the element. */
  constructor(element, on) {
    this.#element = element;
    this.#on = on;
    element.addEventListener('wheel', (event) => this.#wheel(event), { passive: false });
    element.addEventListener('pointerdown', (event) => this.#down(event));
    element.addEventListener('pointermove', (event) => this.#move(event));
    for (const type of ['pointerup', 'pointercancel']) element.addEventListener(type, (event) => this.#up(event));
    element.addEventListener('pointerleave', () => on.left());
    element.addEventListener('keydown', (event) => this.#key(event));
  }

  /** Pixels per unit of the plane. */
  get scale() {
    return this.zoom * Math.min(this.width / (2.02 * EAST), this.height / ((SOUTH - NORTH) * 1.03));
  }

  screenX(x) {
    return (x - this.x) * this.scale + this.width / 2;
  }

  screenY(y) {
    return (y - this.y) * this.scale + this.height / 2;
  }

  resize(width, height) {
    this.width = width;
    this.height = height;
    this.#clamp();
  }

  zoomBy(factor, px = this.width / 2, py = this.height / 2) {
    const before = this.scale;
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    const by = 1 / before - 1 / this.scale;
    this.x += (px - this.width / 2) * by;
    this.y += (py - this.height / 2) * by;
    this.#clamp();
  }

  zoomIn() {
    this.zoomBy(STEP);
  }

  zoomOut() {
    this.zoomBy(1 / STEP);
  }

  reset() {
    this.zoom = 1;
    this.y = (NORTH + SOUTH) / 2;
    this.#clamp();
  }

  /** Brings a point of the plane into sight, where it is not. */
  show(x, y) {
    const margin = 30;
    const [px, py] = [this.screenX(x), this.screenY(y)];
    if (px > margin && py > margin && px < this.width - margin && py < this.height - margin) return;
    this.x = x;
    this.y = y;
    this.#clamp();
  }

  #clamp() {
    const halfWidth = this.width / this.scale / 2;
    const halfHeight = this.height / this.scale / 2;
    const within = (value, low, high) => (low > high ? (low + high) / 2 : Math.min(high, Math.max(low, value)));
    this.x = within(this.x, -EAST * 1.01 + halfWidth, EAST * 1.01 - halfWidth);
    this.y = within(this.y, NORTH * 1.03 + halfHeight, SOUTH * 1.05 - halfHeight);
    this.#on.moved();
  }

  #place(event) {
    const box = this.#element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    const { x, y } = this.#place(event);
    this.zoomBy(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * lines)) / 300), x, y);
  }

  #down(event) {
    if (event.button !== 0) return;
    this.#element.setPointerCapture(event.pointerId);
    if (this.#pointers.size === 0) this.#travelled = 0;
    this.#pointers.set(event.pointerId, this.#place(event));
  }

  #move(event) {
    const now = this.#place(event);
    const before = this.#pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType !== 'touch') this.#on.hovered(now.x, now.y);
      return;
    }
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    this.#travelled += Math.hypot(dx, dy);
    this.#pointers.set(event.pointerId, now);
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const distance = (a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
      this.x -= dx / 2 / this.scale;
      this.y -= dy / 2 / this.scale;
      this.zoomBy(distance(now) / distance(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else if (this.#travelled > TAP_PX) {
      this.x -= dx / this.scale;
      this.y -= dy / this.scale;
      this.#clamp();
    }
  }

  #up(event) {
    const held = this.#pointers.delete(event.pointerId);
    if (!held || event.type === 'pointercancel' || this.#pointers.size > 0 || this.#travelled > TAP_PX) return;
    const { x, y } = this.#place(event);
    this.#on.tapped(x, y, event.pointerType === 'touch');
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 60 / this.scale;
    const actions = {
      ArrowLeft: () => this.#pan(-step, 0),
      ArrowRight: () => this.#pan(step, 0),
      ArrowUp: () => this.#pan(0, -step),
      ArrowDown: () => this.#pan(0, step),
      '+': () => this.zoomIn(),
      '=': () => this.zoomIn(),
      '-': () => this.zoomOut(),
      0: () => this.reset(),
      Enter: () => this.#on.tapped(this.width / 2, this.height / 2, true),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  #pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#clamp();
  }
}
