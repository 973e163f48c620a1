// Light or dark: the system's preference until the reader chooses; the choice is remembered.

import { byId } from "./dom.js";

const system = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

/** `onChange()` hears when colours have changed. */
export function watchTheme(onChange) {
  const button = byId("theme");
  const show = () => {
    button.title = isDark() ? "Switch to the light theme" : "Switch to the dark theme";
    button.setAttribute("aria-label", button.title);
    onChange();
  };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("quire.theme", theme);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}
