// What is known of the block pool: frames of GET /playground/pool go in, answers about blocks come out.

import { Hues } from "./colours.js";
import { counted, grouped } from "./dom.js";

/** How long a block that lost its content shows it, in milliseconds. */
export const EVICTED_FOR = 1400;

/** The pool as the last frame left it. */
export class Pool {
  constructor() {
    this.hues = new Hues();
    this.clear();
  }

  /** Nothing is known. */
  clear() {
    this.numBlocks = 0;
    this.blockSize = 0;
    this.figures = { running: 0, waiting: 0, preemptions: 0, steps: 0 };
    /** By id: {references, cached, hue}; blocks that are free and empty are absent. `hue` is of the last owner. */
    this.blocks = new Map();
    /** When a block lost its content, by id, in milliseconds of the page's clock. */
    this.evicted = new Map();
    this.sequences = [];
    /** By block id: [{sequence, table, index}], index being its place in that block table. */
    this.owners = new Map();
    this.used = 0;
    this.cached = 0;
    this.shared = 0;
    /** The lowest block that got its first owner in the last frame; null when none did. */
    this.newest = null;
  }

  /** Take a frame. `now` is performance.now(). */
  apply(frame, now) {
    if (frame.kind === "full") {
      const hues = new Map([...this.blocks].map(([id, block]) => [id, block.hue]));
      this.blocks = new Map();
      for (const [id, references, cached] of frame.blocks) {
        this.blocks.set(id, { references, cached: cached === 1, hue: hues.get(id) ?? null });
      }
    } else {
      for (const [id, references, cached] of frame.blocks) this.change(id, references, cached === 1);
    }
    this.numBlocks = frame.num_blocks;
    this.blockSize = frame.block_size;
    this.figures = {
      running: frame.num_running,
      waiting: frame.num_waiting,
      preemptions: frame.preemptions,
      steps: frame.steps,
    };
    this.sequences = frame.sequences;
    this.hues.keep(frame.sequences.map((sequence) => sequence.id));
    this.findOwners();
    for (const id of frame.evicted) this.evicted.set(id, now);
    this.forgetEvicted(now);
    this.count();
  }

  change(id, references, cached) {
    if (references === 0 && !cached) this.blocks.delete(id);
    else this.blocks.set(id, { references, cached, hue: this.blocks.get(id)?.hue ?? null });
  }

  findOwners() {
    const before = this.owners;
    this.owners = new Map();
    this.newest = null;
    for (const sequence of this.sequences) {
      for (const table of sequence.tables) {
        table.blocks.forEach((id, place) => {
          const owner = { sequence, table, index: table.first + place };
          const owners = this.owners.get(id);
          if (owners) owners.push(owner);
          else this.owners.set(id, [owner]);
          if (!before.has(id) && (this.newest === null || id < this.newest)) this.newest = id;
          const block = this.blocks.get(id);
          if (block && !owners) block.hue = this.hues.of(sequence.id);
        });
      }
    }
  }

  count() {
    this.used = this.cached = this.shared = 0;
    for (const block of this.blocks.values()) {
      if (block.references > 0) this.used += 1;
      else this.cached += 1;
      if (block.references > 1) this.shared += 1;
    }
  }

  /** Drop the marks of evictions that are shown no longer; whether any is left. */
  forgetEvicted(now) {
    for (const [id, at] of this.evicted) if (now - at > EVICTED_FOR) this.evicted.delete(id);
    return this.evicted.size > 0;
  }

  /** "free", "cached", "used" or "shared". */
  state(id) {
    const block = this.blocks.get(id);
    if (!block) return "free";
    if (block.references === 0) return "cached";
    return block.references > 1 ? "shared" : "used";
  }

  /** Of the block's positions, how many are computed: by the owner that has gone furthest. */
  held(id) {
    const owners = this.owners.get(id) ?? [];
    let held = this.state(id) === "free" ? 0 : owners.length ? 0 : this.blockSize;
    for (const owner of owners) held = Math.max(held, this.heldBy(owner));
    return held;
  }

  heldBy({ sequence, index }) {
    return Math.min(Math.max(sequence.computed - index * this.blockSize, 0), this.blockSize);
  }

  /** One block in words, for the tooltip: {title, lines}. */
  describe(id) {
    const title = `Block ${id}`;
    const block = this.blocks.get(id);
    const owners = this.owners.get(id) ?? [];
    if (this.evicted.has(id) && !block) return { title, lines: ["Just evicted: its content was given up for another."] };
    if (!block) return { title, lines: ["Free and empty."] };
    if (block.references === 0) {
      return { title, lines: ["Cached: nobody uses it, its content is kept for the next equal beginning."] };
    }
    const lines = owners.slice(0, 6).map((owner) => {
      const first = owner.index * this.blockSize;
      const held = this.heldBy(owner);
      const range = held ? `positions ${first} to ${first + held - 1}` : "reserved, nothing computed yet";
      const layers = owner.sequence.tables.length > 1 ? `, for ${layersOf(owner.table)}` : "";
      return `${owner.sequence.id}: ${range}${layers}`;
    });
    if (owners.length > 6) lines.push(`and ${owners.length - 6} more`);
    const state = block.references > 1 ? `Shared by ${counted(block.references, "sequence")}` : "In use";
    const filled = owners.length ? `, ${this.held(id)} of ${this.blockSize} positions filled` : "";
    return { title, lines: [state + filled + ".", ...lines] };
  }

  /** The pool in one sentence, for those who do not see it. */
  summary() {
    if (!this.numBlocks) return "The pool has not been seen yet.";
    const free = this.numBlocks - this.used - this.cached;
    return (
      `${counted(this.numBlocks, "block")} of ${this.blockSize} positions: ` +
      `${this.used} in use, ${this.shared} of them shared, ${this.cached} cached, ${free} free.`
    );
  }
}

/** Which layers of the model read a block table. */
export function layersOf({ window }) {
  return window === null ? "layers that see everything" : `layers that see the last ${grouped(window)}`;
}
