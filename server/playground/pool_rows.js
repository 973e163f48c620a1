// The sequences below the picture: what runs, with its block table, and what waits.

import { paint } from "./colours.js";
import { counted, el, grouped, setText } from "./dom.js";
import { layersOf } from "./pool_model.js";

const FIRST_CHIPS = 3;
/** Widths in CSS pixels, as pool.css has them: a chip of up to three digits with its gap, each digit more, the names. */
const CHIP = 34;
const DIGIT = 7;
const NAMES = 60;
const GIVEN_BACK = 90;

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
    const width = this.list.clientWidth;
    const ordered = [...this.pool.sequences].sort((a, b) => (a.status === "waiting") - (b.status === "waiting"));
    ordered.forEach((sequence, place) => {
      seen.add(sequence.id);
      let row = this.rows.get(sequence.id);
      if (!row) {
        row = new Row(sequence.id, this.onHover);
        this.rows.set(sequence.id, row);
      }
      row.show(sequence, this.pool, this.nameOf(sequence), width);
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
    this.tables = el("div", { class: "tables" });
    this.root = el(
      "li",
      { class: "row", tabindex: "0" },
      el("div", { class: "row-head" }, el("i", { class: "swatch" }), el("code", {}, id), this.name, this.count),
      this.bar,
      this.tables,
    );
    this.shown = "";
    const only = new Set([id]);
    for (const type of ["pointerenter", "focus"]) this.root.addEventListener(type, () => onHover(only));
    for (const type of ["pointerleave", "blur"]) this.root.addEventListener(type, () => onHover(null));
  }

  show(sequence, pool, name, width) {
    const waiting = sequence.status === "waiting";
    this.root.classList.toggle("waiting", waiting);
    paint(this.root, pool.hues.of(sequence.id));
    setText(this.name, name ?? "");
    const cached = sequence.cached ? ` (${grouped(sequence.cached)} cached)` : "";
    const counts = `${grouped(sequence.prompt)}${cached} + ${grouped(generated(sequence))}`;
    setText(this.count, waiting ? `waiting, ${grouped(sequence.prompt)} tokens` : counts);
    this.showBar(sequence, name);
    this.showTables(sequence, pool, width);
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

  showTables({ tables }, pool, width) {
    const isShared = (id) => (pool.blocks.get(id)?.references ?? 0) > 1;
    const shown = JSON.stringify([width, tables.map(({ first, blocks }) => [first, blocks, blocks.map(isShared)])]);
    if (shown === this.shown) return;
    this.shown = shown;
    const chip = CHIP + DIGIT * Math.max(0, String(pool.numBlocks - 1).length - 3);
    const room = (table) => Math.floor((width - 16 - (tables.length > 1 ? NAMES : 0) - (table.first ? GIVEN_BACK : 0)) / chip);
    this.tables.replaceChildren(...tables.map((table) => blockTable(table, isShared, room(table), tables.length > 1)));
  }
}

/** The blocks of one table in their order: as many as there is room for, of a longer one the beginning and the end. */
function blockTable(table, isShared, room, isNamed) {
  const { first, blocks } = table;
  const chips = blocks.map((id, place) => {
    const title = `block ${id}, place ${first + place} of the table`;
    return el("span", { class: isShared(id) ? "chip shared" : "chip", title }, String(id));
  });
  if (chips.length > room) {
    const hidden = chips.length - Math.max(room - 1, FIRST_CHIPS + 1);
    chips.splice(FIRST_CHIPS, hidden, el("span", { class: "chip more" }, `+${hidden}`));
  }
  if (first) {
    const title = `${counted(first, "block")} given back: no layer looks back so far`;
    chips.unshift(el("span", { class: "chip more", title }, `${first} given back`));
  }
  const name = isNamed ? el("span", { class: "chips-name" }, table.window === null ? "all" : `last ${grouped(table.window)}`) : null;
  return el("div", { class: "chips", role: "group", "aria-label": `Block table of ${isNamed ? layersOf(table) : "all layers"}` }, name, ...chips);
}
