// Which sequences of the picture belong to requests of this page: by the id of the answer where the engine shows it,
// else by the number of prompt tokens among those that came after the request was sent.

export class Claims {
  constructor() {
    this.open_ = new Set();
    this.known = new Set();
    this.byId = new Map();
  }

  /** A request is about to be sent. `onHue(hue)` hears the colour of its sequence, once it is found. */
  open(text, onHue = () => {}) {
    const claim = {
      text,
      onHue,
      answerId: null,
      promptTokens: null,
      older: new Set(this.known),
      sequence: null,
      take: (chunk) => {
        claim.answerId ??= chunk.id ?? null;
        claim.promptTokens ??= chunk.usage?.prompt_tokens ?? null;
      },
      close: () => {
        this.open_.delete(claim);
      },
    };
    this.open_.add(claim);
    return claim;
  }

  /** A frame has come: find what can be found. */
  match(pool) {
    this.known = new Set(pool.sequences.map((sequence) => sequence.id));
    for (const id of this.byId.keys()) if (!this.known.has(id)) this.byId.delete(id);
    for (const claim of this.open_) {
      if (claim.sequence !== null) continue;
      const found = pool.sequences.find((sequence) => !this.byId.has(sequence.id) && belongs(claim, sequence));
      if (!found) continue;
      claim.sequence = found.id;
      this.byId.set(found.id, claim);
      claim.onHue(pool.hues.of(found.id));
    }
  }

  /** The text with which this page asked for a sequence; null for those of others. */
  nameOf(sequence) {
    return this.byId.get(sequence.id)?.text ?? null;
  }
}

function belongs(claim, sequence) {
  const start = sequence.id.split("/")[0];
  if (claim.answerId?.endsWith(`-${start}`) || claim.answerId?.includes(`-${start}`)) return true;
  return claim.promptTokens === sequence.prompt && !claim.older.has(sequence.id);
}
