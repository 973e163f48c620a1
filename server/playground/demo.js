// "Fill the pool": eight requests that begin alike, so that one picture shows continuous batching and prefix sharing.

import { streamChat } from "./api.js";

/** How every one of them begins: the blocks of this are computed once. */
const BEGINNING = [
  { role: "system", content: "You are a helpful assistant." },
  { role: "user", content: "Who are you?" },
  { role: "assistant", content: "I am Quire, a small language model that runs on this computer." },
  { role: "user", content: "What is 12 + 30?" },
  { role: "assistant", content: "12 + 30 = 42" },
];

const QUESTIONS = [
  ["Write a short story about a fox and a lantern.", 0.8],
  ["Write a short story about a sailor and a map.", 0.8],
  ["Tell me a story about a baker and a stone.", 0.8],
  ["Write a short story about a girl and a kite.", 0.8],
  ["Tell me a short story about an owl and a key.", 0.8],
  ["What is 47 + 35?", 0],
  ["Count from 1 to 20.", 0],
  ["Write a short story about a bear and a boat.", 0.8],
];

/** Runs the eight; one demonstration at a time. `onChange(left)` hears how many are still running. */
export class Demonstration {
  constructor({ model, claims, onChange }) {
    this.model = model;
    this.claims = claims;
    this.onChange = onChange;
    this.controller = null;
  }

  get running() {
    return this.controller !== null;
  }

  stop() {
    this.controller?.abort();
  }

  /** Start; ends with the last answer. Throws the first refusal. */
  async run() {
    const controller = new AbortController();
    this.controller = controller;
    let left = QUESTIONS.length;
    this.onChange(left);
    // The first goes ahead by one token: from then on the others find the beginning in the cache.
    let ahead;
    const begun = new Promise((resolve) => (ahead = resolve));
    const ask = async ([question, temperature], place) => {
      if (place > 0) await begun;
      try {
        await this.ask(question, temperature, controller.signal, ahead);
      } finally {
        ahead();
        left -= 1;
        this.onChange(left);
      }
    };
    try {
      const results = await Promise.allSettled(QUESTIONS.map(ask));
      const failed = results.find(({ status, reason }) => status === "rejected" && reason.name !== "AbortError");
      if (failed) throw failed.reason;
    } finally {
      this.controller = null;
      this.onChange(0);
    }
  }

  async ask(question, temperature, signal, onFirst) {
    const claim = this.claims.open(question);
    const body = {
      model: this.model(),
      messages: [...BEGINNING, { role: "user", content: question }],
      max_tokens: 256,
      temperature,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    const onChunk = (chunk) => {
      claim.take(chunk);
      onFirst();
    };
    try {
      await streamChat(body, { signal, onChunk });
    } finally {
      claim.close();
    }
  }
}
