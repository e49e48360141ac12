// Lists the routes of /openapi.json: method, path, meaning, and the fields of the body with their types.
import { call, element } from "./server.js";

// The short name of a field's type, such as "integer", "a | b" or "text or null".
function typeOf(schema) {
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return "list";
  return schema.type || "object";
}

function bodyOf(operation, schemas) {
  const content = operation.requestBody?.content || {};
  const [kind, first] = Object.entries(content)[0] || [];
  if (!first?.schema) return kind ? element("p", { text: `Body: ${kind}` }) : "";
  const name = first.schema.$ref?.split("/").pop();
  const fields = Object.entries((schemas[name] || first.schema).properties || {});
  const rows = fields.map(([field, schema]) =>
    element("tr", {}, element("td", {}, element("code", { text: field })), element("td", { text: typeOf(schema) }),
      element("td", { text: schema.description || "" })));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...["Field", "Type", "Meaning"].map(
    (text) => element("th", { text, scope: "col" })))), element("tbody", {}, ...rows));
  return element("details", {}, element("summary", { text: `Body: ${kind}, ${fields.length} fields` }),
    element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Fields" }, table));
}

const api = await (await call("/openapi.json")).json();
const sections = [];
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    sections.push(element("section", {},
      element("h2", {}, element("code", { text: `${method.toUpperCase()} ${path}` })),
      element("p", { text: operation.description || operation.summary || "" }),
      bodyOf(operation, api.components?.schemas || {})));
  }
}
document.querySelector("#routes").replaceChildren(...sections);
