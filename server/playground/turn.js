// One turn of the conversation as it stands on the page.

import { paint } from "./colours.js";
import { copyButton, el, grouped } from "./dom.js";
import { duration, explanation } from "./explained.js";
import { MarkdownView } from "./markdown.js";

/** What the figures under an answer say: time to the first token, speed, tokens, why it ended. */
function statisticsLine({ ttft, perSecond, usage, reason }) {
  const parts = [];
  if (ttft !== null) parts.push(`first token ${duration(ttft)}`);
  if (perSecond !== null) parts.push(`${perSecond.toFixed(1)} tokens/s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const from = cached ? ` (${grouped(cached)} cached)` : "";
    parts.push(`${grouped(usage.prompt_tokens)} in${from}, ${grouped(usage.completion_tokens)} out`);
  }
  if (reason === "length") parts.push("cut at max_tokens");
  else if (reason === "stopped") parts.push("stopped by you");
  else if (reason && reason !== "stop") parts.push(reason);
  return parts;
}

/** A question, with its edit, copy and delete. `actions`: onEdit(turn, text), onRemove(turn). */
export class Question {
  constructor(text, actions) {
    this.role = "user";
    this.text = text;
    this.actions = actions;
    this.body = el("div", { class: "turn-body" });
    this.tools = el(
      "div",
      { class: "tools" },
      el("button", { type: "button", class: "quiet", onclick: () => this.edit() }, "Edit"),
      copyButton(() => this.text, { class: "quiet" }),
      el("button", { type: "button", class: "quiet", onclick: () => actions.onRemove(this) }, "Delete"),
    );
    this.root = el("article", { class: "turn question", "aria-label": "You" }, this.body, this.tools);
    this.show();
  }

  show() {
    this.tools.hidden = false;
    this.body.replaceChildren(this.text);
  }

  /** Turn the text into a box; Enter sends what it says then, Escape leaves it as it was. */
  edit() {
    const box = el("textarea", { class: "edit", rows: "1", "aria-label": "Edit your message" });
    box.value = this.text;
    const send = () => {
      const text = box.value.trim();
      if (text) this.actions.onEdit(this, text);
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.show();
      }
    });
    this.tools.hidden = true;
    this.body.replaceChildren(
      box,
      el(
        "div",
        { class: "edit-tools" },
        el("span", { class: "hint" }, "Everything after this message is asked anew."),
        el("button", { type: "button", class: "plain", onclick: () => this.show() }, "Cancel"),
        el("button", { type: "button", class: "strong", onclick: send }, "Send"),
      ),
    );
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }
}

/** An answer while it grows and after. `actions`: onAgain(turn). */
export class Answer {
  constructor(actions) {
    this.role = "assistant";
    this.text = "";
    this.statistics = null;
    this.explanation = null;
    this.error = null;
    this.body = el("div", { class: "turn-body prose" });
    this.view = new MarkdownView(this.body);
    this.failure = el("div", { class: "failure", role: "alert", hidden: true });
    this.figures = el("div", { class: "figures-line" });
    this.again = el("button", { type: "button", class: "quiet", onclick: () => actions.onAgain(this) }, "Regenerate");
    this.tools = el("div", { class: "tools" }, this.again, copyButton(() => this.text, { class: "quiet" }));
    this.actions = actions;
    this.foot = el("footer", { class: "turn-foot" }, this.figures, this.tools);
    this.root = el("article", { class: "turn answer", "aria-label": "Answer" }, this.body, this.failure, this.foot);
    this.frame = 0;
  }

  /** The answer begins; assistive technology waits until it is whole. */
  begin() {
    this.root.classList.add("growing");
    this.root.setAttribute("aria-busy", "true");
    this.tools.hidden = true;
  }

  grow(text) {
    this.text += text;
    if (!this.frame) this.frame = requestAnimationFrame(() => this.render());
  }

  render() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.view.show(this.text);
    this.onRender?.();
  }

  showFigures(statistics) {
    this.statistics = statistics;
    this.figures.replaceChildren(...statisticsLine(statistics).map((part) => el("span", {}, part)));
  }

  /** What the answer told of itself. */
  explain(told) {
    this.explanation = told;
    const shown = explanation(told);
    if (shown) this.foot.append(shown);
  }

  /** Paint the margin in the colour of the sequence that computes this answer. */
  colour(hue) {
    paint(this.root, hue);
  }

  end() {
    this.render();
    this.root.classList.remove("growing");
    this.root.setAttribute("aria-busy", "false");
    this.tools.hidden = false;
  }

  /** Say what went wrong, where it went wrong, with a way to try again. */
  fail(error) {
    this.error = error;
    const wait = error.retryAfter ? ` The server asks to wait ${grouped(error.retryAfter)} s.` : "";
    const code = error.code ? el("code", {}, error.code) : null;
    this.failure.replaceChildren(
      el("p", {}, error.message + wait, " ", code),
      el("button", { type: "button", class: "plain", onclick: () => this.actions.onAgain(this) }, "Try again"),
    );
    this.failure.hidden = false;
    this.again.hidden = true;
  }
}
