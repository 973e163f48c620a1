// The system prompt and the sampling controls. What is left blank is not sent: then the server's defaults hold.

import { byId, setText } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

/** The system prompt, without the spaces around it. */
export function systemPrompt() {
  return byId("system").value.trim();
}

/** The sampling fields of a request: those that were filled in. */
export function sampling() {
  const fields = {};
  for (const name of NUMBERS) {
    const input = byId(name);
    if (input.value.trim() !== "") fields[name] = Number(input.value);
  }
  const stop = byId("stop-strings")
    .value.split("\n")
    .filter((line) => line !== "");
  if (stop.length) fields.stop = stop;
  return fields;
}

/** Keep the one-line summary beside the switch up to date. */
export function watchParameters() {
  const show = () => {
    const parts = Object.entries(sampling()).map(([name, value]) => `${name} ${Array.isArray(value) ? value.length : value}`);
    if (systemPrompt()) parts.unshift("system prompt");
    setText(byId("parameters-summary"), parts.join(", "));
  };
  byId("parameters-form").addEventListener("input", show);
  byId("parameters-form").addEventListener("reset", () => setTimeout(show));
  byId("parameters-form").addEventListener("submit", (event) => event.preventDefault());
  show();
}
