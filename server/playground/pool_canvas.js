// The picture: one cell a block. A window over the rows that are in view, and beside it the whole pool in miniature.

import { CanvasColours } from "./colours.js";
import { el, prefersStillness, setText } from "./dom.js";
import { EVICTED_FOR } from "./pool_model.js";

const SMALLEST = 12;
const LARGEST = 36;
const SCROLLED = [14, 15, 13];
const MINIMAP = 14;

export class PoolCanvas {
  /** `parts`: scroller, spacer, canvas, minimap, tooltip, spoken. `onHover(ids)`: the sequences under the pointer. */
  constructor(parts, pool, onHover) {
    Object.assign(this, parts);
    this.pool = pool;
    this.onHover = onHover;
    this.colours = new CanvasColours();
    this.context = this.canvas.getContext("2d");
    this.mapContext = this.minimap.getContext("2d");
    this.pitch = LARGEST;
    this.columns = 1;
    this.rows = 0;
    this.chosen = null;
    this.highlighted = null;
    this.frame = 0;
    this.drawnBlocks = 0;
    this.listen();
  }

  listen() {
    new ResizeObserver(() => this.layout()).observe(this.scroller);
    this.scroller.addEventListener("scroll", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.choose(null);
    });
    this.canvas.addEventListener("blur", () => this.choose(null));
    this.canvas.addEventListener("keydown", (event) => this.steer(event));
    this.minimap.addEventListener("pointerdown", (event) => this.jump(event));
    this.minimap.addEventListener("pointermove", (event) => {
      if (event.buttons) this.jump(event);
    });
  }

  /** Measure, and choose the size of a cell: as large as lets every block be seen, or one to scroll through. */
  layout() {
    const width = this.scroller.clientWidth;
    const height = this.scroller.clientHeight;
    if (!width || !height || !this.pool.numBlocks) return;
    const rowsAt = (pitch) => Math.ceil(this.pool.numBlocks / Math.floor(width / pitch));
    let pitch = LARGEST;
    while (pitch >= SMALLEST && rowsAt(pitch) * pitch > height) pitch -= 1;
    const fits = pitch >= SMALLEST;
    // Whole pixels, so that all cells are equal; of the sizes to scroll through, the one that fills the width best.
    if (!fits) pitch = SCROLLED.reduce((best, size) => (width % size < width % best ? size : best));
    this.columns = Math.floor(width / pitch);
    this.pitch = pitch;
    this.rows = Math.ceil(this.pool.numBlocks / this.columns);
    this.minimap.hidden = fits;
    this.spacer.style.height = `${Math.ceil(this.rows * this.pitch)}px`;
    fit(this.canvas, this.context, width, height);
    if (!fits) fit(this.minimap, this.mapContext, MINIMAP, height);
    this.draw();
  }

  /** Colours have changed with the theme. */
  recolour() {
    this.colours.refresh();
    this.draw();
  }

  /** A frame has been applied to the pool. */
  update() {
    if (this.pool.numBlocks !== this.drawnBlocks) {
      this.drawnBlocks = this.pool.numBlocks;
      this.layout();
    }
    this.follow();
    this.canvas.setAttribute("aria-label", `Block pool. ${this.pool.summary()}`);
    if (this.chosen !== null) this.tell();
    this.draw();
  }

  /** Keep what is being allocated in view, unless the reader is looking at something. */
  follow() {
    const newest = this.pool.newest;
    if (newest === null || this.chosen !== null || this.minimap.hidden) return;
    const top = Math.floor(newest / this.columns) * this.pitch;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop || top > scrollTop + clientHeight - 2 * this.pitch) {
      this.scroller.scrollTop = Math.max(0, top - clientHeight / 3);
    }
  }

  /** Dim everything but the blocks of these sequences; null shows all alike. */
  highlight(ids) {
    this.highlighted = ids;
    this.draw();
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame((now) => {
      this.frame = 0;
      this.paint(now);
      if (this.pool.forgetEvicted(now)) this.draw();
    });
  }

  paint(now) {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.context.clearRect(0, 0, width, height);
    if (!this.pool.numBlocks) return;
    const top = this.scroller.scrollTop;
    const first = Math.floor(top / this.pitch);
    const last = Math.min(this.rows - 1, Math.floor((top + height) / this.pitch));
    for (let row = first; row <= last; row += 1) {
      for (let column = 0; column < this.columns; column += 1) {
        const id = row * this.columns + column;
        if (id >= this.pool.numBlocks) break;
        this.paintCell(id, column * this.pitch, row * this.pitch - top, now);
      }
    }
    if (!this.minimap.hidden) this.paintMinimap(top, height);
  }

  paintCell(id, left, top, now) {
    const { context, pool, colours } = this;
    const gap = this.pitch > 26 ? 4 : this.pitch > 16 ? 3 : 2;
    const x = left;
    const y = Math.round(top);
    const size = this.pitch - gap;
    const state = pool.state(id);
    context.globalAlpha = this.isDimmed(id, state) ? 0.18 : 1;
    if (state === "free") {
      square(context, x, y, size);
      context.fillStyle = colours.role("--cell-free");
      context.fill();
    } else if (state === "cached") {
      context.lineWidth = 1.5;
      context.strokeStyle = colours.hue(pool.blocks.get(id).hue);
      square(context, x + 0.75, y + 0.75, size - 1.5);
      context.stroke();
    } else {
      this.paintUsed(id, x, y, size, state);
    }
    if (pool.evicted.has(id)) this.paintEvicted(x, y, size, now - pool.evicted.get(id));
    if (id === this.chosen) {
      context.globalAlpha = 1;
      context.lineWidth = 2;
      context.strokeStyle = colours.role("--ink");
      square(context, x + 1, y + 1, size - 2);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /** Filled as far as its positions are computed; a shared one has a second ring, in its second owner's colour. */
  paintUsed(id, x, y, size, state) {
    const { context, pool, colours } = this;
    const owners = pool.owners.get(id) ?? [];
    const hue = pool.blocks.get(id).hue;
    const alpha = context.globalAlpha;
    const held = pool.held(id) / (pool.blockSize || 1);
    context.fillStyle = colours.hue(hue);
    if (held < 1) {
      context.globalAlpha = alpha * 0.3;
      square(context, x, y, size);
      context.fill();
      context.globalAlpha = alpha;
    }
    context.save();
    context.beginPath();
    const rise = Math.round(size * held);
    context.rect(x, y + size - rise, size, rise);
    context.clip();
    square(context, x, y, size);
    context.fill();
    context.restore();
    if (state !== "shared") return;
    const inset = size >= 12 ? size / 5 : 2;
    square(context, x + inset, y + inset, size - 2 * inset);
    context.fillStyle = colours.role("--panel");
    context.fill();
    const core = inset + (size >= 12 ? size / 7 : 1.25);
    context.fillStyle = colours.hue(owners[1] ? pool.hues.of(owners[1].sequence.id) : hue);
    square(context, x + core, y + core, size - 2 * core);
    context.fill();
  }

  paintEvicted(x, y, size, age) {
    const { context } = this;
    context.globalAlpha = prefersStillness() ? 0.8 : Math.max(0, 1 - age / EVICTED_FOR);
    context.strokeStyle = this.colours.role("--evicted");
    context.lineWidth = 1.5;
    const inset = size / 4;
    context.beginPath();
    context.moveTo(x + inset, y + inset);
    context.lineTo(x + size - inset, y + size - inset);
    context.moveTo(x + size - inset, y + inset);
    context.lineTo(x + inset, y + size - inset);
    context.stroke();
  }

  isDimmed(id, state) {
    if (this.highlighted === null) return false;
    if (state === "free" || state === "cached") return true;
    return !(this.pool.owners.get(id) ?? []).some(({ sequence }) => this.highlighted.has(sequence.id));
  }

  /** The whole pool, each line the blocks of one height, in the colour of the liveliest among them. */
  paintMinimap(top, height) {
    const { mapContext: context, pool, colours } = this;
    context.clearRect(0, 0, MINIMAP, height);
    context.fillStyle = colours.role("--cell-free");
    context.fillRect(4, 0, MINIMAP - 6, height);
    const whole = this.rows * this.pitch;
    const thickness = Math.max(2, height / this.rows);
    for (const wanted of [false, true]) {
      for (const [id, block] of pool.blocks) {
        if (block.references > 0 !== wanted) continue;
        context.globalAlpha = wanted ? 1 : 0.4;
        context.fillStyle = colours.hue(block.hue);
        context.fillRect(4, (Math.floor(id / this.columns) * this.pitch * height) / whole, MINIMAP - 6, thickness);
      }
    }
    context.globalAlpha = 1;
    context.strokeStyle = colours.role("--ink");
    context.lineWidth = 1;
    const frame = Math.max(6, (height * height) / whole);
    context.strokeRect(2.5, (top * height) / whole + 0.5, MINIMAP - 3, Math.min(frame, height - 1) - 1);
  }

  jump(event) {
    const box = this.minimap.getBoundingClientRect();
    const share = (event.clientY - box.top) / box.height;
    this.scroller.scrollTop = share * this.rows * this.pitch - box.height / 2;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.pitch);
    const row = Math.floor((event.clientY - box.top + this.scroller.scrollTop) / this.pitch);
    const id = row * this.columns + column;
    const inside = column >= 0 && column < this.columns && id >= 0 && id < this.pool.numBlocks;
    this.choose(inside ? id : null);
  }

  /** Arrow keys walk from block to block; Home goes to the first, Escape lets go. */
  steer(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (event.key === "Escape" && this.chosen !== null) {
      this.choose(null);
      event.stopPropagation();
    } else if (event.key === "Home") {
      this.choose(0);
    } else if (event.key in steps) {
      const inView = Math.floor(this.scroller.scrollTop / this.pitch) * this.columns;
      const next = this.chosen === null ? inView : this.chosen + steps[event.key];
      this.choose(Math.min(Math.max(next, 0), this.pool.numBlocks - 1));
      const top = Math.floor(this.chosen / this.columns) * this.pitch;
      const { scrollTop, clientHeight } = this.scroller;
      if (top < scrollTop) this.scroller.scrollTop = top;
      else if (top + this.pitch > scrollTop + clientHeight) this.scroller.scrollTop = top + this.pitch - clientHeight;
    } else {
      return;
    }
    event.preventDefault();
  }

  choose(id) {
    if (id === this.chosen) return;
    this.chosen = id;
    this.tooltip.hidden = id === null;
    if (id === null) this.onHover(null);
    else this.tell();
    this.draw();
  }

  tell() {
    const id = this.chosen;
    const { title, lines } = this.pool.describe(id);
    this.tooltip.replaceChildren(el("strong", {}, title), ...lines.map((line) => el("span", {}, line)));
    setText(this.spoken, [title, ...lines].join(". "));
    const owners = this.pool.owners.get(id) ?? [];
    this.onHover(owners.length ? new Set(owners.map(({ sequence }) => sequence.id)) : null);
    this.place(id);
  }

  /** Beside its cell: below it, or above where there is no room. */
  place(id) {
    const x = (id % this.columns) * this.pitch;
    const y = Math.floor(id / this.columns) * this.pitch - this.scroller.scrollTop;
    const { offsetWidth, offsetHeight } = this.tooltip;
    const left = Math.min(Math.max(0, x - 12), Math.max(0, this.scroller.clientWidth - offsetWidth));
    const below = y + this.pitch + 8;
    const above = y - offsetHeight - 8;
    const fitsBelow = below + offsetHeight <= this.scroller.clientHeight;
    this.tooltip.style.left = `${left}px`;
    this.tooltip.style.top = `${fitsBelow || above < -offsetHeight ? below : above}px`;
  }
}

function square(context, x, y, size) {
  context.beginPath();
  if (size >= 8 && context.roundRect) context.roundRect(x, y, size, size, size > 24 ? 5 : size > 13 ? 3 : 2);
  else context.rect(x, y, size, size);
}

/** As many pixels as the screen has under it, addressed in CSS pixels. */
function fit(canvas, context, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
}
