// The conversation as a file, and its last request as a line for a shell.

import { address, apiKey } from "./api.js";
import { el } from "./dom.js";
import { sampling, systemPrompt } from "./parameters.js";

/** The conversation with its settings and figures, as JSON text. */
export function conversationJson(chat) {
  const messages = chat.turns.map((turn) => {
    const message = { role: turn.role, content: turn.text };
    if (turn.statistics) {
      const { ttft, perSecond, usage, reason } = turn.statistics;
      message.statistics = { ttft_ms: rounded(ttft), tokens_per_second: rounded(perSecond), usage, finish_reason: reason };
    }
    if (turn.explanation) message.quire = turn.explanation;
    if (turn.error) message.error = { message: turn.error.message, code: turn.error.code };
    return message;
  });
  const system = systemPrompt();
  const document = { model: chat.model(), system: system || undefined, sampling: sampling(), messages };
  return JSON.stringify(document, null, 2) + "\n";
}

function rounded(value) {
  return value === null ? null : Math.round(value * 10) / 10;
}

/** Offer text as a file. */
export function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A line for a POSIX shell that asks the same. A key is named, never written. */
export function curlLine(body) {
  const headers = ["-H 'Content-Type: application/json'"];
  if (apiKey.get()) headers.push('-H "Authorization: Bearer $QUIRE_API_KEY"');
  return `curl -N ${quoted(address("v1/chat/completions"))} ${headers.join(" ")} -d ${quoted(JSON.stringify(body))}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
