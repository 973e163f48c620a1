// The conversation: its turns, the one answer that is being given, and what can be done to both.

import { streamEvents } from "./api.js";
import { ASKED } from "./explained.js";
import { Answer, Question } from "./turn.js";
import { sampling, systemPrompt } from "./parameters.js";

/** Measures one streamed answer, in milliseconds of the page's clock. */
class Stopwatch {
  constructor() {
    this.asked = performance.now();
    this.first = null;
    this.last = null;
    this.usage = null;
    this.reason = null;
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (choice?.finish_reason) this.reason = choice.finish_reason;
    if (!choice) return;
    this.last = performance.now();
    this.first ??= this.last;
  }

  /** {ttft, perSecond, usage, reason}; null where it is not known. */
  statistics() {
    const ttft = this.first === null ? null : this.first - this.asked;
    const tokens = this.usage?.completion_tokens ?? 0;
    const span = this.first === null ? 0 : this.last - this.first;
    // The first token's time is the time to the first token; the speed is that of the others.
    const perSecond = tokens > 1 && span > 0 ? ((tokens - 1) * 1000) / span : null;
    return { ttft, perSecond, usage: this.usage, reason: this.reason };
  }
}

export class Chat {
  /** `log` holds the turns; `model()` names the model; `onChange(busy, empty)` hears of every change of state. */
  constructor(log, { model, onChange, claims }) {
    this.log = log;
    this.model = model;
    this.onChange = onChange;
    this.claims = claims;
    this.turns = [];
    this.running = null;
    this.actions = {
      onEdit: (turn, text) => this.edit(turn, text),
      onRemove: (turn) => this.remove(turn),
      onAgain: (turn) => this.regenerate(turn),
    };
    this.pinned = true;
    this.log.addEventListener("scroll", () => {
      this.pinned = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    });
  }

  get busy() {
    return this.running !== null;
  }

  /** The messages up to a turn, as the API takes them. */
  messages(before = null) {
    const messages = [];
    const system = systemPrompt();
    if (system) messages.push({ role: "system", content: system });
    for (const turn of this.turns) {
      if (turn === before) break;
      if (turn.text) messages.push({ role: turn.role, content: turn.text });
    }
    return messages;
  }

  /** The body of the request that the conversation so far makes. */
  request(messages) {
    return { model: this.model(), messages, ...sampling() };
  }

  /** What would be asked again, for the curl line: everything up to the last question. */
  lastRequest() {
    const messages = this.messages();
    while (messages.length && messages.at(-1).role === "assistant") messages.pop();
    return { ...this.request(messages), stream: true };
  }

  /** Ask this. */
  send(text) {
    this.stop();
    this.append(new Question(text, this.actions));
    return this.answer();
  }

  append(turn) {
    this.turns.push(turn);
    this.log.append(turn.root);
    this.pinned = true;
    this.scroll();
  }

  /** Drop this turn and all after it. */
  truncate(turn) {
    this.stop();
    const at = this.turns.indexOf(turn);
    if (at === -1) return;
    for (const dropped of this.turns.splice(at)) dropped.root.remove();
    this.changed();
  }

  edit(turn, text) {
    this.truncate(turn);
    return this.send(text);
  }

  regenerate(turn) {
    this.truncate(turn);
    return this.answer();
  }

  /** Drop a question with its answer. */
  remove(turn) {
    this.stop();
    const at = this.turns.indexOf(turn);
    const count = this.turns[at + 1]?.role === "assistant" ? 2 : 1;
    for (const dropped of this.turns.splice(at, count)) dropped.root.remove();
    this.changed();
  }

  /** Begin anew. */
  clear() {
    if (this.turns.length) this.truncate(this.turns[0]);
  }

  /** End the running answer; what it has said stays. */
  stop() {
    this.running?.abort();
  }

  /** The last question, to be edited. */
  lastQuestion() {
    return this.turns.findLast((turn) => turn.role === "user") ?? null;
  }

  async answer() {
    const answer = new Answer(this.actions);
    answer.onRender = () => this.scroll();
    const body = this.request(this.messages());
    this.append(answer);
    const controller = new AbortController();
    this.running = controller;
    answer.begin();
    this.changed();
    const watch = new Stopwatch();
    const claim = this.claims.open(body.messages.at(-1)?.content ?? "", { onHue: (hue) => answer.colour(hue) });
    const onChunk = (chunk) => {
      if (controller.signal.aborted) return;
      watch.take(chunk);
      claim.take(chunk);
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) answer.grow(text);
      if (watch.usage) answer.showFigures(watch.statistics());
      if (chunk.quire) answer.explain(chunk.quire);
    };
    try {
      await stream(body, { signal: controller.signal, onChunk });
    } catch (error) {
      if (error.name === "AbortError") watch.reason = "stopped";
      else answer.fail(error);
    } finally {
      claim.close();
      answer.colour(null);
      answer.showFigures(watch.statistics());
      answer.end();
      if (this.running === controller) this.running = null;
      this.changed();
      this.scroll();
    }
  }

  changed() {
    this.onChange(this.busy, this.turns.length === 0);
  }

  scroll() {
    if (this.pinned) this.log.scrollTop = this.log.scrollHeight;
  }
}

async function stream(body, options) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true }, quire: ASKED };
  try {
    await streamEvents("v1/chat/completions", asked, options);
  } catch (error) {
    if (error.code !== "insufficient_permissions" || !ASKED.cache_report) throw error;
    ASKED.cache_report = false;
    await streamEvents("v1/chat/completions", asked, options);
  }
}
