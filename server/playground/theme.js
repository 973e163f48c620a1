// Runs before the first paint, so that a remembered theme does not flash in the other one.
"use strict";
try {
  const theme = localStorage.getItem("quire.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; then the system's preference rules.
}
