// Tabs, the button that starts and the one that stops, dropped pictures, and what the stages share.
import { call, element, follow, picture } from "./server.js";
import * as settings from "./settings.js";
import * as repaint from "./repaint.js";
import * as grid from "./grid.js";
import * as train from "./train.js";
import { remember, show as showHistory } from "./history.js";

const $ = (selector) => document.querySelector(selector);
const tabs = [...document.querySelectorAll("[role=tab]")];
const LABELS = { draw: "Draw", repaint: "Repaint", grid: "Draw the grid" };
let stage = "draw";
let job = null; // the one that is being drawn
let last = null; // what "same again" and "vary" start from

export function choose(name) {
  stage = name;
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(`#stage-${tab.id.slice(4)}`).hidden = !chosen;
  }
  $("#bar").hidden = name === "history" || name === "train";
  $("#settings").hidden = name === "train";
  $("main").classList.toggle("training", name === "train");
  $("#fault").hidden = true;
  $("#go").textContent = LABELS[name] || "";
  if (name === "history") showHistory(useAgain).catch(fault);
  if (name === "train") train.open(fault).catch(fault);
}

function fault(error) {
  $("#fault").textContent = error.message;
  $("#fault").hidden = false;
}

// Shows that something is being drawn, how far it is and how long it takes.
function progress(state) {
  $("#progress").value = state.progress;
  const left = state.seconds_left === null ? "" : `, ${state.seconds_left < 10 ? state.seconds_left.toFixed(1) : Math.round(state.seconds_left)} s left`;
  $("#state").textContent = state.status === "waiting" ? `place ${state.place} in the queue` : `step ${state.step} of ${state.steps}${left}`;
  if (state.preview) {
    $("#preview").src = state.preview;
    $("#preview").hidden = false;
  }
}

function busy(on) {
  $("#go").disabled = on;
  for (const id of ["#stop", "#progress"]) $(id).hidden = !on;
  if (!on) $("#preview").hidden = true;
}

// Draws one request: returns the finished job, or null if it was stopped before a picture was there.
export async function draw(fields) {
  const begun = await (await call("/jobs", { json: fields })).json();
  job = begun.id;
  let state = begun;
  await follow(job, (now) => progress((state = now)));
  job = null;
  if (state.status === "failed") throw new Error(state.error);
  $("#notes").replaceChildren(...state.notes.map((text) => element("li", { text })));
  $("#notes").hidden = !state.notes.length;
  $("#state").textContent = state.status === "cancelled" ? "stopped" : `done, ${state.step} steps`;
  for (const one of state.pictures) remember(one);
  return state.status === "done" ? state : null;
}

async function start() {
  if ($("#go").disabled || $("#bar").hidden) return;
  $("#fault").hidden = true;
  busy(true);
  try {
    if (stage === "repaint") await repaint.run(draw);
    else if (stage === "grid") await grid.run(draw);
    else {
      const fields = settings.read(Number(settings.value("scale")) > 1 ? "hires" : "text_to_image");
      const done = await draw(fields);
      if (done) await showResults(done, fields);
    }
  } catch (error) {
    fault(error);
    $("#state").textContent = "";
  } finally {
    busy(false);
    job = null;
  }
}

// Stops after the present step; what is there then is kept.
async function stop() {
  grid.stop();
  if (job) await call(`/jobs/${job}/stop`, { method: "POST" });
}

async function showResults(done, fields) {
  last = { ...fields, seed: done.pictures[0].seed };
  for (const id of ["#same-again", "#vary"]) $(id).disabled = false;
  const figures = await Promise.all(done.pictures.map((one) => figure(one, fields)));
  $("#results").replaceChildren(...figures);
}

async function figure(one, fields) {
  const blob = await picture(one.url);
  const url = URL.createObjectURL(blob);
  const name = one.file || `${one.seed}.png`;
  return element("figure", {},
    element("img", { src: url, alt: fields.prompt, class: "pixels", width: one.width, height: one.height }),
    element("figcaption", {},
      element("span", { text: `seed ${one.seed}, ${one.width}×${one.height}` }),
      element("a", { href: url, download: name, text: "Save" }),
      element("button", { type: "button", text: "Repaint", click: () => { choose("repaint"); repaint.open(blob).catch(fault); } })));
}

async function useAgain(blob) {
  await settings.fillFrom(blob);
  choose("draw");
}

// Draws with what was trained: its model and its LoRA are put into the settings.
async function drawWith({ model, lora }) {
  await settings.refresh();
  if (model) settings.set("model", model);
  if (lora) settings.addLora(lora, 1);
  choose("draw");
  $("#settings").elements.prompt.focus();
}
train.connect(drawWith);

$("#go").addEventListener("click", start);
$("#stop").addEventListener("click", () => stop().catch(fault));
$("#same-again").addEventListener("click", () => settings.set("seed", last.seed));
$("#vary").addEventListener("click", () => {
  settings.set("seed", last.seed);
  settings.set("variation_strength", settings.value("variation_strength") || 0.2);
  settings.set("variation_seed", Math.floor(Math.random() * 2 ** 32));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
  if (event.key === "Escape" && job) stop().catch(fault);
});
$("#settings").addEventListener("submit", (event) => event.preventDefault());
$("#repainting").addEventListener("submit", (event) => event.preventDefault());

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab.id.slice(4)));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    choose(next.id.slice(4));
    next.focus();
  });
}

// A dropped picture fills in the settings, or is repainted where that stage is open.
function take(file) {
  $("#fault").hidden = true;
  const work = stage === "repaint" ? repaint.open(file) : settings.fillFrom(file);
  work.catch(fault);
}
addEventListener("dragover", (event) => { event.preventDefault(); $("#drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("#drop").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("#drop").hidden = true;
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
$("#open").addEventListener("change", (event) => { if (event.target.files[0]) settings.fillFrom(event.target.files[0]).catch(fault); });
$("#picture").addEventListener("change", (event) => { if (event.target.files[0]) repaint.open(event.target.files[0]).catch(fault); });

settings.open().then(() => {
  grid.open();
  $("#settings").elements.prompt.dispatchEvent(new Event("input"));
}).catch(fault);
