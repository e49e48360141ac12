// The stage that repaints: a picture, the mask over it, edges to extend, and the comparison of before and after.
import { element, picture } from "./server.js";
import { read } from "./settings.js";
import { Mask } from "./mask.js";

const $ = (selector) => document.querySelector(selector);
const canvas = $("#canvas");
const context = canvas.getContext("2d");
const fields = $("#repainting").elements;
const STEP = 8; // px of an edge
const GROWTH = 4; // px
let file = null; // the picture as it was opened: its own bytes are sent
let bitmap = null;
let mask = null;
let zoom = 1;
let erasing = false;
let cross = null; // where the keyboard paints
let result = null;

const edges = () => Object.fromEntries(["left", "right", "top", "bottom"].map((side) => [side, Math.max(0, Number(fields[side].value) || 0)]));
const extends_ = () => Object.values(edges()).some(Boolean);

export async function open(blob) {
  bitmap = await createImageBitmap(blob); // refuses what is no picture, before anything is changed
  file = blob;
  mask = new Mask(bitmap.width, bitmap.height);
  for (const side of ["left", "right", "top", "bottom"]) fields[side].value = 0;
  $("#no-picture").hidden = true;
  $("#sheet").hidden = false;
  $("#comparison").hidden = true;
  zoom = Math.min(8, Math.max(160, Math.min($("#table").clientWidth - 100, 512)) / bitmap.width);
  $("#brush").max = Math.max(bitmap.width, bitmap.height);
  brush(Math.max(2, Math.round(bitmap.width / 10)));
  paint();
}

// Draws picture, mask and the area that is added.
function paint(shown = bitmap) {
  if (!bitmap) return;
  const { left, right, top, bottom } = edges();
  canvas.width = bitmap.width + left + right;
  canvas.height = bitmap.height + top + bottom;
  canvas.style.width = `${canvas.width * zoom}px`;
  canvas.style.height = `${canvas.height * zoom}px`;
  context.fillStyle = "#b08968";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(shown, left, top, bitmap.width, bitmap.height);
  if (!extends_()) {
    const tint = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    tint.drawImage(mask.canvas, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = "#ff3b6b";
    tint.fillRect(0, 0, bitmap.width, bitmap.height);
    context.globalAlpha = 0.55;
    context.drawImage(tint.canvas, 0, 0);
    context.globalAlpha = 1;
  }
  if (cross && document.activeElement === canvas) {
    context.strokeStyle = "#ffffff";
    context.lineWidth = Math.max(1, 1 / zoom);
    context.beginPath();
    context.arc(cross.x, cross.y, brush() / 2, 0, 7);
    context.stroke();
  }
  $("#undo").disabled = !mask.done.length;
  $("#redo").disabled = !mask.undone.length;
  $("#go").textContent = extends_() ? "Extend" : "Repaint";
}

function brush(size) {
  const input = $("#brush");
  if (size !== undefined) input.value = size;
  $("#brush-value").value = input.value;
  return Number(input.value);
}

// Sends picture and mask, and shows what came back.
export async function run(draw) {
  if (!file) throw new Error("open a picture first");
  const task = extends_() ? "outpaint" : "inpaint";
  if (task === "inpaint" && mask.empty) throw new Error("paint over what is to be new, or drag an edge");
  const own = { image: await base64(file), masked_content: fields.masked_content.value, strength: Number(fields.strength.value), feather: Number(fields.feather.value) };
  const more = task === "outpaint" ? edges() : { mask: await base64(await mask.png()) };
  const done = await draw({ ...read(task), ...own, ...more });
  if (!done) return;
  const one = done.pictures[0];
  result = await picture(one.url);
  $("#before").src = await before();
  $("#after").src = URL.createObjectURL(result);
  $("#comparison").hidden = false;
  slide(100);
  const count = one.changed_outside;
  $("#outside").textContent = `${count} pixels changed outside the ${task === "inpaint" ? "mask" : "new part"} (checked), seed ${one.seed}`;
  $("#outside").className = count === 0 ? "good" : "bad";
  $("#comparison").scrollIntoView({ block: "nearest" });
}

// The old picture at the size of the new one.
async function before() {
  const { left, right, top, bottom } = edges();
  const sheet = new OffscreenCanvas(bitmap.width + left + right, bitmap.height + top + bottom);
  sheet.getContext("2d").drawImage(bitmap, left, top);
  return URL.createObjectURL(await sheet.convertToBlob());
}

function slide(share) {
  $("#slider").value = share;
  $("#after").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
}

async function base64(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.readAsDataURL(blob);
  });
}

// Pixel of the picture under the pointer; beyond the edge it is outside the picture, and the stroke goes on.
function place(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / zoom, y: (event.clientY - box.top) / zoom };
}

let from = null; // end of the stroke so far
const table = $("#table");
table.addEventListener("pointerdown", (event) => {
  if (!bitmap || event.button || event.target.classList.contains("edge") || extends_()) return;
  if (event.target !== canvas && event.target !== table && event.target !== $("#sheet")) return;
  table.setPointerCapture(event.pointerId); // moves outside the window still belong to the stroke
  canvas.focus({ preventScroll: true });
  mask.keep();
  from = place(event);
  mask.line(from, from, brush(), erasing);
  paint();
});
table.addEventListener("pointermove", (event) => {
  if (!from) return;
  for (const part of event.getCoalescedEvents?.() || [event]) { // every point since the last frame
    const to = place(part);
    mask.line(from, to, brush(), erasing);
    from = to;
  }
  paint();
});
for (const end of ["pointerup", "pointercancel"]) table.addEventListener(end, () => { from = null; });
table.addEventListener("wheel", (event) => {
  if (!bitmap) return;
  event.preventDefault();
  const factor = event.deltaY < 0 ? 1.1 : 1 / 1.1;
  if (event.ctrlKey) zoomBy(factor);
  else brush(Math.max(1, Math.round(brush() * factor + (factor > 1 ? 0.5 : -0.5))));
}, { passive: false });

function zoomBy(factor) {
  zoom = Math.min(32, Math.max(0.05, zoom * factor));
  paint();
}

for (const handle of document.querySelectorAll(".edge")) {
  const side = handle.classList[1];
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    const [start, old] = [{ x: event.clientX, y: event.clientY }, Number(fields[side].value)];
    const move = (now) => {
      const way = { left: start.x - now.clientX, right: now.clientX - start.x, top: start.y - now.clientY, bottom: now.clientY - start.y }[side];
      fields[side].value = Math.max(0, Math.round((old + way / zoom) / STEP) * STEP);
      paint();
    };
    handle.addEventListener("pointermove", move);
    handle.addEventListener("pointerup", () => handle.removeEventListener("pointermove", move), { once: true });
  });
}

const actions = {
  undo: () => mask.undo(),
  redo: () => mask.redo(),
  invert: () => mask.invert(),
  grow: () => mask.grow(GROWTH),
  clear: () => mask.clear(),
  "zoom-in": () => zoomBy(1.25),
  "zoom-out": () => zoomBy(0.8),
};
function act(name) {
  if (!bitmap) return;
  actions[name]();
  paint();
}
for (const name of Object.keys(actions)) $(`#${name}`).addEventListener("click", () => act(name));
function erase(on) {
  erasing = on;
  $("#erase").setAttribute("aria-pressed", on);
}
$("#erase").addEventListener("click", () => erase(!erasing));
$("#brush").addEventListener("input", () => brush());
$("#repainting").addEventListener("input", () => {
  $("#strength-value").value = fields.strength.value;
  paint();
});
$("#slider").addEventListener("input", (event) => slide(event.target.value));
$("#save-mask").addEventListener("click", async () => { if (mask) save(await mask.png(), "mask.png"); });
$("#load-mask").addEventListener("change", async (event) => {
  const line = $("#fault");
  line.hidden = true;
  try {
    if (mask && event.target.files[0]) await mask.load(event.target.files[0]);
    paint();
  } catch (error) {
    line.textContent = error.message;
    line.hidden = false;
  }
});
$("#save-result").addEventListener("click", () => save(result, "repainted.png"));
$("#continue").addEventListener("click", () => open(result));

function save(blob, name) {
  element("a", { href: URL.createObjectURL(blob), download: name }).click();
}

canvas.addEventListener("keydown", (event) => {
  if (!bitmap) return;
  cross ??= { x: bitmap.width / 2, y: bitmap.height / 2 };
  const far = event.shiftKey ? brush() : Math.max(1, brush() / 4);
  const way = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key];
  if (way) cross = { x: cross.x + way[0], y: cross.y + way[1] };
  else if (event.key === " ") { mask.keep(); mask.line(cross, cross, brush(), erasing); }
  else if (event.key === "[") brush(brush() - 1);
  else if (event.key === "]") brush(brush() + 1);
  else if (event.key.toLowerCase() === "e") erase(!erasing);
  else if (event.key.toLowerCase() === "i") mask.invert();
  else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") event.shiftKey ? mask.redo() : mask.undo();
  else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "y") mask.redo();
  else return;
  event.preventDefault();
  paint();
});
canvas.addEventListener("focus", () => paint());
canvas.addEventListener("blur", () => paint());
