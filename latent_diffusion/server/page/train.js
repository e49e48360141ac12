// The Train tab: the form, the examination of the data, and the chosen run as its process goes on.
import { call, element, events, picture } from "./server.js";
import { draw as drawChart } from "./chart.js";
import { about } from "./settings.js";

const $ = (selector) => document.querySelector(selector);
const form = $("#train-form");
const NUMBERS = ["steps", "batch_size", "learning_rate", "size", "held_out", "seed"];
const WORDS = {
  starting: "is starting", training: "is training", stopping: "saves and ends", finished: "is finished", interrupted: "was stopped",
  diverged: "diverged", failed: "failed", killed: "was killed", unreadable: "cannot be read",
};
let offers = null;
let shown = null; // name of the run that is followed
let stream = 0; // counts the streams of events; an older one ends
let looking; // timer of the next look at the examination
let points = [];
let fault = () => {};
let report = ""; // of the last examination
const pictures = new Map(); // of samples, by path

function fill(select, names, texts = names) {
  const kept = select.value;
  select.replaceChildren(...names.map((value, k) => element("option", { value, text: texts[k] })));
  if (names.includes(kept)) select.value = kept;
}

// Opens the tab: reads what can be trained on, and follows the newest run.
export async function open(onFault) {
  fault = onFault;
  offers = await (await call("/training")).json();
  $("#no-training").hidden = offers.available;
  $("#no-training").textContent = offers.why || "";
  for (const id of ["#train-form", "#training"]) $(id).hidden = !offers.available;
  if (!offers.available) return;
  const names = offers.sources.map(({ name }) => name);
  fill(form.elements.data, names, offers.sources.map(({ name, pictures: count }) => (count === null ? name : `${name} (${count})`)));
  if (!names.length) fill(form.elements.data, [""], ["no pictures in the folder"]);
  fill(form.elements.recipe, Object.keys(offers.recipes));
  fill(form.elements.model, about.models);
  showRecipe();
  listRuns();
  if (offers.runs.some(({ name }) => name === form.elements.name.value)) form.elements.name.value = freeName();
  if (offers.runs.length) await choose(shown || offers.runs[0].name);
  await showExamination();
}

function freeName() {
  const taken = new Set(offers.runs.map(({ name }) => name));
  let k = taken.size + 1;
  while (taken.has(`run-${k}`)) k += 1;
  return `run-${k}`;
}

function listRuns() {
  fill($("#run"), offers.runs.map(({ name }) => name), offers.runs.map(({ name, state, step, steps }) => `${name}: ${state}, ${step} of ${steps}`));
  $("#run").disabled = !offers.runs.length;
  if (!offers.runs.length) fill($("#run"), [""], ["none yet"]);
}

function showRecipe() {
  const recipe = offers.recipes[form.elements.recipe.value];
  $("#recipe-about").textContent = recipe.about;
  for (const name of ["steps", "batch_size", "learning_rate"]) form.elements[name].placeholder = recipe[name];
  form.elements.size.placeholder = form.elements.model.value === about.model ? Math.min(about.defaults.width, about.defaults.height) : "";
  form.elements.prompts.placeholder = recipe.prompts.join("\n");
}

function fields() {
  const found = {};
  for (const name of ["name", "data", "recipe", "model", "caption"]) if (form.elements[name].value) found[name] = form.elements[name].value;
  for (const name of NUMBERS) if (form.elements[name].value !== "") found[name] = Number(form.elements[name].value);
  const prompts = form.elements.prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (prompts.length) found.prompts = prompts;
  return found;
}

// Runs something that a button starts; its error becomes the page's one line.
function act(work) {
  return async (event) => {
    event?.preventDefault();
    $("#fault").hidden = true;
    try {
      await work();
    } catch (error) {
      fault(error);
    }
  };
}

async function examine() {
  if (!form.reportValidity()) return;
  await call("/training/check", { json: fields() });
  await showExamination();
}

// Shows the examination, and looks again until it is done.
async function showExamination() {
  const found = await (await call("/training/check")).json();
  const running = found.state === "running";
  $("#examination").hidden = found.state === "none";
  $("#end-examination").hidden = !running;
  $("#examined").textContent = running ? "The pictures are decoded and a few updates are measured …" : found.error ? `It ended with an error: ${found.error}` : "Done.";
  $("#examined").className = found.error ? "bad" : "";
  $("#found").replaceChildren(...(found.report ? [] : found.lines.map((text) => element("li", { text }))));
  await showReport(found.report);
  clearTimeout(looking);
  if (running) looking = setTimeout(() => showExamination().catch(fault), 1000);
}

// Shows the body of doctor's page here; its texts are escaped, and the page's policy lets no script of it run.
async function showReport(there) {
  for (const id of ["#report", "#save-report"]) $(id).hidden = !there;
  if (!there) return;
  report = await (await call("/training/check/report")).text();
  const made = new DOMParser().parseFromString(report.replace(/<style>.*?<\/style>/s, ""), "text/html");
  made.querySelector("h1")?.remove();
  $("#report").tabIndex = 0;
  $("#report").replaceChildren(...made.body.childNodes);
}

async function begin() {
  const wanted = fields();
  await call("/training/runs", { json: wanted });
  offers = await (await call("/training")).json();
  listRuns();
  form.elements.name.value = freeName();
  await choose(wanted.name);
}

// Follows a run until its process ends.
async function choose(name) {
  shown = name;
  points = [];
  $("#run").value = name;
  $("#run-panel").hidden = true; // until the first event
  follow(name).catch(fault);
}

async function follow(name) {
  stream += 1;
  const own = stream;
  await events(`/training/runs/${encodeURIComponent(name)}/events`, (run) => {
    if (own !== stream) return false;
    points = run.anew ? run.points : points.concat(run.points);
    show(run);
    return true;
  });
  offers.runs = (await (await call("/training")).json()).runs;
  if (own === stream) listRuns();
}

function show(run) {
  $("#run-panel").hidden = false;
  const active = ["starting", "training", "stopping"].includes(run.state);
  const left = run.seconds_left === null ? "" : `, expected end ${new Date(Date.now() + run.seconds_left * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}, in ${span(run.seconds_left)}`;
  $("#run-state").textContent = `${run.name} ${WORDS[run.state]}: ${run.step} of ${run.steps} updates${left}`;
  $("#run-progress").value = run.step / Math.max(run.steps, 1);
  $("#run-fault").textContent = run.message || "";
  $("#run-fault").hidden = !run.message;
  const held = run.held_out ? `${run.held_out} pictures held out` : "no picture held out, so no loss by noise band";
  $("#run-facts").textContent = [`${run.objective} of ${run.model} on ${run.data} at ${run.size} px`, held, ...run.plan.slice(0, 1)].join("; ");
  $("#stop-run").hidden = !active;
  $("#stop-run").disabled = run.state === "stopping";
  $("#resume-run").hidden = active || run.state === "finished";
  $("#use-run").hidden = !run.result;
  $("#run-output").textContent = run.output.join("\n");
  drawChart($("#chart"), points, run.steps);
  showSamples(run).catch(fault);
}

const span = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);

// Shows the sheets of sample pictures by update, the newest last; each is fetched once.
async function showSamples(run) {
  const place = $("#samples");
  if (!run.samples.length) {
    place.replaceChildren(element("p", { class: "hint", text: "None yet." }));
    return;
  }
  const figures = await Promise.all(run.samples.map(async ({ step, url }) => {
    if (!pictures.has(url)) pictures.set(url, URL.createObjectURL(await picture(url)));
    return element("figure", {},
      element("img", { src: pictures.get(url), alt: `Sample pictures after ${step} updates` }),
      element("figcaption", { text: `after ${step} updates` }));
  }));
  if (run.name !== shown || place.children.length === figures.length && place.querySelector("img")?.src === figures[0].querySelector("img").src) return;
  place.replaceChildren(...figures);
  place.scrollLeft = place.scrollWidth;
}

const runPath = (verb) => `/training/runs/${encodeURIComponent(shown)}/${verb}`;

// Connects the buttons; `use` is called with the model and the LoRA to draw with.
export function connect(use) {
  form.addEventListener("submit", act(begin));
  form.elements.recipe.addEventListener("change", showRecipe);
  form.elements.model.addEventListener("change", showRecipe);
  $("#examine").addEventListener("click", act(examine));
  $("#end-examination").addEventListener("click", act(() => call("/training/check", { method: "DELETE" })));
  $("#save-report").addEventListener("click", () => {
    const file = new Blob([report], { type: "text/html" });
    element("a", { href: URL.createObjectURL(file), download: "report.html" }).click();
  });
  $("#run").addEventListener("change", act(() => choose($("#run").value)));
  $("#stop-run").addEventListener("click", act(() => call(runPath("stop"), { method: "POST" })));
  $("#resume-run").addEventListener("click", act(async () => {
    await call(runPath("resume"), { method: "POST" });
    await choose(shown);
  }));
  $("#use-run").addEventListener("click", act(async () => use(await (await call(runPath("use"), { method: "POST" })).json())));
}
