// Runs before the first paint (hence no module): a remembered theme must not flash in after the other one.
// "nanochat-pl/theme" is absent while the page follows the system.
try {
  const theme = localStorage.getItem("nanochat-pl/theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: follow the system.
}
