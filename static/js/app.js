/* What every page has: theme button, relative times, copy buttons, uploads with progress, toasts,
   a leaderboard that slides. Each is an addition: without this file the pages still work. */
(() => {
  "use strict";

  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  // ---- Toasts --------------------------------------------------------------------------------

  function icon(name) {
    const sprite = document.body.dataset.icons;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "icon");
    svg.setAttribute("aria-hidden", "true");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    use.setAttribute("href", `${sprite}#${name}`);
    svg.append(use);
    return svg;
  }

  function toast(text, kind = "problem") {
    const holder = document.getElementById("toasts");
    if (!holder || !text) return;
    const box = document.createElement("div");
    box.className = `notice notice-${kind}`;
    box.append(icon(kind === "success" ? "circle-check" : "alert-circle"));
    const words = document.createElement("p");
    words.textContent = text;
    const close = document.createElement("button");
    close.type = "button";
    close.className = "icon-button";
    close.setAttribute("aria-label", "Dismiss");
    close.append(icon("x"));
    close.addEventListener("click", () => box.remove());
    box.append(words, close);
    holder.append(box);
    while (holder.children.length > 3) holder.firstElementChild.remove();
    if (kind === "success") setTimeout(() => box.remove(), 6000);
  }

  function problemOf(text, status) {
    try {
      const problem = JSON.parse(text);
      if (problem && problem.detail) return problem.detail;
    } catch {
      /* not a problem document */
    }
    if (status === 403) return "Your role in this organization is too low for this.";
    if (status === 404) return "This no longer exists. Reload the page to see what does.";
    if (status === 413) return "The file is larger than this installation accepts.";
    return `That did not work (the server answered ${status}). Try again, or reload the page.`;
  }

  document.addEventListener("htmx:responseError", (event) => {
    const xhr = event.detail.xhr;
    toast(problemOf(xhr.responseText, xhr.status));
  });
  document.addEventListener("htmx:sendError", (event) => {
    // A background refresh that fails says so by the "reconnecting" note, not by a toast.
    const verb = event.detail.requestConfig?.verb;
    if (verb && verb !== "get") toast("The server can't be reached. Nothing was changed.");
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    // Signed out meanwhile: the sign-in page must not land inside this one.
    if (new URL(event.detail.xhr.responseURL, location.href).pathname === "/sign-in") {
      event.detail.shouldSwap = false;
      location.reload();
      return;
    }
    // A dialog that asks stays until it is answered; what lies around it is renewed afterwards.
    const renews = event.detail.requestConfig?.verb === "get";
    if (renews && event.detail.target.querySelector?.(":popover-open")) {
      event.detail.shouldSwap = false;
      return;
    }
    // 422 carries a form with its problems: show it.
    if (event.detail.xhr.status === 422) {
      event.detail.shouldSwap = true;
      event.detail.isError = false;
    }
  });
  // What somebody has unfolded stays so when the part of the page around it is renewed.
  let unfolded = [];
  document.addEventListener("htmx:beforeSwap", (event) => {
    unfolded = [...event.detail.target.querySelectorAll("details[id][open]")].map((one) => one.id);
  });
  document.addEventListener("htmx:afterSwap", () => {
    for (const id of unfolded) document.getElementById(id)?.setAttribute("open", "");
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    // What is folded away is fetched when it is opened, not before.
    if (event.detail.elt.closest("details:not([open])")) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-dismiss]");
    if (button) button.closest(".notice")?.remove();
  });

  // ---- Theme ---------------------------------------------------------------------------------

  const NEXT = { system: "light", light: "dark", dark: "system" };
  const SHAPE = { system: "device-desktop", light: "sun", dark: "moon" };

  function paintTheme() {
    const choice = document.documentElement.dataset.themeChoice || "system";
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.hidden = false;
      button.setAttribute("aria-label", `Theme: ${choice}. Switch to ${NEXT[choice]}`);
      button.title = `Theme: ${choice}`;
      button.replaceChildren(icon(SHAPE[choice]));
    }
  }

  document.addEventListener("flowml:theme", paintTheme);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    window.flowmlTheme.choose(NEXT[window.flowmlTheme.chosen()] || "system");
  });

  // ---- Times ---------------------------------------------------------------------------------

  function ago(date) {
    const seconds = Math.round((Date.now() - date.getTime()) / 1000);
    const lang = document.documentElement.lang || "en";
    if (lang !== "en" && seconds < 86400 * 14) {
      const say = new Intl.RelativeTimeFormat(lang, { numeric: "auto", style: "short" });
      if (seconds < 60) return say.format(-seconds, "second");
      if (seconds < 3600) return say.format(-Math.floor(seconds / 60), "minute");
      if (seconds < 86400) return say.format(-Math.floor(seconds / 3600), "hour");
      return say.format(-Math.floor(seconds / 86400), "day");
    }
    if (seconds < 10) return "just now";
    if (seconds < 60) return `${seconds} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
    if (seconds < 86400 * 14) {
      const days = Math.floor(seconds / 86400);
      return days === 1 ? "yesterday" : `${days} days ago`;
    }
    return date.toLocaleDateString(lang === "en" ? undefined : lang, { year: "numeric", month: "short", day: "numeric" });
  }

  function paintTimes(root = document) {
    for (const element of root.querySelectorAll("time[data-ago]")) {
      const date = new Date(element.dateTime);
      if (Number.isNaN(date.getTime())) continue;
      element.textContent = ago(date);
      element.title = date.toLocaleString();
    }
  }

  function clockText(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    const min = Math.floor(s / 60);
    if (min < 60) return `${min} min ${s % 60} s`;
    return `${Math.floor(min / 60)} h ${min % 60} min`;
  }

  // <span data-clock-from="iso" [data-clock-of="seconds"]> counts while something runs.
  function paintClocks() {
    for (const element of document.querySelectorAll("[data-clock-from]")) {
      const from = new Date(element.dataset.clockFrom).getTime();
      if (Number.isNaN(from)) continue;
      element.textContent = clockText((Date.now() - from) / 1000);
    }
  }

  setInterval(() => paintTimes(), 15000);
  setInterval(paintClocks, 1000);

  // ---- Copy ----------------------------------------------------------------------------------

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    const text = (source ? source.innerText : button.dataset.copyText || "").trim();
    try {
      await navigator.clipboard.writeText(text);
      said(button, "Copied");
    } catch {
      if (source) window.getSelection().selectAllChildren(source);
      said(button, "Press Ctrl+C");
    }
  });

  function said(button, words) {
    const label = button.querySelector("[data-copy-label]") || button;
    const before = label.dataset.before || label.textContent;
    label.dataset.before = before;
    label.textContent = words;
    clearTimeout(Number(label.dataset.timer));
    label.dataset.timer = String(setTimeout(() => (label.textContent = before), 1800));
  }

  // ---- Upload --------------------------------------------------------------------------------

  const MB = 1000 * 1000;

  function bytes(n) {
    if (n >= 1000 * MB) return `${(n / (1000 * MB)).toFixed(2)} GB`;
    if (n >= MB) return `${(n / MB).toFixed(1)} MB`;
    return `${Math.max(1, Math.round(n / 1000))} kB`;
  }

  function setProblem(form, text) {
    const place = form.querySelector("[data-upload-problem]");
    if (!place) return;
    place.hidden = !text;
    place.querySelector("p").textContent = text;
  }

  function upload(form, file) {
    const limit = Number(form.dataset.maxBytes || 0);
    setProblem(form, "");
    if (limit && file.size > limit) {
      setProblem(
        form,
        `${file.name} has ${bytes(file.size)}; this installation accepts up to ${bytes(limit)}.`,
      );
      return;
    }
    const panel = form.querySelector("[data-upload-progress]");
    const bar = panel.querySelector("progress");
    const words = panel.querySelector("[data-upload-words]");
    const stop = panel.querySelector("[data-upload-stop]");
    const idle = form.querySelector("[data-upload-idle]");
    const body = new FormData(form);
    body.set("file", file, file.name);
    const xhr = new XMLHttpRequest();
    const started = Date.now();
    const end = (text) => {
      panel.hidden = true;
      idle.hidden = false;
      setProblem(form, text);
    };
    xhr.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      bar.max = event.total;
      bar.value = event.loaded;
      const seconds = (Date.now() - started) / 1000;
      const left = ((event.total - event.loaded) * seconds) / Math.max(event.loaded, 1);
      words.textContent =
        `${bytes(event.loaded)} of ${bytes(event.total)}` +
        (seconds > 2 && left > 2 ? `, about ${clockText(left)} left` : "");
    });
    xhr.upload.addEventListener("load", () => {
      bar.removeAttribute("value");
      words.textContent = "Sent. Checking the file…";
    });
    xhr.addEventListener("load", () => {
      let answer = {};
      try {
        answer = JSON.parse(xhr.responseText);
      } catch {
        /* a proxy's own page, perhaps */
      }
      if (xhr.status < 300 && answer.location) location.assign(answer.location);
      else end(answer.detail || problemOf(xhr.responseText, xhr.status));
    });
    xhr.addEventListener("error", () =>
      end("The connection broke before the file was whole. Nothing was kept: try again."),
    );
    xhr.addEventListener("abort", () => end(""));
    stop.onclick = () => xhr.abort();
    idle.hidden = true;
    panel.hidden = false;
    bar.removeAttribute("value");
    panel.querySelector("[data-upload-name]").textContent = file.name;
    xhr.open("POST", form.action);
    xhr.setRequestHeader("Accept", "application/json");
    xhr.send(body);
  }

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-upload]");
    if (!form) return;
    const file = form.querySelector("input[type=file]").files[0];
    if (!file) return;
    event.preventDefault();
    upload(form, file);
  });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-upload]");
    // Choosing a file is the whole decision; a second button would only be a hurdle.
    if (form && event.target.type === "file" && event.target.files[0]) {
      upload(form, event.target.files[0]);
    }
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer || ![...event.dataTransfer.types].includes("Files")) return;
      const zone = event.target.closest?.("[data-drop]");
      event.preventDefault(); // a file that misses the zone must not replace the page
      for (const other of document.querySelectorAll("[data-drop]")) {
        other.classList.toggle("is-over", other === zone && kind !== "dragleave" && kind !== "drop");
      }
      if (kind !== "drop" || !zone) return;
      const file = event.dataTransfer.files[0];
      const form = zone.closest("form[data-upload]");
      const input = zone.querySelector("input[type=file]");
      if (file && form) upload(form, file);
      else if (file && input) {
        input.files = event.dataTransfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
      }
    });
  }

  // A chosen picture is shown, where the browser can.
  document.addEventListener("change", (event) => {
    const shown = event.target.type === "file" && event.target.parentElement.querySelector("[data-preview]");
    if (!shown) return;
    shown.hidden = true;
    const file = event.target.files[0];
    if (!file) return;
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      if (event.target.files[0] === file) shown.src = reader.result;
    });
    shown.onload = () => (shown.hidden = false);
    reader.readAsDataURL(file);
  });

  // Minutes typed under "My own" are a choice of it.
  document.addEventListener("input", (event) => {
    const radio = event.target.closest(".choice")?.querySelector("input[type=radio]");
    if (radio && event.target !== radio) radio.checked = true;
  });

  // ---- Forms ---------------------------------------------------------------------------------

  // A plain form is sent once, however often its button is pressed.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (event.defaultPrevented || form.method !== "post" || form.hasAttribute("hx-post")) return;
    if (form.dataset.sent) {
      event.preventDefault();
      return;
    }
    if (form.dataset.download !== undefined) return; // stays on the page and may be used again
    form.dataset.sent = "1";
    for (const button of form.querySelectorAll("button:not([type=button])")) {
      button.setAttribute("aria-busy", "true");
    }
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
    for (const button of document.querySelectorAll("[aria-busy]")) {
      button.removeAttribute("aria-busy");
    }
  });

  // ---- Lists whose rows slide to their new places ---------------------------------------------

  const places = new WeakMap();

  function rowsOf(root) {
    return root.matches?.("[data-slide]") ? [root] : [...root.querySelectorAll("[data-slide]")];
  }

  document.addEventListener("htmx:beforeSwap", (event) => {
    const before = new Map();
    for (const list of rowsOf(event.detail.target)) {
      for (const row of list.querySelectorAll("[data-row]")) {
        before.set(row.dataset.row, row.getBoundingClientRect().top);
      }
    }
    places.set(event.detail.target, { tops: before, best: bestOf(event.detail.target) });
  });

  function bestOf(root) {
    return rowsOf(root)[0]?.querySelector("[data-best]")?.dataset.best || "";
  }

  document.addEventListener("htmx:afterSwap", (event) => {
    const target = event.detail.target;
    const was = places.get(target);
    if (!was) return;
    places.delete(target);
    for (const list of rowsOf(target)) {
      if (calm.matches) continue;
      for (const row of list.querySelectorAll("[data-row]")) {
        const top = was.tops.get(row.dataset.row);
        if (top === undefined) {
          if (was.tops.size) row.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 350 });
          continue;
        }
        const moved = top - row.getBoundingClientRect().top;
        if (Math.abs(moved) < 2) continue;
        row.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], {
          duration: 350,
          easing: "ease-out",
        });
      }
    }
    const best = bestOf(target);
    const crier = document.getElementById("announce");
    if (crier && best && best !== was.best) crier.textContent = `New best: ${best}`;
  });

  // ---- Models that are ticked, to be compared ---------------------------------------------------

  const MOST_COMPARED = 6;
  const ticked = new Set(); // stays when the leaderboard is drawn anew

  function paintTicks(root = document) {
    for (const box of root.querySelectorAll("[data-compare]")) {
      if (ticked.has(box.value)) box.checked = true;
      else if (box.checked) ticked.add(box.value); // as the browser kept it over a reload
    }
    for (const button of root.querySelectorAll("[data-compare-button]")) {
      const boxes = [...button.form.querySelectorAll("[data-compare]")];
      const chosen = boxes.filter((box) => box.checked).length;
      button.disabled = chosen < 2;
      for (const box of boxes) box.disabled = !box.checked && chosen >= MOST_COMPARED;
      const words = button.form.querySelector("[data-compare-words]");
      if (chosen >= MOST_COMPARED) words.textContent = `${chosen} chosen, which is the most.`;
      else if (chosen === 1) words.textContent = "One chosen: tick another one.";
      else if (chosen) words.textContent = `${chosen} chosen.`;
      else words.textContent = "Tick two models or more to see them side by side.";
    }
  }

  document.addEventListener("change", (event) => {
    const box = event.target.closest("[data-compare]");
    if (box) {
      if (box.checked) ticked.add(box.value);
      else ticked.delete(box.value);
      paintTicks();
    }
    // A choice that is the whole form.
    if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
  });

  // ---- Sliders beside fields of numbers: with the mouse alone, the field itself has the keyboard ----

  function paintSliders(root = document) {
    for (const slider of root.querySelectorAll("[data-moves]")) slider.hidden = false;
  }

  document.addEventListener("input", (event) => {
    const slider = event.target.closest("[data-moves]");
    if (slider) {
      event.stopPropagation();
      const field = document.getElementById(slider.dataset.moves);
      field.value = slider.value;
      field.dispatchEvent(new Event("input", { bubbles: true }));
      return;
    }
    const beside = event.target.id && document.querySelector(`[data-moves="${event.target.id}"]`);
    if (beside && event.target.value !== "") beside.value = event.target.value;
  });

  // ---- Charts are loaded only where a page has one ---------------------------------------------

  function paint(root = document) {
    paintTimes(root);
    paintClocks();
    paintTicks(root);
    paintSliders(root);
    if (window.flowmlCharts) window.flowmlCharts(root);
  }

  document.addEventListener("htmx:load", (event) => paint(event.target));

  function start() {
    paintTheme();
    paint();
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
  window.flowmlToast = toast;
})();
