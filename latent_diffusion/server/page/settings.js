// The settings form: what the server offers, filling it in, and reading it as the fields of a request.
import { call, element } from "./server.js";

const form = document.querySelector("#settings");
// Fields of a request that have a place of their own on the page, or that a stage sets.
const OWN = ["task", "prompt", "negative_prompt", "model", "num_images", "seed", "image", "mask", "width", "height",
  "num_inference_steps", "guidance_scale", "sampler", "spacing", "strength", "masked_content", "feather", "left", "right", "top",
  "bottom", "mask_channel"];
let schema = {};
export let about = {};

function options(select, names, first) {
  const kept = select.value;
  select.replaceChildren(...(first === undefined ? [] : [element("option", { value: "", text: first })]),
    ...names.map((name) => element("option", { value: name, text: name })));
  if ([...select.options].some((option) => option.value === kept)) select.value = kept;
}

// Reads what can be chosen, and makes a field for every option that has none on the page.
export async function open() {
  about = await (await call("/about")).json();
  const api = await (await call("/openapi.json")).json();
  schema = api.components.schemas.DrawFields.properties;
  showOffers();
  options(form.elements.sampler, about.samplers, `the model's: ${about.defaults.sampler}`);
  options(form.elements.spacing, about.spacings, `the model's: ${about.defaults.spacing}`);
  form.elements.num_images.max = about.limits.images;
  form.elements.seed.max = about.limits.seed;
  const more = Object.keys(schema).filter((name) => !OWN.includes(name));
  document.querySelector("#more").replaceChildren(...more.map(moreField));
}

// Reads again which models and adapters there are.
export async function refresh() {
  about = await (await call("/about")).json();
  showOffers();
}

function showOffers() {
  options(document.querySelector("#lora"), about.loras);
  document.querySelector("#loras").hidden = !about.loras.length;
  options(form.elements.model, about.models);
  form.elements.model.value = about.model;
  for (const name of ["width", "height", "num_inference_steps", "guidance_scale"]) {
    form.elements[name].placeholder = about.defaults[name];
  }
}

// The type of a field: "boolean", "integer", "number", "list" or "text", and its names where it has some.
function kindOf(name) {
  const parts = (schema[name].anyOf || [schema[name]]).filter((part) => part.type !== "null");
  const names = parts.find((part) => part.enum)?.enum;
  if (names) return { kind: "name", names };
  const list = parts.find((part) => part.type === "array");
  if (list && parts.length > 1) return { kind: "texts" };
  return { kind: list ? "list" : parts[0].type === "string" ? "text" : parts[0].type };
}

function moreField(name) {
  const { kind, names } = kindOf(name);
  const title = schema[name].description;
  let field;
  if (kind === "name" || kind === "boolean") {
    field = element("select", { name });
    options(field, names || ["true", "false"], "default");
  } else {
    const number = kind === "integer" || kind === "number";
    field = element("input", { name, type: number ? "number" : "text", step: kind === "integer" ? 1 : "any", placeholder: "default" });
  }
  return element("label", { title }, name.replaceAll("_", " "), field);
}

// The value of a field as the server reads it; undefined where it is left at its default.
export function parse(name, text) {
  const { kind } = kindOf(name);
  if (text === "") return undefined;
  if (kind === "boolean") return text === "true";
  if (kind === "integer" || kind === "number") return Number(text);
  if (kind === "list") return text.split(",").map(Number);
  if (kind === "texts") return text.split(";").map((part) => part.trim()).filter(Boolean);
  return text;
}

// The fields of a request for a task; options that the task does not have are left out.
export function read(task) {
  const fields = { task };
  const general = ["prompt", "negative_prompt", "model", "num_images", "seed"];
  for (const input of form.elements) {
    const value = input.name && schema[input.name] ? parse(input.name, input.value) : undefined;
    if (value === undefined) continue;
    if (general.includes(input.name) || input.name === "variation_seed" || about.tasks[task].includes(input.name)) {
      fields[input.name] = value;
    }
  }
  if (!fields.variation_strength) delete fields.variation_seed;
  return fields;
}

// Fills in the fields of a request; the others are set to their defaults.
export function fill(fields) {
  for (const input of form.elements) {
    if (!input.name || !schema[input.name] || input.name === "model") continue;
    const value = fields[input.name];
    if (input.name === "num_images") continue;
    const text = value === undefined || value === null ? "" : Array.isArray(value) ? value.join(kindOf(input.name).kind === "list" ? "," : ";") : String(value);
    if (input.tagName === "SELECT" && text && ![...input.options].some((option) => option.value === text)) {
      input.append(element("option", { value: text, text }));
    }
    input.value = text;
  }
  form.elements.prompt.dispatchEvent(new Event("input", { bubbles: true }));
}

export function set(name, value) {
  form.elements[name].value = value;
}

// Fills in the settings from the text inside a picture, and lists what has no field.
export async function fillFrom(file) {
  const found = await (await call("/parameters", { method: "POST", body: file })).json();
  fill(found.fields);
  if (about.models.includes(found.model)) form.elements.model.value = found.model;
  const list = document.querySelector("#left-out");
  const lines = [...found.left_out];
  if (found.model && !about.models.includes(found.model)) lines.push(`model ${found.model} is not here`);
  list.replaceChildren(...lines.map((text) => element("li", { text })));
  list.hidden = !lines.length;
  return found.fields;
}

// Names and kinds of the options that a grid can go through.
export function gridOptions() {
  return about.tasks.text_to_image.filter((name) => schema[name]).concat("seed", "prompt");
}

// Counts the tokens of the prompt a moment after the last key.
let waiting;
async function countTokens() {
  const found = await (await call("/tokens", { json: { prompt: form.elements.prompt.value } })).json();
  const chunks = found.chunks > 1 ? `, ${found.chunks} chunks` : "";
  document.querySelector("#tokens").textContent = `${found.tokens} of ${found.room * Math.max(found.chunks, 1)} tokens${chunks}`;
  const line = document.querySelector("#read-as");
  line.hidden = !found.read_as;
  line.textContent = `Read as: ${found.read_as}`;
}
form.elements.prompt.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => countTokens().catch(() => {}), 300);
});

document.querySelector("#lora-weight").addEventListener("input", (event) => {
  document.querySelector("#lora-value").value = event.target.value;
});
// Puts an adapter into the prompt, in place of an earlier weight of it.
export function addLora(name, weight) {
  const tag = new RegExp(`\\s*<lora:${name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}:[^>]*>`);
  const prompt = form.elements.prompt;
  prompt.value = `${prompt.value.replace(tag, "")} <lora:${name}:${weight}>`;
  prompt.dispatchEvent(new Event("input"));
}
document.querySelector("#add-lora").addEventListener("click", () => {
  addLora(document.querySelector("#lora").value, document.querySelector("#lora-weight").value);
});
document.querySelector("#new-seed").addEventListener("click", () => {
  set("seed", "");
  for (const name of ["variation_seed", "variation_strength"]) if (form.elements[name]) set(name, "");
});

export function value(name) {
  return form.elements[name]?.value || "";
}
