// The mask: a canvas of the picture's size whose opaque pixels are repainted, with undo and redo.

const MOST = 40; // states that can be undone
const HALF = 128; // opacity from which a pixel belongs to the mask, as on the server

export class Mask {
  constructor(width, height) {
    this.canvas = new OffscreenCanvas(width, height);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.undone = [];
    this.done = [];
  }

  get pixels() {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  // Keeps the present state, before it is changed.
  keep() {
    this.done.push(this.pixels);
    if (this.done.length > MOST) this.done.shift();
    this.undone = [];
  }

  undo() {
    this.#exchange(this.done, this.undone);
  }

  redo() {
    this.#exchange(this.undone, this.done);
  }

  #exchange(from, to) {
    if (!from.length) return;
    to.push(this.pixels);
    this.context.putImageData(from.pop(), 0, 0);
  }

  // Paints a line between two points, which may lie outside; the canvas cuts off what is beyond it.
  line(from, to, width, erase) {
    const context = this.context;
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.strokeStyle = "#000";
    context.lineWidth = width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y); // a line of no length is not painted
    context.stroke();
  }

  #change(opacity) {
    this.keep();
    const image = this.pixels;
    const old = Uint8Array.from({ length: image.data.length / 4 }, (_, k) => image.data[4 * k + 3]);
    const now = opacity(old, image.width, image.height);
    for (let k = 0; k < now.length; k++) image.data[4 * k + 3] = now[k];
    this.context.putImageData(image, 0, 0);
  }

  invert() {
    this.#change((old) => old.map((value) => 255 - value));
  }

  clear() {
    this.#change((old) => old.map(() => 0));
  }

  // Gives every pixel the largest opacity within `distance` px, first along rows and then along columns.
  grow(distance) {
    this.#change((old, width, height) => {
      const along = (values, step, count, lines, lineStep) => {
        const out = new Uint8Array(values.length);
        for (let line = 0; line < lines; line++) {
          for (let k = 0; k < count; k++) {
            let most = 0;
            for (let j = Math.max(0, k - distance); j <= Math.min(count - 1, k + distance); j++) {
              most = Math.max(most, values[line * lineStep + j * step]);
            }
            out[line * lineStep + k * step] = most;
          }
        }
        return out;
      };
      return along(along(old, 1, width, height, width), width, height, width, 1);
    });
  }

  // Takes over a black and white picture, white is the mask.
  async load(file) {
    const bitmap = await createImageBitmap(file);
    if (bitmap.width !== this.canvas.width || bitmap.height !== this.canvas.height) {
      throw new Error(`the mask has ${bitmap.width}×${bitmap.height} px, the picture ${this.canvas.width}×${this.canvas.height} px`);
    }
    this.keep();
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const image = context.getImageData(0, 0, bitmap.width, bitmap.height);
    for (let k = 0; k < image.data.length; k += 4) {
      image.data[k + 3] = image.data[k];
      image.data[k] = image.data[k + 1] = image.data[k + 2] = 0;
    }
    this.context.putImageData(image, 0, 0);
  }

  get empty() {
    const data = this.pixels.data;
    for (let k = 3; k < data.length; k += 4) if (data[k] >= HALF) return false;
    return true;
  }

  // The mask as a PNG, white where it is repainted.
  async png() {
    const image = this.pixels;
    for (let k = 0; k < image.data.length; k += 4) {
      image.data[k] = image.data[k + 1] = image.data[k + 2] = image.data[k + 3] >= HALF ? 255 : 0;
      image.data[k + 3] = 255;
    }
    const canvas = new OffscreenCanvas(image.width, image.height);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }
}
