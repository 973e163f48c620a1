// Which sequences of the picture belong to requests of this page: the id of an answer tells.

export class Claims {
  constructor() {
    this.waiting = new Set();
    this.byId = new Map();
  }

  /**
   * A request is about to be sent; `prompt` is the number of its prompt in the call. Give the claim the chunks of the
   * answer. `onHue(hue)` hears the colour of its sequence, once that is found.
   */
  open(text, { onHue = () => {}, prompt = 0 } = {}) {
    const claim = {
      text,
      onHue,
      start: null,
      take: (chunk) => {
        claim.start ??= chunk.id ? sequenceStart(chunk.id, prompt) : null;
      },
      close: () => {
        this.waiting.delete(claim);
      },
    };
    this.waiting.add(claim);
    return claim;
  }

  /** A frame has come: find what can be found. */
  match(pool) {
    const present = new Set(pool.sequences.map((sequence) => sequence.id));
    for (const id of this.byId.keys()) if (!present.has(id)) this.byId.delete(id);
    for (const claim of this.waiting) {
      const found = pool.sequences.find((sequence) => sequence.id.split("/")[0] === claim.start);
      if (!found) continue;
      this.waiting.delete(claim);
      this.byId.set(found.id, claim);
      claim.onHue(pool.hues.of(found.id));
    }
  }

  /** The text with which this page asked for a sequence; null for those of others. */
  nameOf(sequence) {
    return this.byId.get(sequence.id)?.text ?? null;
  }
}

/** How the picture names a prompt of an answer: the first eight hex digits of its id, plus the prompt's number. */
function sequenceStart(answerId, prompt) {
  const digits = answerId.slice(answerId.lastIndexOf("-") + 1, answerId.lastIndexOf("-") + 9);
  return ((parseInt(digits, 16) + prompt) % 2 ** 32).toString(16).padStart(8, "0");
}
