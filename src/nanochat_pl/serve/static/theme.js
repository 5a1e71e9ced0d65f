// Light or dark. Runs before the first paint (hence no module): a remembered theme must not flash in after the other one.
// Nothing is remembered while the page follows the system.
{
  const KEY = "nanochat-pl/theme";
  const root = document.documentElement;
  try {
    const theme = localStorage.getItem(KEY);
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // Storage is switched off: follow the system.
  }

  const toggle = () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
    // Back at the system's own theme the page follows it again.
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
