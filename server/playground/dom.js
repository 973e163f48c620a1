// Building the page: elements from names and text nodes from strings. Nothing in this folder parses markup.

/** An element. Attributes: `on...` are listeners, true and false set and leave out, the rest is text. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The element of the page with this id; a missing one is a mistake in index.html. */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`index.html has no element with id ${id}`);
  return element;
}

/** Change text only where it differs, so that nothing is laid out for nothing. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const figures = new Intl.NumberFormat("en-US");

/** 8192 as 8,192. */
export function grouped(number) {
  return figures.format(number);
}

/** "1 block", "2 blocks". */
export function counted(number, noun) {
  return `${grouped(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Copy text, also where the page is not served from localhost or over https and has no clipboard of its own. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = el("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("The browser refused to copy.");
}

/** A button that copies what `text()` gives and says so for a moment. */
export function copyButton(text, attributes = {}, label = "Copy") {
  const button = el("button", { type: "button", ...attributes }, label);
  let timer = 0;
  button.addEventListener("click", async () => {
    try {
      await copyText(text());
      setText(button, "Copied");
    } catch {
      setText(button, "Not copied");
    }
    clearTimeout(timer);
    timer = setTimeout(() => setText(button, label), 1600);
  });
  return button;
}

/** Whether the reader asked for less motion. */
export function prefersStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
