// What an answer tells of itself: where its time went, and what the prefix cache had of its prompt.

import { el, grouped } from "./dom.js";

/** What is asked for. A server that is open to others without a key refuses the second, and is not asked for it again. */
export const ASKED = { timings: true, cache_report: true };

/** The parts of the ledger, as a request goes through them; their colours are in playground.css. */
const PARTS = [
  ["queue", "waiting for the first step"],
  ["others_prefill", "prompts of others in the same steps"],
  ["prefill", "computing the prompt"],
  ["decode", "computing the answer"],
  ["sampling", "choosing tokens, between steps"],
  ["preempted", "preempted, and computed again"],
  ["text", "text to tokens and back"],
  ["client", "waiting for this page"],
];

/** A reader who opened one sees the next ones open as well. */
let isOpen = false;

/** The element that shows `quire` of an answer: a thin bar of the time, and on demand what it means. */
export function explanation({ timings, cache_report: report }) {
  if (!timings) return report ? el("div", { class: "explained" }, ...cacheReport(report)) : null;
  const parts = PARTS.map(([name, meaning]) => ({ name, meaning, spent: timings[`${name}_ms`] })).filter((part) => part.spent > 0);
  const said = parts.map(({ meaning, spent }) => `${meaning}: ${duration(spent)}`).join("; ");
  const bar = el("span", { class: "ledger", role: "img", "aria-label": `Where ${duration(timings.total_ms)} went. ${said}` });
  for (const { name, spent } of parts) {
    const piece = el("i", { class: `piece ${name}` });
    piece.style.flexGrow = String(spent);
    bar.append(piece);
  }
  const details = el(
    "details",
    { class: "explained", open: isOpen },
    el("summary", {}, bar, "details"),
    el("dl", { class: "ledger-legend" }, ...parts.map((part) => legendRow(part, timings.total_ms))),
    ...delays(timings.delayed_by),
    ...(report ? cacheReport(report) : []),
  );
  details.addEventListener("toggle", () => {
    isOpen = details.open;
  });
  return details;
}

function legendRow({ name, meaning, spent }, whole) {
  const share = (100 * spent) / whole;
  return el(
    "div",
    {},
    el("dt", {}, el("i", { class: `piece ${name}` }), meaning),
    el("dd", {}, duration(spent), el("span", {}, share < 1 ? "< 1 %" : `${Math.round(share)} %`)),
  );
}

function delays(delayed) {
  if (!delayed.length) return [];
  const names = delayed.map(({ request_id: id, ms }) => `${id} (${duration(ms)})`);
  return [el("p", {}, `Held up longest by the prompts of ${names.join(", ")}.`)];
}

function cacheReport(report) {
  const had = `${grouped(report.cached_tokens)} of ${grouped(report.prompt_tokens)} prompt tokens came from the cache.`;
  const { divergence } = report;
  if (!divergence) return [el("p", {}, `${had} ${report.message}`)];
  const { before, text, after, cached_text: cachedText, cached_after: cachedAfter } = divergence;
  const line = (name, mark, rest) => el("div", {}, el("dt", {}, name), el("dd", {}, shown(before), el("mark", {}, shown(mark)), shown(rest)));
  return [
    el("p", {}, `${had} The next token, number ${grouped(divergence.position + 1)}, is another one than in the prompt that is cached:`),
    el("dl", { class: "divergence" }, line("here", text, after), line("cached", cachedText, cachedAfter)),
  ];
}

/** On one line. */
function shown(text) {
  return text.replaceAll("\n", "↵");
}

/** 0.4 ms, 38 ms, 1.24 s. */
export function duration(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return milliseconds < 1 ? `${milliseconds.toFixed(1)} ms` : `${Math.round(milliseconds)} ms`;
}
