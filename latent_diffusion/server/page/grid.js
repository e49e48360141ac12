// A grid over the values of two options: one picture each, put together with labels.
import { element, picture } from "./server.js";
import { gridOptions, parse, read } from "./settings.js";

const $ = (selector) => document.querySelector(selector);
const LABEL = 22; // px
const MOST = 100; // pictures
let stopped = false;

export function open() {
  for (const [id, first] of [["#x-option", "guidance_scale"], ["#y-option", "num_inference_steps"]]) {
    $(id).replaceChildren(...gridOptions().map((name) => element("option", { value: name, text: name.replaceAll("_", " ") })));
    $(id).value = first;
  }
}

export function stop() {
  stopped = true;
}

function valuesOf(axis) {
  const name = $(`#${axis}-option`).value;
  const text = $(`#${axis}-values`).value;
  const parts = text.split(text.includes(";") ? ";" : ",").map((part) => part.trim()).filter(Boolean);
  if (!parts.length) throw new Error(`no values for ${name}`);
  return { name, values: parts.map((part) => ({ text: part, value: parse(name, part) })) };
}

// Draws every pair, row by row; what is there when it is stopped stays.
export async function run(draw) {
  stopped = false;
  const x = valuesOf("x");
  const y = valuesOf("y");
  if (x.name === y.name) throw new Error("choose two different options");
  if (x.values.length * y.values.length > MOST) throw new Error(`${x.values.length * y.values.length} pictures; at most ${MOST}`);
  const fields = { ...read("text_to_image"), num_images: 1 };
  fields.seed ??= Math.floor(Math.random() * 2 ** 32); // one for all, so that only the two options differ
  let sheet = null;
  for (const [row, down] of y.values.entries()) {
    for (const [column, across] of x.values.entries()) {
      if (stopped) return;
      const done = await draw({ ...fields, [x.name]: across.value, [y.name]: down.value });
      if (!done) return;
      const bitmap = await createImageBitmap(await picture(done.pictures[0].url));
      sheet ??= begin(bitmap, x, y);
      sheet.context.drawImage(bitmap, sheet.left + column * sheet.width, LABEL + row * sheet.height, sheet.width, sheet.height);
    }
  }
}

// Makes the sheet with its labels, in cells of the first picture's size, or larger where that is small.
function begin(bitmap, x, y) {
  const canvas = $("#sheet-of-grid");
  const scale = Math.max(1, Math.floor(192 / bitmap.width));
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  const context = canvas.getContext("2d");
  context.font = "13px system-ui, sans-serif";
  const rows = y.values.map(({ text }) => `${y.name.replaceAll("_", " ")} ${text}`);
  const left = 12 + Math.max(...rows.map((text) => context.measureText(text).width));
  canvas.width = left + width * x.values.length;
  canvas.height = LABEL + height * y.values.length;
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#1f1d1a";
  context.font = "13px system-ui, sans-serif"; // a canvas forgets it when its size changes
  context.imageSmoothingEnabled = false;
  x.values.forEach(({ text }, k) => context.fillText(`${x.name.replaceAll("_", " ")} ${text}`, left + k * width + 4, 15, width - 8));
  rows.forEach((text, k) => context.fillText(text, 4, LABEL + k * height + height / 2));
  canvas.hidden = $("#save-grid").hidden = false;
  return { context, left, width, height };
}

$("#save-grid").addEventListener("click", () => {
  $("#sheet-of-grid").toBlob((blob) => element("a", { href: URL.createObjectURL(blob), download: "grid.png" }).click());
});
