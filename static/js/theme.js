/* Sets light or dark before the first paint; loaded in the head, without defer, for that reason.
   The choice ("light", "dark" or "system") is kept in localStorage under "flowml-theme". */
(() => {
  "use strict";
  const KEY = "flowml-theme";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      return localStorage.getItem(KEY) || "system";
    } catch {
      return "system"; // storage is forbidden: follow the system
    }
  }

  function apply() {
    const choice = chosen();
    const theme = choice === "system" ? (dark.matches ? "dark" : "light") : choice;
    document.documentElement.setAttribute("data-bs-theme", theme);
    document.documentElement.setAttribute("data-theme-choice", choice);
    document.dispatchEvent(new CustomEvent("flowml:theme", { detail: { theme, choice } }));
  }

  function choose(choice) {
    try {
      if (choice === "system") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, choice);
    } catch {
      document.documentElement.setAttribute("data-bs-theme", choice);
    }
    apply();
  }

  dark.addEventListener("change", apply);
  window.addEventListener("storage", (event) => {
    if (event.key === KEY) apply();
  });
  window.flowmlTheme = { chosen, choose };
  apply();
})();
