// Light or dark before anything is painted; the system's choice where nothing was chosen here.
(() => {
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("pop-theme"); } catch { return null; } };
  const show = (theme) => { if (theme) root.dataset.theme = theme; else delete root.dataset.theme; };
  show(stored());
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      const dark = stored() ? stored() === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      const next = dark ? "light" : "dark";
      try { localStorage.setItem("pop-theme", next); } catch { /* it lasts for this page */ }
      show(next);
    });
  });
})();
