/* Charts, drawn by ECharts (SVG) from JSON that stands in the page.

   <div data-chart="roc" data-source="id-of-a-json-script"></div>, or with the JSON in data-values:
   fragments lose their scripts on the way into the page. Below each chart two buttons are put that
   download it, as a picture and as a CSV of the very data that it is drawn from.

   <div data-download="name">, around a picture that the server drew (SVG), a table, or both, gets the
   same buttons, in its [data-download-tools] or <details> if it has one. A cell's data-value is what
   stands in the CSV, where the page writes it for people. This works without ECharts, too.

   Kinds: roc, curve ({series: [{name, points, figure}]}, both axes from 0 to 1), xy (the same with
   axes as the data are; a series may have a band [[x, low, high]] or be thin, categories names the
   places of x, mark is an x with a line), calibration ({series: [{name, points: [[said, true, rows]]}]}), scatter ({points},
   or {series}), bars ({edges, counts}), steps ({labels, series: [{name, values}]}), waterfall
   ({start, steps: [{name, from, to}], end}), drops ({rows: [{name, mean, drops}]});
   x and y are the axes' names. Colours come from the page's own tokens, so a chart follows the
   theme. */
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

  function legend(series, colors) {
    if (series.length < 2) return undefined;
    return {
      type: "scroll",
      top: 0,
      itemGap: 18,
      itemWidth: 16,
      itemHeight: 3,
      icon: "rect",
      textStyle: { color: colors.text },
      data: series.map((s) => s.name),
    };
  }

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
      legend: legend(data.series, colors),
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

  // Lines over any numbers, or over categories. Thin lines stand behind and have no legend.
  function xy(data, colors) {
    const named = data.series.filter((one) => !one.thin);
    const colorOf = (one) =>
      one.thin ? colors.muted : colors.series[named.indexOf(one) % colors.series.length];
    const series = data.series.flatMap((one) => {
      const line = {
        type: "line",
        name: one.name,
        data: one.points,
        symbol: one.thin ? "none" : "circle",
        symbolSize: 4,
        showSymbol: !one.thin && one.points.length < 40,
        silent: Boolean(one.thin),
        animation: !one.thin,
        lineStyle: { width: one.thin ? 1 : 2, opacity: one.thin ? 0.25 : 1 },
        color: colorOf(one),
        z: one.thin ? 1 : 3,
      };
      if (!one.band) return [line];
      // Two lines on top of each other: the lower is not seen, the area above it is the band.
      const edge = {
        type: "line",
        stack: `band of ${one.name}`,
        stackStrategy: "all",
        symbol: "none",
        silent: true,
        tooltip: { show: false },
        lineStyle: { opacity: 0 },
        color: colorOf(one),
      };
      return [
        { ...edge, data: one.band.map(([x, low]) => [x, low]) },
        {
          ...edge,
          data: one.band.map(([x, low, high]) => [x, high - low]),
          areaStyle: { opacity: 0.15 },
        },
        line,
      ];
    });
    if (data.even) series.push(diagonal(colors, ...data.even));
    if (data.mark !== undefined && series.length) {
      const at = { symbol: "none", silent: true, label: { show: false } };
      const lineStyle = { color: colors.text, type: "dashed", width: 1 };
      series[series.length - 1].markLine = { ...at, lineStyle, data: [{ xAxis: data.mark }] };
    }
    const across = data.categories
      ? {
          type: "category",
          data: data.categories,
          splitLine: { show: false },
          axisLabel: { color: colors.muted, hideOverlap: true, width: 90, overflow: "truncate" },
        }
      : { scale: true, ...data.xRange };
    return {
      legend: legend(named, colors),
      grid: { left: 60, right: 20, top: named.length > 1 ? 36 : 12, bottom: 44 },
      xAxis: axis(colors, data.x, across),
      yAxis: axis(colors, data.y, { scale: true, nameGap: 46, ...data.yRange }),
      series,
      tooltip: tip(colors, (p) => {
        const x = data.categories ? data.categories[p.value[0]] : short(p.value[0]);
        return `${p.seriesName ? `${p.seriesName}\n` : ""}${data.x} ${x}: ${short(p.value[1])}`;
      }),
    };
  }

  function calibration(data, colors) {
    const series = data.series || [{ name: "", points: data.points }];
    return {
      legend: legend(series, colors),
      grid: { left: 44, right: 16, top: series.length > 1 ? 36 : 12, bottom: 44 },
      xAxis: axis(colors, data.x, UNIT),
      yAxis: axis(colors, data.y, { ...UNIT, nameGap: 32 }),
      series: [
        diagonal(colors, 0, 1),
        ...series.map((one, i) => ({
          type: "line",
          name: one.name,
          data: one.points,
          encode: { x: 0, y: 1 },
          symbol: "circle",
          symbolSize: (value) => 5 + Math.min(14, Math.sqrt(value[2])),
          color: colors.series[i % colors.series.length],
          lineStyle: { width: 1.5 },
        })),
      ],
      tooltip: tip(colors, (p) =>
        `${p.seriesName ? `${p.seriesName}\n` : ""}` +
        `Said ${short(p.value[0])}, came true ${short(p.value[1])}\n${p.value[2]} rows`),
    };
  }

  function scatter(data, colors) {
    const series = data.series || [{ name: "", points: data.points }];
    const all = series.flatMap((one) => one.points).flat();
    const low = Math.min(...all);
    const high = Math.max(...all);
    return {
      legend: legend(series, colors),
      grid: { left: 64, right: 16, top: series.length > 1 ? 36 : 12, bottom: 44 },
      xAxis: axis(colors, data.x, { scale: true }),
      yAxis: axis(colors, data.y, { scale: true, nameGap: 50 }),
      series: [
        diagonal(colors, low, high),
        ...series.map((one, i) => ({
          type: "scatter",
          name: one.name,
          data: one.points,
          symbolSize: 6,
          color: colors.series[i % colors.series.length],
          itemStyle: { opacity: 0.55 },
          animation: false,
        })),
      ],
      tooltip: tip(colors, (p) =>
        `${p.seriesName ? `${p.seriesName}\n` : ""}` +
        `True ${short(p.value[0])}\nPredicted ${short(p.value[1])}`),
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
    if (kind === "xy") return xy(data, colors);
    if (kind === "waterfall") return waterfall(data, colors);
    if (kind === "drops") return drops(data, colors);
    if (kind === "calibration") return calibration(data, colors);
    if (kind === "scatter") return scatter(data, colors);
    if (kind === "bars") return bars(data, colors);
    return lines(data, colors, kind);
  }

  // ---- What a chart shows, as rows -------------------------------------------------------------

  function rowsOf(kind, data) {
    const x = data.x || "x";
    const y = data.y || "y";
    if (kind === "steps") {
      const heads = [x, ...data.series.map((one) => one.name)];
      return [heads, ...data.labels.map((at, i) => [at, ...data.series.map((s) => s.values[i])])];
    }
    if (kind === "bars") {
      return [["from", "to", y], ...data.counts.map((n, i) => [data.edges[i], data.edges[i + 1], n])];
    }
    if (kind === "waterfall") {
      return [
        ["step", "from", "to"],
        [data.start.name, "", data.start.value],
        ...data.steps.map((step) => [step.name, step.from, step.to]),
        [data.end.name, "", data.end.value],
      ];
    }
    if (kind === "drops") {
      const times = Math.max(0, ...data.rows.map((row) => row.drops.length));
      const heads = ["name", "mean", ...Array.from({ length: times }, (_, i) => `time ${i + 1}`)];
      return [heads, ...data.rows.map((row) => [row.name, row.mean, ...row.drops])];
    }
    const series = data.series || [{ name: "", points: data.points }];
    const banded = series.some((one) => one.band);
    const heads = [...(series.some((one) => one.name) ? ["series"] : []), x, y];
    if (kind === "calibration") heads.push("rows");
    if (banded) heads.push("low", "high");
    const rows = series.flatMap((one) =>
      one.points.map((point, i) => [
        ...(heads[0] === "series" ? [one.name] : []),
        ...(data.categories ? [data.categories[point[0]], ...point.slice(1)] : point),
        ...(banded ? (one.band?.[i] || ["", "", ""]).slice(1) : []),
      ]),
    );
    return [heads, ...rows];
  }

  function csv(rows) {
    const cell = (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      // A spreadsheet would run a text that begins like this.
      if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
  }

  // ---- Drawing ---------------------------------------------------------------------------------

  const drawn = new Map(); // element -> chart

  function dataOf(element) {
    const source = document.getElementById(element.dataset.source);
    const text = element.dataset.values || source?.textContent;
    return text ? JSON.parse(text) : null;
  }

  function draw(element, colors) {
    const data = dataOf(element);
    if (!data) return;
    let chart = drawn.get(element);
    if (!chart) {
      chart = window.echarts.init(element, null, { renderer: "svg" });
      drawn.set(element, chart);
      new ResizeObserver(() => chart.resize()).observe(element);
      element.after(tools(element));
    }
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    chart.setOption(
      {
        animation: !calm && !data.still,
        textStyle: { color: colors.text, ...FONT },
        ...option(element.dataset.chart, data, colors),
      },
      true,
    );
  }

  function drawAll(root = document) {
    for (const box of root.querySelectorAll("[data-download]")) offer(box);
    if (!window.echarts) return;
    for (const [element, chart] of drawn) {
      if (element.isConnected) continue;
      chart.dispose(); // its part of the page was replaced
      drawn.delete(element);
    }
    const colors = look();
    for (const element of root.querySelectorAll("[data-chart]")) draw(element, colors);
  }

  // ---- Downloads -------------------------------------------------------------------------------

  function tools(element) {
    const title = (element.getAttribute("aria-label") || element.id).split(/[:;.]/)[0];
    const name = element.id || "chart";
    return buttons(title, [
      ["PNG", () => savePicture(element.querySelector("svg"), name)],
      ["CSV", () => saveRows(rowsOf(element.dataset.chart, dataOf(element)), name)],
    ]);
  }

  function offer(box) {
    if (box.querySelector(".chart-tools")) return;
    const name = box.dataset.download;
    const svg = box.querySelector("svg:not(.icon)");
    const table = box.querySelector("table");
    const acts = [];
    if (svg) acts.push(["PNG", () => savePicture(svg, name)]);
    if (table) acts.push(["CSV", () => saveRows(rowsOfTable(table), name)]);
    (box.querySelector("[data-download-tools], details") || box).append(buttons(name, acts));
  }

  function rowsOfTable(table) {
    const cell = (one) => one.dataset.value ?? one.textContent.trim();
    const number = (text) => (/^-?[0-9]+([.][0-9]+)?(e[-+]?[0-9]+)?$/i.test(text) ? Number(text) : text);
    return [...table.rows].map((row) => [...row.cells].map((one) => number(cell(one))));
  }

  function buttons(title, acts) {
    const box = document.createElement("div");
    box.className = "chart-tools";
    for (const [what, act] of acts) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "chart-tool";
      button.textContent = what;
      button.setAttribute("aria-label", `Download “${title}” as ${what}`);
      button.addEventListener("click", act);
      box.append(button);
    }
    return box;
  }

  function save(href, name) {
    const link = document.createElement("a");
    link.href = href;
    link.download = name;
    link.click();
  }

  function saveRows(rows, name) {
    const text = csv(rows);
    const blob = new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" });
    const href = URL.createObjectURL(blob);
    save(href, `${name}.csv`);
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  }

  const DRAWN = ["fill", "stroke", "stroke-width", "opacity", "vector-effect"];

  // An SVG chart becomes a PNG by way of a canvas, twice as large as on the screen.
  function savePicture(svg, name) {
    if (!svg) return;
    const copy = svg.cloneNode(true);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    if (svg.hasAttribute("class")) {
      // Drawn by the server: its looks are the page's style sheet's, which a picture has not.
      copy.setAttribute("width", svg.clientWidth);
      copy.setAttribute("height", svg.clientHeight);
      const parts = copy.querySelectorAll("*");
      svg.querySelectorAll("*").forEach((part, i) => {
        const look = getComputedStyle(part);
        for (const what of DRAWN) parts[i].setAttribute(what, look.getPropertyValue(what));
      });
    }
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
      save(canvas.toDataURL("image/png"), `${name}.png`);
    };
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  document.addEventListener("flowml:theme", () => drawAll());
  window.flowmlCharts = drawAll;
  window.flowmlChart = (element) => window.echarts && draw(element, look());
  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", () => drawAll());
  } else drawAll();
})();
