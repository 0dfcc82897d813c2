/* The operator's dashboard: two charts by ECharts from the JSON in #console-data, drawn anew when
   htmx has swapped the page's figures, and a word when the server stops answering. */
(() => {
  "use strict";

  // By its name: ECharts measures words on a canvas, which knows no "inherit".
  const FONT = { fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 12 };
  const drawn = new Map(); // element -> chart

  function colour(name) {
    // Resolved by the browser to rgb(): ECharts does not read oklch() or var().
    const style = getComputedStyle(document.getElementById("console"));
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = style.getPropertyValue(name).trim() || "#888";
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
    return `rgb(${r}, ${g}, ${b})`;
  }

  function option(kind, data) {
    const text = colour("--soft");
    const line = colour("--line");
    const bars = [
      ["Succeeded", data.succeeded, "--good"],
      ["Failed (work)", data.failed_work, "--warn"],
      ["Failed (platform)", data.failed_platform, "--bad"],
      ["Cancelled", data.cancelled, "--soft"],
    ];
    const series =
      kind === "waiting"
        ? [{ type: "line", name: "In line", data: data.waiting, symbol: "none", step: "end",
            color: colour("--info"), areaStyle: { opacity: 0.15 } }]
        : bars.map(([name, values, token]) => ({
            type: "bar", stack: "all", name, data: values, color: colour(token),
          }));
    return {
      animation: false,
      textStyle: { color: text, ...FONT },
      legend: kind === "waiting" ? undefined : {
        top: 0, itemWidth: 12, itemHeight: 12, itemGap: 14,
        textStyle: { color: text, ...FONT },
      },
      grid: { left: 44, right: 12, top: kind === "waiting" ? 12 : 48, bottom: 28 },
      xAxis: {
        type: "category", data: data.hours, axisLabel: { color: text, hideOverlap: true },
        axisLine: { lineStyle: { color: line } },
      },
      yAxis: {
        type: "value", minInterval: 1, axisLabel: { color: text },
        splitLine: { lineStyle: { color: line } },
      },
      tooltip: {
        trigger: "axis", renderMode: "richText", confine: true,
        backgroundColor: colour("--card"), borderColor: line,
        textStyle: { color: colour("--strong"), ...FONT },
      },
      series,
    };
  }

  function draw() {
    const source = document.getElementById("console-data");
    if (!source || !window.echarts) return;
    const data = JSON.parse(source.textContent);
    for (const [element, chart] of drawn) {
      if (!element.isConnected) {
        chart.dispose();
        drawn.delete(element);
      }
    }
    for (const element of document.querySelectorAll("[data-console-chart]")) {
      let chart = drawn.get(element);
      if (!chart) {
        chart = window.echarts.init(element, null, { renderer: "svg" });
        drawn.set(element, chart);
        new ResizeObserver(() => chart.resize()).observe(element);
      }
      chart.setOption(option(element.dataset.consoleChart, data), true);
    }
  }

  function ours(event) {
    return event.detail?.elt?.id === "console";
  }

  function answers(yes) {
    document.getElementById("console-stale").hidden = yes;
  }

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (ours(event) && document.hidden) event.preventDefault();
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target?.id !== "console") return;
    // Signed out meanwhile: the answer is another page.
    if (event.detail.xhr.status === 200 && !event.detail.serverResponse.includes('id="console"')) {
      event.detail.shouldSwap = false;
      window.location.reload();
    }
  });
  document.addEventListener("htmx:afterSettle", () => {
    answers(true);
    draw();
  });
  for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => answers(false));
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) window.htmx?.trigger("#console", "refresh");
  });
  new MutationObserver(draw).observe(document.documentElement, {
    attributes: true, attributeFilter: ["class"],
  });
  draw();
})();
