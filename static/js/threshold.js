/* The threshold of a binary model: figures and confusion matrix follow the slider, computed here from
   the points that stand in the page. The chosen one is kept in the address. */
(() => {
  "use strict";

  const box = document.getElementById("threshold");
  const told = JSON.parse(document.getElementById("threshold-data").textContent);
  const slider = document.getElementById("threshold-slider");
  const field = box.querySelector("input[name=threshold]");
  const chart = document.getElementById("threshold-chart");
  const drawn = JSON.parse(document.getElementById(chart.dataset.source).textContent);
  const presets = box.querySelector("[data-threshold-presets]");
  let keep = 0;
  let frame = 0;

  const percent = (share) => (share === null ? "–" : `${Number((share * 100).toFixed(1))}%`);
  const digits = (value, n) => (value === null ? "–" : value.toFixed(n));

  // The same as training/thresholds.py.
  function figures(threshold) {
    let found = 0;
    let alarms = 0;
    for (const [value, falsely, rightly] of told.points) {
      if (value !== null && value < threshold) break;
      found = rightly;
      alarms = falsely;
    }
    const tp = Math.round(found * told.positives);
    const fp = Math.round(alarms * told.negatives);
    const fn = told.positives - tp;
    const tn = told.negatives - fp;
    const total = told.positives + told.negatives;
    const precision = tp + fp ? tp / (tp + fp) : null;
    return {
      tp,
      fp,
      fn,
      tn,
      precision,
      recall: tp / told.positives,
      f1: tp + fp + fn ? (2 * tp) / (2 * tp + fp + fn) : null,
      accuracy: (tp + tn) / total,
      named: (tp + fp) / total,
      lift: precision === null ? null : precision / (told.positives / total),
    };
  }

  function show(threshold) {
    const now = figures(threshold);
    for (const cell of box.querySelectorAll("[data-cell]")) {
      const count = now[cell.dataset.cell];
      cell.textContent = count.toLocaleString("en");
      const row = /t[np]|f[np]/.test(cell.dataset.cell)
        ? ["tn", "fp"].includes(cell.dataset.cell) ? told.negatives : told.positives
        : 1;
      cell.className = `depth-${count ? Math.ceil((5 * count) / row) : 0}`;
      if (cell.dataset.cell[0] === "t") cell.classList.add("is-right");
    }
    for (const place of box.querySelectorAll("[data-figure]")) {
      const name = place.dataset.figure;
      const value = now[name];
      place.textContent =
        name === "f1" ? digits(value, 3) : name === "lift" ? digits(value, 2) : percent(value);
    }
    slider.setAttribute(
      "aria-valuetext",
      `${threshold}: precision ${percent(now.precision)}, recall ${percent(now.recall)}`,
    );
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      chart.dataset.values = JSON.stringify({ ...drawn, mark: threshold });
      window.flowmlChart?.(chart);
    });
  }

  function choose(value) {
    const threshold = Math.min(1, Math.max(0, Number(value)));
    if (Number.isNaN(threshold) || value === "") return;
    if (slider.value !== String(value)) slider.value = threshold;
    if (Number(field.value) !== threshold) field.value = threshold;
    show(threshold);
    clearTimeout(keep); // browsers allow only so many a second
    keep = setTimeout(() => {
      const address = new URL(location.href);
      address.searchParams.set("threshold", threshold);
      history.replaceState(history.state, "", address);
    }, 250);
  }

  slider.hidden = false;
  presets.hidden = false;
  slider.addEventListener("input", () => choose(slider.value));
  field.addEventListener("input", () => choose(field.value));
  field.form.addEventListener("submit", (event) => event.preventDefault());
  presets.addEventListener("click", (event) => {
    const preset = event.target.closest("[data-threshold]");
    if (preset) choose(preset.dataset.threshold);
  });
  show(Number(field.value));
})();
