// The loss of a run as lines over its updates: of training, and of held-out pictures in four bands of noise.
import { element } from "./server.js";

const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [260, 52, 12, 10, 24]; // px
const NAMES = ["training", "held out, least noise", "held out, little noise", "held out, much noise", "held out, most noise"];

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Lines of [update, loss]: the first of training, the others of the bands that are there.
function linesOf(points) {
  const lines = NAMES.map(() => []);
  for (const { step, loss, bands } of points) {
    if (Number.isFinite(loss)) lines[0].push([step, loss]);
    (bands || []).forEach((value, k) => lines[k + 1].push([step, value]));
  }
  return lines;
}

const short = (value) => Number(value.toPrecision(3)).toString();

// Draws the chart into `place`; the losses are on a logarithmic scale.
export function draw(place, points, steps) {
  const lines = linesOf(points);
  const losses = lines.flat().map(([, loss]) => loss).filter((loss) => loss > 0);
  if (!losses.length) {
    place.replaceChildren(element("p", { class: "hint", text: "The first figures come after the first updates." }));
    return;
  }
  let [low, high] = [Math.min(...losses), Math.max(...losses)];
  if (high < low * 1.2) [low, high] = [low / 1.1, high * 1.1];
  const width = Math.min(Math.max(place.clientWidth, 240), 700);
  const x = (step) => LEFT + (step / Math.max(steps, 1)) * (width - LEFT - RIGHT);
  const y = (loss) => TOP + ((Math.log(high) - Math.log(loss)) / (Math.log(high) - Math.log(low))) * (HEIGHT - TOP - BOTTOM);
  const marks = [0, 1, 2, 3].map((k) => high * (low / high) ** (k / 3));
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": described(lines) },
    ...marks.map((loss) => svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss) })),
    ...marks.map((loss) => svg("text", { x: LEFT - 6, y: y(loss) + 4, "text-anchor": "end" }, short(loss))),
    ...[0, steps / 2, steps].map((step, k) =>
      svg("text", { x: x(step), y: HEIGHT - 6, "text-anchor": ["start", "middle", "end"][k] }, Math.round(step))),
    ...lines.flatMap((line, k) => mark(line.filter(([, loss]) => loss > 0), k, x, y)));
  const key = lines.map((line, k) => line.length && element("li", {},
    svg("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" }, svg("line", { class: `line c${k}`, x1: 0, x2: 32, y1: 5, y2: 5 })),
    `${NAMES[k]} ${short(line.at(-1)[1])}`));
  place.replaceChildren(drawn, element("ul", { class: "key" }, ...key.filter(Boolean)));
}

function mark(line, k, x, y) {
  if (!line.length) return [];
  const places = line.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
  const [cx, cy] = places.at(-1).split(",");
  return [svg("polyline", { class: `line c${k}`, points: places.join(" ") }), svg("circle", { class: `c${k}`, cx, cy, r: 3, fill: "none" })];
}

function described(lines) {
  const parts = lines.map((line, k) => line.length && `${NAMES[k]} ${short(line[0][1])} to ${short(line.at(-1)[1])}`);
  return `Loss over the updates: ${parts.filter(Boolean).join("; ")}`;
}
