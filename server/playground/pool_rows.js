// The sequences below the picture: what runs, with its block table, and what waits.

import { paint } from "./colours.js";
import { el, grouped, setText } from "./dom.js";

const CHIPS = 16;
const FIRST_CHIPS = 5;

export class PoolRows {
  /** `list` is a <ul>; `onHover(ids)` hears which sequence the pointer or the focus is on; `nameOf(id)` may know it. */
  constructor(list, pool, { onHover, nameOf }) {
    this.list = list;
    this.pool = pool;
    this.onHover = onHover;
    this.nameOf = nameOf;
    this.rows = new Map();
  }

  /** Make the list as the pool is. */
  update() {
    const seen = new Set();
    const ordered = [...this.pool.sequences].sort((a, b) => (a.status === "waiting") - (b.status === "waiting"));
    ordered.forEach((sequence, place) => {
      seen.add(sequence.id);
      let row = this.rows.get(sequence.id);
      if (!row) {
        row = new Row(sequence.id, this.onHover);
        this.rows.set(sequence.id, row);
      }
      row.show(sequence, this.pool, this.nameOf(sequence));
      if (this.list.children[place] !== row.root) this.list.insertBefore(row.root, this.list.children[place] ?? null);
    });
    for (const [id, row] of this.rows) {
      if (seen.has(id)) continue;
      row.root.remove();
      this.rows.delete(id);
    }
  }

  /** Mark the rows of these sequences; null marks none. */
  highlight(ids) {
    for (const [id, row] of this.rows) {
      row.root.classList.toggle("lit", ids?.has(id) ?? false);
      row.root.classList.toggle("dim", ids !== null && !ids.has(id));
    }
  }
}

/** Tokens of the answer so far; `tokens` counts those of the prompt as well. */
function generated({ tokens, prompt }) {
  return Math.max(0, tokens - prompt);
}

class Row {
  constructor(id, onHover) {
    this.name = el("span", { class: "row-name" });
    this.count = el("span", { class: "row-count" });
    this.cached = el("i", { class: "part cached" });
    this.prompt = el("i", { class: "part prompt" });
    this.generated = el("i", { class: "part generated" });
    this.bar = el("div", { class: "bar-line", role: "progressbar", "aria-valuemin": "0" });
    this.bar.append(this.cached, this.prompt, this.generated);
    this.chips = el("div", { class: "chips", "aria-label": "Block table" });
    this.root = el(
      "li",
      { class: "row", tabindex: "0" },
      el("div", { class: "row-head" }, el("i", { class: "swatch" }), el("code", {}, id), this.name, this.count),
      this.bar,
      this.chips,
    );
    this.table = "";
    const only = new Set([id]);
    for (const type of ["pointerenter", "focus"]) this.root.addEventListener(type, () => onHover(only));
    for (const type of ["pointerleave", "blur"]) this.root.addEventListener(type, () => onHover(null));
  }

  show(sequence, pool, name) {
    const waiting = sequence.status === "waiting";
    this.root.classList.toggle("waiting", waiting);
    paint(this.root, pool.hues.of(sequence.id));
    setText(this.name, name ?? "");
    const cached = sequence.cached ? ` (${grouped(sequence.cached)} cached)` : "";
    const counts = `${grouped(sequence.prompt)}${cached} + ${grouped(generated(sequence))}`;
    setText(this.count, waiting ? `waiting, ${grouped(sequence.prompt)} tokens` : counts);
    this.showBar(sequence, name);
    this.showChips(sequence, pool);
  }

  showBar(sequence, name) {
    const { prompt, computed, cached, max_tokens: most } = sequence;
    const whole = Math.max(1, prompt + most);
    const share = (part) => `${(100 * Math.max(0, part)) / whole}%`;
    this.cached.style.width = share(Math.min(cached, prompt));
    this.prompt.style.width = share(Math.min(computed, prompt) - Math.min(cached, prompt));
    this.generated.style.width = share(generated(sequence));
    this.bar.setAttribute("aria-valuemax", String(whole));
    this.bar.setAttribute("aria-valuenow", String(Math.min(computed, prompt) + generated(sequence)));
    this.bar.setAttribute("aria-label", `${name ?? sequence.id}: prompt and generated tokens`);
    this.bar.title = `${computed} positions computed; at most ${prompt} + ${most} tokens`;
  }

  showChips(sequence, pool) {
    const blocks = sequence.blocks ?? [];
    const shared = blocks.map((id) => (pool.blocks.get(id)?.references ?? 0) > 1);
    const table = `${blocks.join(" ")} ${shared.join(" ")}`;
    if (table === this.table) return;
    this.table = table;
    const chip = (id, place) =>
      el("span", { class: shared[place] ? "chip shared" : "chip", title: `block ${id}, position ${place} of the table` }, String(id));
    const chips = blocks.map(chip);
    if (chips.length > CHIPS) {
      const hidden = chips.length - CHIPS;
      chips.splice(FIRST_CHIPS, hidden, el("span", { class: "chip more" }, `+${hidden}`));
    }
    this.chips.replaceChildren(...chips);
  }
}
