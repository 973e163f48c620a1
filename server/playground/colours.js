// One hue a sequence, kept while it lives. Lightness and chroma belong to the theme (playground.css, --seq).

import { el } from "./dom.js";

/** Hues of OKLCH, ordered so that neighbours in time are far apart on the wheel. */
const HUES = [250, 45, 155, 335, 95, 205, 20, 295, 125, 270, 70, 180, 315, 0, 228, 110];

/** Gives each living sequence a hue that no other has, as long as there are enough. */
export class Hues {
  constructor() {
    this.held = new Map();
    this.next = 0;
  }

  /** Keep the hues of these ids only, and give one to each that is new. */
  keep(ids) {
    const living = new Set(ids);
    for (const id of this.held.keys()) if (!living.has(id)) this.held.delete(id);
    for (const id of living) if (!this.held.has(id)) this.held.set(id, this.choose());
  }

  /** The hue of a living sequence, in degrees. */
  of(id) {
    return this.held.get(id) ?? null;
  }

  choose() {
    const taken = new Set(this.held.values());
    for (let step = 0; step < HUES.length; step += 1) {
      const hue = HUES[(this.next + step) % HUES.length];
      if (!taken.has(hue)) {
        this.next = (this.next + step + 1) % HUES.length;
        return hue;
      }
    }
    this.next += 1;
    return (this.next * 137.5) % 360;
  }
}

/** Paint an element, and what is in it, in the colour of a hue. */
export function paint(element, hue) {
  element.classList.toggle("hued", hue !== null);
  if (hue === null) element.style.removeProperty("--hue");
  else element.style.setProperty("--hue", String(hue));
}

/** The theme's colours as a canvas wants them: resolved by the browser, looked up once each. */
export class CanvasColours {
  constructor() {
    this.probe = el("span", { class: "probe", "aria-hidden": "true" });
    document.body.append(this.probe);
    this.known = new Map();
  }

  /** Forget what was looked up: the theme has changed. */
  refresh() {
    this.known.clear();
  }

  /** A colour by its variable, `--cell-free`. */
  role(variable) {
    return this.look(variable, () => {
      this.probe.style.color = `var(${variable})`;
    });
  }

  /** The colour of a hue; null is the neutral one of blocks whose owner is not known. */
  hue(hue) {
    if (hue === null) return this.role("--cell-held");
    return this.look(`hue ${hue}`, () => {
      paint(this.probe, hue);
      this.probe.style.color = "var(--seq)";
    });
  }

  look(name, dress) {
    let colour = this.known.get(name);
    if (colour === undefined) {
      dress();
      colour = getComputedStyle(this.probe).color;
      this.known.set(name, colour);
    }
    return colour;
  }
}
