// The right half of the page: figures, picture, sequences, explanation; and when to watch at all.

import { byId, counted, grouped, setText } from "./dom.js";
import { PoolCanvas } from "./pool_canvas.js";
import { Pool } from "./pool_model.js";
import { PoolRows } from "./pool_rows.js";
import { PoolStream } from "./pool_stream.js";

const STATES = { off: "paused", connecting: "connecting", live: "live", broken: "reconnecting" };

export class PoolPanel {
  /** `nameOf(sequence)` gives the prompt of a sequence that this page started, or null. */
  constructor({ nameOf, onFrame }) {
    this.pool = new Pool();
    this.panel = byId("pool");
    this.onFrame = onFrame;
    const parts = {
      scroller: byId("pool-scroller"),
      spacer: byId("pool-spacer"),
      canvas: byId("pool-canvas"),
      minimap: byId("pool-minimap"),
      tooltip: byId("pool-tooltip"),
      spoken: byId("pool-spoken"),
    };
    const onHover = (ids) => this.highlight(ids);
    this.canvas = new PoolCanvas(parts, this.pool, onHover);
    this.rows = new PoolRows(byId("sequences"), this.pool, { onHover, nameOf });
    this.stream = new PoolStream({
      onFrame: (frame) => this.take(frame),
      onState: (state, message) => this.showState(state, message),
    });
    document.addEventListener("visibilitychange", () => this.consider());
    new IntersectionObserver(() => this.consider()).observe(this.panel);
    this.consider();
  }

  /** Watch while the panel can be seen, and only then. */
  consider() {
    this.stream.want(document.visibilityState === "visible" && this.panel.checkVisibility());
  }

  take(frame) {
    this.pool.apply(frame, performance.now());
    this.onFrame(this.pool);
    this.canvas.update();
    this.rows.update();
    this.showFigures();
  }

  highlight(ids) {
    this.canvas.highlight(ids);
    this.rows.highlight(ids);
  }

  showState(state, message) {
    const badge = byId("pool-state");
    badge.dataset.state = state;
    setText(badge, STATES[state]);
    badge.title = message;
    this.panel.classList.toggle("stale", state === "broken");
  }

  showFigures() {
    const { pool } = this;
    const { running, waiting, preemptions, steps } = pool.figures;
    setText(byId("figure-used"), grouped(pool.used));
    setText(byId("figure-cached"), grouped(pool.cached));
    setText(byId("figure-free"), grouped(Math.max(0, pool.numBlocks - pool.used - pool.cached)));
    setText(byId("figure-running"), grouped(running));
    setText(byId("figure-waiting"), grouped(waiting));
    setText(byId("figure-steps"), grouped(steps));
    setText(byId("pool-size"), `${grouped(pool.numBlocks)} blocks of ${pool.blockSize} positions`);
    setText(byId("preemptions"), preemptions ? `${counted(preemptions, "preemption")} since the engine started` : "");
    byId("sequences-empty").hidden = pool.sequences.length > 0;
  }
}
