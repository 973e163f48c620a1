// "Fill the pool": eight requests that begin alike, so that one picture shows continuous batching and prefix sharing.
//
// A browser opens six connections to a server and no more, so eight streamed chats would not run at once. The prompts are
// made by /tokenize, and seven of them travel as one /v1/completions, which are seven requests to the engine.

import { ask, streamEvents } from "./api.js";

/** How every one of them begins: the blocks of this are computed once. */
const BEGINNING = [
  { role: "system", content: "You are a helpful assistant." },
  { role: "user", content: "Who are you?" },
  { role: "assistant", content: "I am Quire, a small language model that runs on this computer." },
  { role: "user", content: "What is 12 + 30?" },
  { role: "assistant", content: "12 + 30 = 42" },
];

const QUESTIONS = [
  "Write a short story about a fox and a lantern.",
  "Write a short story about a sailor and a map.",
  "Tell me a story about a baker and a stone.",
  "Write a short story about a girl and a kite.",
  "Tell me a short story about an owl and a key.",
  "Tell me a short story about a king and a well.",
  "Count from 1 to 20.",
  "Write a short story about a bear and a boat.",
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

  /** Start; ends with the last answer, or when stopped. Throws the first refusal. */
  async run() {
    const controller = new AbortController();
    const { signal } = controller;
    this.controller = controller;
    this.left = QUESTIONS.length;
    this.onChange(this.left);
    try {
      const prompts = await Promise.all(QUESTIONS.map((question) => this.tokenize(question, signal)));
      // The first goes ahead by one token: from then on the others find the beginning in the cache.
      let begin;
      const begun = new Promise((resolve) => (begin = resolve));
      const first = this.ask(prompts.slice(0, 1), signal, begin).finally(begin);
      const others = begun.then(() => this.ask(prompts.slice(1), signal));
      await Promise.all([first, others]);
    } catch (error) {
      controller.abort();
      if (error.name !== "AbortError") throw error;
    } finally {
      this.controller = null;
      this.onChange(0);
    }
  }

  async tokenize(question, signal) {
    const messages = [...BEGINNING, { role: "user", content: question }];
    const response = await ask("tokenize", { body: { model: this.model(), messages }, signal });
    return { question, tokens: (await response.json()).tokens };
  }

  async ask(prompts, signal, onFirst = () => {}) {
    const claims = prompts.map(({ question }, prompt) => this.claims.open(question, { prompt }));
    const body = {
      model: this.model(),
      prompt: prompts.map(({ tokens }) => tokens),
      max_tokens: 256,
      temperature: 0.6,
      stream: true,
    };
    const onChunk = (chunk) => {
      onFirst();
      for (const claim of claims) claim.take(chunk);
      for (const choice of chunk.choices ?? []) {
        if (!choice.finish_reason) continue;
        claims[choice.index].close();
        this.left -= 1;
        this.onChange(this.left);
      }
    };
    try {
      await streamEvents("v1/completions", body, { signal, onChunk });
    } finally {
      for (const claim of claims) claim.close();
    }
  }
}
