// Talking to the server that sent this page, and to nobody else. Addresses are relative, so a --root-path works.

const KEY = "quire.key";

/** A refusal or failure, with the server's own sentence. `retryAfter` is in seconds, or null. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The key that the user typed; it lives as long as the tab. */
export const apiKey = {
  held: null,
  get() {
    try {
      return sessionStorage.getItem(KEY);
    } catch {
      return this.held;
    }
  },
  set(key) {
    this.held = key;
    try {
      sessionStorage.setItem(KEY, key);
    } catch {
      // No storage: the key is kept in memory.
    }
  },
};

/** Emits "unauthorized" when the server wants a key, and "authorized" when it got one that it takes. */
export const access = new EventTarget();

/** The absolute address of a path of this server. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/** Ask; the answer when its status is good, else ApiError. A body makes it a POST of JSON. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  const key = apiKey.get();
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", { code: "unreachable" });
  }
  if (response.ok) {
    access.dispatchEvent(new Event("authorized"));
    return response;
  }
  const error = await refusal(response);
  if (error.status === 401) access.dispatchEvent(new Event("unauthorized"));
  throw error;
}

async function refusal(response) {
  let found = null;
  try {
    found = (await response.json()).error;
  } catch {
    // Not the server's own envelope: a proxy in between, perhaps.
  }
  const seconds = Number(response.headers.get("retry-after"));
  return new ApiError(found?.message ?? `The server answered ${response.status}.`, {
    status: response.status,
    code: found?.code ?? "",
    retryAfter: seconds > 0 ? seconds : null,
  });
}

/** Cuts a text/event-stream, given in pieces of any size, into the data of its events. */
class EventParser {
  constructor() {
    this.rest = "";
    this.data = [];
  }

  /** The data of every event that is complete now. */
  push(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    const events = [];
    for (let line of lines) {
      if (line.endsWith("\r")) line = line.slice(0, -1);
      if (line === "") {
        if (this.data.length) events.push(this.data.join("\n"));
        this.data = [];
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}

/** The data of each event of an answer, as they come. Leaving the loop early closes the connection. */
export async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await next(reader);
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke.", { code: "unreachable" });
  }
}

/**
 * One streamed answer of /v1/chat/completions or /v1/completions. Calls `onChunk(chunk)` for each chunk, in order; throws
 * ApiError for a refusal and for an error inside the stream, AbortError after `signal`.
 */
export async function streamEvents(path, body, { signal, onChunk }) {
  const response = await ask(path, { body, signal });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, { code: chunk.error.code ?? "" });
    onChunk(chunk);
  }
  throw new ApiError("The answer ended before its end.", { code: "unreachable" });
}
