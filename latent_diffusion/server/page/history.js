// Pictures of this session, and the files of the output folder where the server has one.
import { call, element, picture } from "./server.js";
import { about } from "./settings.js";

const MOST = 60; // thumbnails
const session = []; // paths of pictures, the newest first

export function remember(one) {
  if (one.url && !session.includes(one.url)) session.unshift(one.url);
}

// Lists the pictures; `use` is called with the picture whose settings are wanted.
export async function show(use) {
  const names = about.history ? await (await call("/history")).json() : [];
  const paths = about.history ? names.map((name) => `/history/${encodeURIComponent(name)}`) : session;
  document.querySelector("#about-history").textContent = about.history
    ? `${names.length} files in the output folder, the newest first.`
    : "Pictures of this session. Start the server with --output FOLDER to keep them as files.";
  const figures = await Promise.all(paths.slice(0, MOST).map((path) => one(path, use).catch(() => null)));
  document.querySelector("#history").replaceChildren(...figures.filter(Boolean));
}

async function one(path, use) {
  const blob = await picture(path);
  const url = URL.createObjectURL(blob);
  const name = decodeURIComponent(path.split("/").pop());
  return element("figure", {},
    element("img", { src: url, alt: name, class: "pixels", loading: "lazy" }),
    element("figcaption", {},
      element("button", { type: "button", text: "Use its settings", click: () => use(blob) }),
      element("a", { href: url, download: name.endsWith(".png") ? name : "picture.png", text: "Save" })));
}
