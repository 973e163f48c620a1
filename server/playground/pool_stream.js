// The subscription to GET /playground/pool: open only while somebody looks, opened again when it breaks.

import { ApiError, access, ask, events } from "./api.js";

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;
const SILENCE = 40000;

/** Calls `onFrame(frame)` and `onState("off" | "connecting" | "live" | "broken", message)`. */
export class PoolStream {
  constructor({ onFrame, onState }) {
    this.onFrame = onFrame;
    this.onState = onState;
    this.wanted = false;
    this.controller = null;
    this.pause = FIRST_PAUSE;
    this.timer = 0;
    access.addEventListener("authorized", () => {
      if (this.refused) this.restart();
    });
    this.refused = false;
  }

  /** Watch, or stop watching. */
  want(wanted) {
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    if (wanted) {
      this.restart();
    } else {
      this.close();
      this.onState("off", "");
    }
  }

  restart() {
    this.close();
    this.refused = false;
    this.pause = FIRST_PAUSE;
    if (this.wanted) this.open();
  }

  close() {
    clearTimeout(this.timer);
    this.controller?.abort();
    this.controller = null;
  }

  async open() {
    const controller = new AbortController();
    this.controller = controller;
    this.onState("connecting", "");
    let failure = "The stream has ended.";
    let watchdog = 0;
    try {
      const response = await ask("playground/pool", { signal: controller.signal });
      for await (const data of events(response)) {
        if (this.controller !== controller) return;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => controller.abort(), SILENCE);
        const frame = JSON.parse(data);
        this.pause = FIRST_PAUSE;
        this.onState("live", "");
        this.onFrame(frame);
      }
    } catch (error) {
      failure = error.name === "AbortError" ? "The stream went silent." : error.message;
      this.refused = error.status === 401 || error.status === 403;
      if (error.name !== "AbortError" && !(error instanceof ApiError)) reportError(error);
    } finally {
      clearTimeout(watchdog);
    }
    if (this.controller !== controller) return;
    this.onState("broken", failure);
    if (this.refused) return;
    this.timer = setTimeout(() => this.open(), this.pause);
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }
}
