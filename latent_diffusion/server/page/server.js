// Requests to the server, and small elements.

// The key is asked for when the server refuses a request without one, and kept until the tab is closed.
let key = sessionStorage.getItem("api-key") || "";

// Sends a request; an answer that is no success becomes an Error with the server's one line.
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  if (options.json !== undefined) {
    options = { ...options, method: options.method || "POST", body: JSON.stringify(options.json) };
    headers["content-type"] = "application/json";
  }
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    const given = prompt("API key of this server");
    if (given) {
      key = given;
      sessionStorage.setItem("api-key", key);
      return call(path, options);
    }
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Error(body.error || `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

// Calls `seen` with each state of a job until it is finished.
export async function follow(job, seen, preview = true) {
  await events(`/jobs/${job}/events?preview=${preview}`, seen);
}

// Calls `seen` with the data of each event of a stream, until it ends or `seen` returns false. EventSource sends no key.
export async function events(path, seen) {
  const answer = await call(path);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((part) => part.startsWith("data: "));
      if (line && seen(JSON.parse(line.slice(6))) === false) return reader.cancel();
    }
  }
}

// The picture at a path of the server, as a blob.
export async function picture(path) {
  return (await call(path)).blob();
}

// Makes an element: attributes by name, "text" for its text, functions as listeners.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== false && value !== undefined && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}
