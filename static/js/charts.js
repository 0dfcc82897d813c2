/* Charts of the model page, drawn by ECharts (SVG) from JSON that stands in the page.

   <div data-chart="roc" data-source="id-of-a-json-script"></div>, or with the JSON in data-values:
   fragments lose their scripts on the way into the page.

   Kinds: roc, curve ({series: [{name, points, figure}]}), calibration, scatter ({points}), bars
   ({edges, counts}), waterfall ({start, steps: [{name, from, to}], end}), drops ({rows: [{name,
   mean, drops}]}); x and y are the axes' names. Colours come from the page's own tokens, so a
   chart follows the theme. */
(() => {
  "use strict";

  // By its name: ECharts measures text on a canvas, where "inherit" means another font than here.
  const FONT = { fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 12 };

  function token(name) {
    // Resolved by the browser to rgb(): ECharts does not read oklch() or var().
    const probe = document.createElement("span");
    probe.className = "visually-hidden";
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = getComputedStyle(probe).color;
    probe.remove();
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return `rgba(${r}, ${g}, ${b}, ${a / 255})`;
  }

  function look() {
    return {
      text: token("--tblr-body-color"),
      muted: token("--tblr-secondary-color"),
      line: token("--tblr-border-color"),
      surface: token("--tblr-bg-surface"),
      series: ["--fl-accent-text", "--fl-lost", "--fl-early", "--fl-failed", "--fl-running",
        "--fl-succeeded", "--fl-cancelled", "--fl-waiting"].map(token),
    };
  }

  const short = (value) =>
    typeof value === "number" ? Number(value.toPrecision(4)).toLocaleString("en") : value;
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const tick = (value) => (Math.abs(value) >= 10000 ? compact.format(value) : short(value));

  function axis(colors, name, more) {
    return {
      type: "value",
      name,
      nameLocation: "middle",
      nameGap: 28,
      nameTextStyle: { color: colors.muted, ...FONT },
      axisLabel: { color: colors.muted, formatter: tick, hideOverlap: true },
      axisLine: { show: true, lineStyle: { color: colors.line } },
      splitLine: { lineStyle: { color: colors.line, opacity: 0.6 } },
      ...more,
    };
  }

  function diagonal(colors, from, to) {
    return {
      type: "line",
      name: "",
      data: [[from, from], [to, to]],
      symbol: "none",
      silent: true,
      animation: false,
      tooltip: { show: false },
      lineStyle: { type: "dashed", width: 1, color: colors.muted },
      z: 1,
    };
  }

  const UNIT = { min: 0, max: 1 };

  function lines(data, colors, kind) {
    const many = data.series.length > 1;
    const series = data.series.map((one, i) => ({
      type: "line",
      name: one.name,
      data: one.points,
      symbol: "none",
      lineStyle: { width: 2 },
      color: colors.series[i % colors.series.length],
    }));
    if (kind === "roc") series.push(diagonal(colors, 0, 1));
    return {
      legend: many
        ? {
            type: "scroll",
            top: 0,
            itemGap: 18,
            itemWidth: 16,
            itemHeight: 3,
            icon: "rect",
            textStyle: { color: colors.text },
            data: data.series.map((s) => s.name),
          }
        : undefined,
      grid: { left: 44, right: 16, top: many ? 36 : 12, bottom: 44 },
      xAxis: axis(colors, data.x, UNIT),
      yAxis: axis(colors, data.y, { ...UNIT, nameGap: 32 }),
      series,
      tooltip: tip(colors, (p) =>
        `${p.seriesName}\n${data.x} ${short(p.value[0])}, ${data.y} ${short(p.value[1])}`),
    };
  }

  function tip(colors, words) {
    // Rich text and not HTML: HTML tooltips carry inline styles, which the page's policy forbids.
    return {
      renderMode: "richText",
      trigger: "item",
      confine: true,
      backgroundColor: colors.surface,
      borderColor: colors.line,
      textStyle: { color: colors.text, ...FONT },
      formatter: words,
    };
  }

  function calibration(data, colors) {
    return {
      grid: { left: 44, right: 16, top: 12, bottom: 44 },
      xAxis: axis(colors, data.x, UNIT),
      yAxis: axis(colors, data.y, { ...UNIT, nameGap: 32 }),
      series: [
        diagonal(colors, 0, 1),
        {
          type: "line",
          data: data.points,
          encode: { x: 0, y: 1 },
          symbol: "circle",
          symbolSize: (value) => 5 + Math.min(14, Math.sqrt(value[2])),
          color: colors.series[0],
          lineStyle: { width: 1.5 },
        },
      ],
      tooltip: tip(colors, (p) =>
        `Said ${short(p.value[0])}, came true ${short(p.value[1])}\n${p.value[2]} rows`),
    };
  }

  function scatter(data, colors) {
    const all = data.points.flat();
    const low = Math.min(...all);
    const high = Math.max(...all);
    return {
      grid: { left: 64, right: 16, top: 12, bottom: 44 },
      xAxis: axis(colors, data.x, { scale: true }),
      yAxis: axis(colors, data.y, { scale: true, nameGap: 50 }),
      series: [
        diagonal(colors, low, high),
        {
          type: "scatter",
          data: data.points,
          symbolSize: 6,
          color: colors.series[0],
          itemStyle: { opacity: 0.55 },
          animation: false,
        },
      ],
      tooltip: tip(colors, (p) => `True ${short(p.value[0])}\nPredicted ${short(p.value[1])}`),
    };
  }

  function bars(data, colors) {
    const labels = data.counts.map((_, i) => tick((data.edges[i] + data.edges[i + 1]) / 2));
    return {
      grid: { left: 48, right: 16, top: 12, bottom: 44 },
      xAxis: axis(colors, data.x, {
        type: "category",
        data: labels,
        splitLine: { show: false },
        axisLabel: { color: colors.muted, hideOverlap: true },
      }),
      yAxis: axis(colors, data.y, { nameGap: 34, min: 0 }),
      series: [{ type: "bar", data: data.counts, barCategoryGap: "8%", color: colors.series[0] }],
      tooltip: tip(colors, (p) =>
        `${short(data.edges[p.dataIndex])} to ${short(data.edges[p.dataIndex + 1])}\n` +
        `${p.value} rows`),
    };
  }

  function sideways(names, colors, more) {
    // Bars that lie, the first on top, with room for the names.
    return axis(colors, "", {
      type: "category",
      inverse: true,
      data: names,
      splitLine: { show: false },
      axisLabel: { color: colors.text, width: 160, overflow: "truncate" },
      ...more,
    });
  }

  function waterfall(data, colors) {
    // From the top: where it starts, what each step adds, where it ends. Each bar stands on one
    // that is not seen; both begin at a round number, which the axis then adds again.
    const bars = [
      { name: data.start.name, to: data.start.value, end: true },
      ...data.steps,
      { name: data.end.name, to: data.end.value, end: true },
    ];
    const all = bars.flatMap((b) => (b.end ? [b.to] : [b.from, b.to]));
    const range = Math.max(...all) - Math.min(...all) || Math.abs(all[0]) || 1;
    const step = 10 ** Math.floor(Math.log10(range));
    const low = (Math.floor(Math.min(...all) / step) - 1) * step;
    const up = colors.series[0];
    const down = colors.series[3];
    const hidden = bars.map((b) => (b.end ? 0 : Math.min(b.from, b.to) - low));
    const shown = bars.map((b) => ({
      value: b.end ? b.to - low : Math.abs(b.to - b.from),
      itemStyle: { color: b.end ? colors.muted : b.to >= b.from ? up : down },
    }));
    const name = (value) => tick(Number((value + low).toPrecision(12)));
    return {
      grid: { left: 8, right: 24, top: 8, bottom: 44, containLabel: true },
      xAxis: axis(colors, data.x, {
        min: 0,
        axisLabel: { color: colors.muted, formatter: name, hideOverlap: true },
      }),
      yAxis: sideways(bars.map((b) => b.name), colors),
      series: [
        { type: "bar", stack: "all", data: hidden, silent: true, color: "transparent" },
        { type: "bar", stack: "all", data: shown, barCategoryGap: "30%", barMinHeight: 1 },
      ],
      tooltip: tip(colors, (p) => {
        const bar = bars[p.dataIndex];
        const change = bar.to - bar.from;
        return bar.end
          ? `${bar.name}\n${short(bar.to)}`
          : `${bar.name}\n${change > 0 ? "+" : ""}${short(change)}, to ${short(bar.to)}`;
      }),
    };
  }

  function drops(data, colors) {
    // A bar for the mean, and a dot for each time: their spread is what the mean may be off by.
    return {
      grid: { left: 8, right: 24, top: 8, bottom: 44, containLabel: true },
      xAxis: axis(colors, data.x),
      yAxis: sideways(data.rows.map((row) => row.name), colors),
      series: [
        {
          type: "bar",
          data: data.rows.map((row) => row.mean),
          barCategoryGap: "30%",
          color: colors.series[0],
        },
        {
          type: "scatter",
          data: data.rows.flatMap((row, i) => row.drops.map((drop) => [drop, i])),
          symbolSize: 5,
          color: colors.text,
          itemStyle: { opacity: 0.7 },
          animation: false,
          z: 3,
        },
      ],
      tooltip: tip(colors, (p) => {
        const row = data.rows[p.seriesType === "bar" ? p.dataIndex : p.value[1]];
        return `${row.name}\n${short(p.seriesType === "bar" ? row.mean : p.value[0])}`;
      }),
    };
  }

  // Lines over time: {labels, series: [{name, values}]}, null where there is no value.
  function steps(data, colors) {
    return {
      legend: {
        type: "scroll",
        top: 0,
        itemGap: 18,
        itemWidth: 16,
        itemHeight: 3,
        icon: "rect",
        textStyle: { color: colors.text },
      },
      grid: { left: 56, right: 16, top: 36, bottom: 44 },
      xAxis: axis(colors, data.x, {
        type: "category",
        data: data.labels,
        boundaryGap: false,
        splitLine: { show: false },
        axisLabel: { color: colors.muted, hideOverlap: true },
      }),
      yAxis: axis(colors, data.y, { nameGap: 42, min: 0 }),
      series: data.series.map((one, i) => ({
        type: "line",
        name: one.name,
        data: one.values,
        symbol: "circle",
        symbolSize: 4,
        showAllSymbol: true,
        lineStyle: { width: 2 },
        color: colors.series[i % colors.series.length],
      })),
      tooltip: tip(colors, (p) => `${p.seriesName}\n${p.name}: ${short(p.value)} ${data.y}`),
    };
  }

  function option(kind, data, colors) {
    if (kind === "steps") return steps(data, colors);
    if (kind === "waterfall") return waterfall(data, colors);
    if (kind === "drops") return drops(data, colors);
    if (kind === "calibration") return calibration(data, colors);
    if (kind === "scatter") return scatter(data, colors);
    if (kind === "bars") return bars(data, colors);
    return lines(data, colors, kind);
  }

  const drawn = new Map(); // element -> chart

  function draw(element, colors) {
    const source = document.getElementById(element.dataset.source);
    const text = element.dataset.values || source?.textContent;
    if (!text) return;
    let chart = drawn.get(element);
    if (!chart) {
      chart = window.echarts.init(element, null, { renderer: "svg" });
      drawn.set(element, chart);
      new ResizeObserver(() => chart.resize()).observe(element);
    }
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    chart.setOption(
      {
        animation: !calm,
        textStyle: { color: colors.text, ...FONT },
        ...option(element.dataset.chart, JSON.parse(text), colors),
      },
      true,
    );
  }

  function drawAll(root = document) {
    if (!window.echarts) return;
    const colors = look();
    for (const element of root.querySelectorAll("[data-chart]")) draw(element, colors);
    for (const button of root.querySelectorAll("[data-chart-png]")) button.hidden = false;
  }

  // An SVG chart becomes a PNG by way of a canvas, twice as large as on the screen.
  function download(id) {
    const chart = drawn.get(document.getElementById(id));
    const svg = chart?.getDom().querySelector("svg");
    if (!svg) return;
    const copy = svg.cloneNode(true);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const text = new XMLSerializer().serializeToString(copy);
    const picture = new Image();
    picture.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = svg.clientWidth * 2;
      canvas.height = svg.clientHeight * 2;
      const context = canvas.getContext("2d");
      context.fillStyle = look().surface;
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      const link = document.createElement("a");
      link.href = canvas.toDataURL("image/png");
      link.download = `${id}.png`;
      link.click();
    };
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-chart-png]");
    if (button) download(button.dataset.chartPng);
  });
  document.addEventListener("flowml:theme", () => drawAll());
  window.flowmlCharts = drawAll;
  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", () => drawAll());
  } else drawAll();
})();
