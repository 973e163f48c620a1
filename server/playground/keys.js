// The keyboard: what works anywhere on the page. Enter and the arrows belong to the boxes themselves.

import { byId } from "./dom.js";

/** Whether a key press is text. */
function isTyping(target) {
  return target.closest("input, textarea, select, [contenteditable]") !== null;
}

export function watchKeys({ chat, composer, togglePool }) {
  const dialog = byId("keys");
  const help = () => (dialog.open ? dialog.close() : dialog.showModal());
  byId("keys-switch").addEventListener("click", help);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chat.busy && !dialog.open) {
      chat.stop();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.key === "/") composer.focus();
    else if (event.key === "?") help();
    else if (event.key === "b") togglePool();
    else if (event.key === "t") byId("theme").click();
    else return;
    event.preventDefault();
  });
}
