// What OpenAI's client for Node does with the server: node openai_client.mjs URL FOLDER, where FOLDER has node_modules/.
// Prints one JSON object of what came back; an answer that the client cannot read ends it with an error.
import { createRequire } from "node:module";
import { deflateSync, crc32 as zlibCrc } from "node:zlib";

const [url, folder] = process.argv.slice(2);
const { default: OpenAI, toFile } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none-needed", maxRetries: 0 });
const SIGNATURE = "89504e470d0a1a0a";

function crc32(data) {
  if (zlibCrc) return zlibCrc(data);
  let crc = -1;
  for (const byte of data) {
    crc ^= byte;
    for (let k = 0; k < 8; k += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

function chunk(kind, data) {
  const body = Buffer.concat([Buffer.from(kind), data]);
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}

// An RGBA picture of one colour as PNG, whose upper half is transparent where it is a mask.
function png(side, mask = false) {
  const head = Buffer.alloc(13);
  head.writeUInt32BE(side, 0);
  head.writeUInt32BE(side, 4);
  head.set([8, 6, 0, 0, 0], 8);
  const rows = Array.from({ length: side }, (_, y) =>
    Buffer.concat([Buffer.from([0]), ...Array.from({ length: side }, () => Buffer.from([200, 40, 40, mask && y < side / 2 ? 0 : 255]))]));
  return Buffer.concat([Buffer.from(SIGNATURE, "hex"), chunk("IHDR", head), chunk("IDAT", deflateSync(Buffer.concat(rows))), chunk("IEND", Buffer.alloc(0))]);
}

const isPng = (text) => Buffer.from(text, "base64").subarray(0, 8).toString("hex") === SIGNATURE;
const file = (data, name) => toFile(data, name, { type: "image/png" });
const found = {};

const models = [];
for await (const model of client.models.list()) models.push(model.id);
found.models = models;
found.model = (await client.models.retrieve(models[0])).id;

const size = "32x32";
const drawn = await client.images.generate({ model: models[0], prompt: "a red disc", n: 2, size, seed: 7, steps: 2 });
found.generated = drawn.data.map(({ b64_json: text, seed }) => [isPng(text), seed]);

const linked = await client.images.generate({ model: models[0], prompt: "a red disc", size, seed: 7, steps: 2, response_format: "url" });
const fetched = Buffer.from(await (await fetch(linked.data[0].url)).arrayBuffer());
found.linked = fetched.toString("base64") === drawn.data[0].b64_json;

const events = [];
const stream = await client.images.generate({ model: models[0], prompt: "a red disc", size, seed: 7, steps: 4, stream: true, partial_images: 2 });
for await (const event of stream) events.push([event.type, Boolean(event.b64_json)]);
found.streamed = events;

const edited = await client.images.edit({
  model: models[0], prompt: "a blue disc", image: await file(png(32), "picture.png"), mask: await file(png(32, true), "mask.png"), size, steps: 2, seed: 1,
});
found.edited = isPng(edited.data[0].b64_json);
const streamedEdit = [];
const edit = await client.images.edit({ model: models[0], prompt: "a blue disc", image: await file(png(32), "picture.png"), size, steps: 4, seed: 1, stream: true, partial_images: 1 });
for await (const event of edit) streamedEdit.push(event.type);
found.streamed_edit = streamedEdit;
if (client.images.createVariation) {
  const varied = await client.images.createVariation({ image: await file(png(32), "picture.png"), n: 2, size });
  found.varied = varied.data.map(({ b64_json: text, url: place }) => (place ? place.startsWith("http") : isPng(text)));
}

async function refusal(work) {
  try {
    await work();
    return "not refused";
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param];
  }
}
found.refused = {
  model: await refusal(() => client.models.retrieve("no-such-model")),
  count: await refusal(() => client.images.generate({ prompt: "x", n: 11 })),
  mask: await refusal(async () => client.images.edit({ prompt: "x", image: await file(png(32), "a.png"), mask: await file(png(16, true), "m.png") })),
};
console.log(JSON.stringify(found));
