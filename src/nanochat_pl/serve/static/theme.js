// Light or dark. It runs before the first paint (so it is no module): a remembered theme must not appear after the other.
// Nothing is remembered while the page follows the system.
{
  const KEY = "nanochat-pl/theme";
  const root = document.documentElement;
  try {
    const theme = localStorage.getItem(KEY);
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // Storage is switched off, so follow the system.
  }

  const toggle = () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
    // If the choice equals the system's theme, the page follows the system again.
    if (next === system) delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === system) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, next);
    } catch {
      // Without storage the choice holds until the page closes.
    }
  };
  addEventListener("DOMContentLoaded", () => document.getElementById("theme").addEventListener("click", toggle));
}
