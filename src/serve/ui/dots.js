// Very many small pictures on a background, written as pixels: 15,000 calls of `drawImage` take several frames, this a part of one.

/** A small picture as runs of one opaque colour, and single pixels that are mixed with what is below. */
export class Sprite {
  /** `half` is where the middle is. */
  constructor(canvas, half) {
    const { width, height } = canvas;
    const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
    const colours = new Uint32Array(data.buffer);
    this.half = half;
    this.runs = [];
    this.edges = [];
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const i = y * width + x;
        const alpha = data[4 * i + 3];
        if (alpha === 0) continue;
        if (alpha < 255) {
          this.edges.push({ x: x - half, y: y - half, red: data[4 * i], green: data[4 * i + 1], blue: data[4 * i + 2], alpha });
          continue;
        }
        let length = 1;
        while (x + length < width && colours[i + length] === colours[i]) length += 1;
        this.runs.push({ x: x - half, y: y - half, length, colour: colours[i] });
        x += length - 1;
      }
    }
  }
}

/** Room around the visible pixels, so that a picture at the border needs no clipping. */
const PAD = 24;

export class DotLayer {
  #width = 0;
  #height = 0;
  #background = new Uint32Array(0);
  #image = null;
  #pixels = this.#background;

  /** Takes the background from a canvas, which is opaque. */
  setBackground(context) {
    const { width, height } = context.canvas;
    this.#width = width + 2 * PAD;
    this.#height = height + 2 * PAD;
    const { data } = context.getImageData(-PAD, -PAD, this.#width, this.#height);
    this.#background = new Uint32Array(data.buffer);
    if (this.#image?.width !== this.#width || this.#image.height !== this.#height) {
      this.#image = new ImageData(this.#width, this.#height);
      this.#pixels = new Uint32Array(this.#image.data.buffer);
    }
  }

  clear() {
    this.#pixels.set(this.#background);
  }

  /** Draws a sprite at each of `places`, which are x and y by turns, in pixels; none is further out than its half. */
  draw(sprite, places) {
    const width = this.#width;
    const pixels = this.#pixels;
    const bytes = this.#image.data;
    const runs = sprite.runs.map(({ x, y, length, colour }) => ({ offset: y * width + x, length, colour }));
    const edges = sprite.edges.map(({ x, y, ...colour }) => ({ offset: y * width + x, ...colour }));
    for (let i = 0; i < places.length; i += 2) {
      const at = (Math.round(places[i + 1]) + PAD) * width + Math.round(places[i]) + PAD;
      for (const { offset, length, colour } of runs) {
        const start = at + offset;
        for (let j = start; j < start + length; j += 1) pixels[j] = colour;
      }
      for (const { offset, red, green, blue, alpha } of edges) {
        const j = 4 * (at + offset);
        bytes[j] += ((red - bytes[j]) * alpha) / 255;
        bytes[j + 1] += ((green - bytes[j + 1]) * alpha) / 255;
        bytes[j + 2] += ((blue - bytes[j + 2]) * alpha) / 255;
      }
    }
  }

  put(context) {
    context.putImageData(this.#image, -PAD, -PAD);
  }
}
