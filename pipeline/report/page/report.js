"use strict";
(() => {
  const { charts, drawings } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SERIES = ["var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)"];
  const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross"];
  const MAX_PRINTED = 24;
  const count = (value) => value.toLocaleString("en-US");
  const short = (value) => (value >= 1000 ? d3.format(".3~s")(value) : d3.format(".3~g")(value));
  const brief = (name) => (name.length > 22 ? `${name.slice(0, 21)}\u2026` : name);  // beside an axis; tips and tables have it whole
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(1);

  // ---- light and dark

  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  let chosen = null;
  const applyTheme = () => {
    const theme = chosen ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${theme === "dark" ? "light" : "dark"} colours`);
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    applyTheme();
  });
  dark.addEventListener("change", applyTheme);
  applyTheme();

  // ---- charts

  const drawn = new Map();
  function chart(id, draw, legend) {
    const place = byId(id);
    if (!place) return;
    const again = () => {
      const width = Math.floor(place.clientWidth);
      if (!width) return;
      const plot = draw(width, place.dataset.label);
      place.replaceChildren(...(legend ? [legend] : []), plot);
      const svg = plot.tagName === "svg" ? plot : plot.querySelector(":scope > svg");
      if (svg) {
        svg.setAttribute("role", "img");
        svg.setAttribute("aria-label", place.dataset.label);
      }
    };
    drawn.set(id, again);
    again();
  }
  const plain = (width, options) =>
    Plot.plot({ width, marginLeft: 52, marginBottom: 46, marginTop: 26, style: { background: "none", fontFamily: "inherit", fontSize: "12px" }, ...options });

  const SHAPES = { circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle, diamond: d3.symbolDiamond, star: d3.symbolStar, cross: d3.symbolCross };
  function legendOf(names, fills = SERIES, symbols = SYMBOLS) {
    if (names.length < 2) return null;
    const list = d3.create("ul").attr("class", "legend");
    names.forEach((name, place) => {
      const item = list.append("li");
      item.append("svg").attr("viewBox", "-8 -8 16 16").attr("width", 14).attr("height", 14).attr("aria-hidden", "true")
        .append("path").attr("d", d3.symbol(SHAPES[symbols[place % symbols.length]], 110)()).style("fill", fills[place % fills.length]);
      item.append("span").text(name);
    });
    return list.node();
  }
  // The base of a logarithmic axis with ticks of its own is 2: with base 10 d3 leaves out labels such as 8 and 64.
  const colours = (names) => ({
    color: { domain: names, range: SERIES.slice(0, names.length) },
    symbol: { domain: names, range: SYMBOLS.slice(0, names.length) },
  });

  if (charts.accuracy) {
    const { points } = charts.accuracy;
    const all = points.filter((point) => point.type === null);
    const own = points.filter((point) => point.type !== null && !point.control && point.loss !== null);
    const budgets = charts.accuracy.runs.filter((budget) => own.some((point) => point.budget === budget));
    const worst = d3.rollup(own, (of) => d3.max(of, (point) => point.loss), (point) => point.type);
    const types = [...worst.keys()].sort((one, other) => worst.get(other) - worst.get(one));
    const tall = Math.max(300, 76 + Math.max(18, 6 + 7 * budgets.length) * types.length);
    const names = [...new Set(all.map((point) => point.series))].slice(0, SERIES.length);
    chart("c-accuracy", (width) =>
      plain(width, {
        height: Math.min(tall, 460),
        ...colours(names),
        x: { type: "log", base: 2, label: "tokens an image \u2192", labelOffset: 42, ticks: [...new Set(all.map((point) => point.tokens))], tickFormat: short, inset: 14 },
        y: { label: "\u2191 accuracy, %", grid: true, nice: true, zero: false },
        marks: [
          Plot.areaY(all, { x: "tokens", y1: "low", y2: "high", fill: "series", fillOpacity: 0.14, sort: "tokens" }),
          Plot.lineY(all, { x: "tokens", y: "value", stroke: "series", strokeWidth: 2.2, sort: "tokens" }),
          Plot.ruleX(all, { x: "tokens", y1: "low", y2: "high", stroke: "series", strokeWidth: 1.4 }),
          Plot.dot(all, { x: "tokens", y: "value", fill: "series", symbol: "series", r: 4.5, stroke: "var(--surface)", strokeWidth: 1.2,
            tip: { fill: "var(--surface)", stroke: "var(--line)" },
            title: (point) => `${point.series} at ${point.budget}: ${point.value.toFixed(1)} %\n${point.low === null ? "of one image" : `[${point.low.toFixed(1)}, ${point.high.toFixed(1)}]`}, ${count(point.prompts)} prompts` }),
        ],
      }), legendOf(names));
    chart("c-types", (width) =>
      types.length
        ? plain(width, {
            height: tall,
            marginTop: 8,
            marginLeft: 20 + 7 * d3.max(types, (name) => brief(name).length),
            color: { domain: budgets, range: SERIES },
            symbol: { domain: budgets, range: SYMBOLS },
            x: { label: "change, points \u2192", labelOffset: 42, grid: true, nice: true, tickFormat: (value) => signed(value).replace(".0", "") },
            y: { domain: types, label: null, padding: 0.5, tickFormat: brief },
            marks: [
              Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.5 }),
              ...budgets.flatMap((budget, place) => {
                const some = own.filter((point) => point.budget === budget);
                const dy = (place - (budgets.length - 1) / 2) * 7;
                return [
                  Plot.ruleY(some.filter((point) => point.lossLow !== null), { y: "type", x1: (point) => -point.lossHigh, x2: (point) => -point.lossLow, stroke: "budget", strokeWidth: 1.6, dy }),
                  Plot.dot(some, { y: "type", x: (point) => -point.loss, fill: "budget", symbol: "budget", r: 3.8, dy, stroke: "var(--surface)", strokeWidth: 1,
                    title: (point) => `${point.type} at ${point.budget}: ${signed(-point.loss)} points\n${point.lossLow === null ? "of one image" : `[${signed(-point.lossHigh)}, ${signed(-point.lossLow)}]`}, ${count(point.prompts)} prompts`,
                    tip: { fill: "var(--surface)", stroke: "var(--line)" } }),
                ];
              }),
            ],
          })
        : Object.assign(document.createElement("p"), { className: "note", textContent: "A second budget would tell which types lose." }), legendOf(budgets));
  }

  if (charts.verdict) {
    const { points, tolerance } = charts.verdict;
    const names = [...new Set(points.map((point) => point.series))].slice(0, SERIES.length);
    chart("c-verdict", (width) =>
      plain(width, {
        height: 320,
        ...colours(names),
        x: { type: "log", base: 2, label: "tokens an image \u2192", labelOffset: 42, ticks: [...new Set(points.map((point) => point.tokens))], tickFormat: short, inset: 14 },
        y: { label: "\u2191 loss, points", grid: true, nice: true },
        marks: [
          Plot.ruleY([0], { stroke: "currentColor", strokeOpacity: 0.4 }),
          Plot.ruleY([tolerance], { stroke: "var(--bad)", strokeDasharray: "5 4", strokeWidth: 1.6 }),
          Plot.lineY(points, { x: "tokens", y: "loss", stroke: "series", strokeWidth: 2, sort: "tokens" }),
          Plot.ruleX(points, { x: "tokens", y1: "low", y2: "high", stroke: "series", strokeWidth: 1.6 }),
          Plot.dot(points, { x: "tokens", y: "loss", fill: "series", symbol: "series", r: 4.5, stroke: "var(--surface)", strokeWidth: 1.2,
            tip: { fill: "var(--surface)", stroke: "var(--line)" },
            title: (point) => `${point.series} at ${point.budget}: ${signed(point.loss)} points lost` }),
        ],
      }), legendOf(names));
  }

  if (charts.kept) {
    const { levels, sensitivity, gains } = charts.kept;
    const heat = () => {
      const level = levels[Number(document.querySelector("#levels input:checked").value)];
      const cells = level.rate.flatMap((row, y) => row.map((value, x) => ({ x, y, value }))).filter((cell) => cell.value !== null);
      const rows = level.rate.length, cols = level.rate[0].length;
      const most = Math.max(d3.max(cells, (cell) => cell.value), 1e-9);
      const scale = d3.select("#heat-scale");
      scale.select(".ramp").style("background", `linear-gradient(to right, ${d3.range(0, 1.01, 0.1).map(d3.interpolateCividis)})`);
      scale.select(".most").text(`${(100 * most).toFixed(0)} %`);
      chart("c-heat", (width) => {
        const side = Math.min(width, (560 * cols) / rows);
        return plain(side, {
          height: (side * rows) / cols,
          margin: 0, marginLeft: 0, marginTop: 0, marginBottom: 0,
          x: { axis: null, domain: d3.range(cols), padding: 0 }, y: { axis: null, domain: d3.range(rows), padding: 0 },
          color: { type: "linear", scheme: "cividis", domain: [0, most] },
          marks: [
            Plot.cell(cells, { x: "x", y: "y", fill: "value", inset: 0.6, rx: 2, title: (cell) => `row ${cell.y + 1}, column ${cell.x + 1}: ${(100 * cell.value).toFixed(1)} %`, tip: { fill: "var(--surface)", stroke: "var(--line)" } }),
          ],
        });
      });
      document.querySelectorAll("#levels-told tbody tr").forEach((row, place) => row.classList.toggle("current", charts.kept.levels[place] === level));
    };
    byId("levels").hidden = false;
    byId("levels").addEventListener("change", heat);
    heat();
    if (sensitivity) {
      const { edges, log } = sensitivity;
      const bins = ["all", "picked"].flatMap((of) =>
        sensitivity[of].map((share, place) => ({ of: of === "all" ? "all tokens" : `picked first (${sensitivity.name})`, x1: edges[place], x2: edges[place + 1], share })));
      const names = ["all tokens", `picked first (${sensitivity.name})`];
      chart("c-sensitivity", (width) =>
        plain(width, {
          height: 280,
          color: { domain: names, range: ["var(--grey)", "var(--s0)"] },
          x: { type: log ? "log" : "linear", label: "sensitivity \u2192", labelOffset: 42, tickFormat: short, ticks: 6 },
          y: { label: "\u2191 share, %", percent: true, grid: true },
          marks: [
            Plot.rect(bins.filter((bin) => bin.of === names[0]), { x1: "x1", x2: "x2", y1: 0, y2: "share", fill: "of", fillOpacity: 0.55, inset: 0.3 }),
            Plot.lineY(bins.filter((bin) => bin.of === names[1]), { x: (bin) => (log ? Math.sqrt(bin.x1 * bin.x2) : (bin.x1 + bin.x2) / 2), y: "share", stroke: "of", strokeWidth: 2.2, curve: "step" }),
            Plot.ruleY([0]),
          ],
        }), legendOf(names, ["var(--grey)", "var(--s0)"], ["square"]));
    }
    if (gains) {
      const rows = gains.picks.map((pick, place) => ({ pick, q: gains.quantiles[place] }));
      chart("c-gains", (width) =>
        plain(width, {
          height: 280,
          x: { type: "log", label: "number of the pick \u2192", labelOffset: 42, tickFormat: short, ticks: 6 },
          y: { label: "\u2191 gain", grid: true, zero: true },
          marks: [
            Plot.areaY(rows, { x: "pick", y1: (row) => row.q[0], y2: (row) => row.q[4], fill: "var(--s0)", fillOpacity: 0.13 }),
            Plot.areaY(rows, { x: "pick", y1: (row) => row.q[1], y2: (row) => row.q[3], fill: "var(--s0)", fillOpacity: 0.24 }),
            Plot.lineY(rows, { x: "pick", y: (row) => row.q[2], stroke: "var(--s0)", strokeWidth: 2.2 }),
            Plot.tip(rows, Plot.pointerX({ x: "pick", y: (row) => row.q[2], fill: "var(--surface)", stroke: "var(--line)", title: (row) => `pick ${count(row.pick)}: median ${row.q[2].toPrecision(3)}\nmiddle half ${row.q[1].toPrecision(3)} to ${row.q[3].toPrecision(3)}` })),
          ],
        }));
    }
  }

  if (charts.stages.length) {
    const jobs = [...new Set(charts.stages.map((row) => row.job))];
    const stages = [...new Set(charts.stages.map((row) => row.stage))];
    const palette = ["#88ccee", "#ddaa33", "#0072b2", "#cc79a7", "#009e73", "#999999", "#d55e00", "#6a5acd", "#b7a27c"];
    chart("c-stages", (width) =>
      plain(width, {
        height: 54 + 34 * jobs.length,
        marginTop: 4,
        marginLeft: 20 + 7 * d3.max(jobs, (job) => brief(job).length),
        color: { domain: stages, range: stages.map((_, place) => palette[place % palette.length]) },
        x: { label: "seconds \u2192", labelOffset: 42, grid: true },
        y: { domain: jobs, label: null, tickFormat: brief },
        marks: [
          Plot.barX(charts.stages, Plot.stackX({ x: "seconds", y: "job", fill: "stage", inset: 0.5, rx: 1, title: (row) => `${row.job}, ${row.stage}: ${row.seconds.toPrecision(3)} s`, tip: { fill: "var(--surface)", stroke: "var(--line)" } })),
          Plot.ruleX([0]),
        ],
      }), legendOf(stages, palette, ["square"]));
  }

  let waiting = 0;
  let lastWidth = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === lastWidth) return;
    lastWidth = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => drawn.forEach((again) => again()), 120);
  });

  // ---- gallery

  const form = byId("controls");
  if (!form) return;
  const cards = [...document.querySelectorAll(".card")].map((card) => {
    const drawing = drawings[Number(card.dataset.card)];
    return {
      card, drawing, ranking: null, boxes: null, shown: -1,
      canvas: card.querySelector("canvas"),
      told: card.querySelector(".count"),
      prompts: [...card.querySelectorAll(".prompt")],
      given: [...card.querySelectorAll(".given li")],
    };
  });
  const same = cards.every(({ drawing }) => drawing.n === cards[0].drawing.n);
  const slider = byId("k"), value = byId("k-value");
  const stops = [...document.querySelectorAll(".stop")];
  const most = same ? Math.max(...cards.map(({ drawing }) => drawing.k)) : 1000;
  const onRun = (run) => cards.some(({ drawing }) => drawing.tokens[run] > 0);
  let run = null;

  function unpack(one) {
    const { drawing } = one;
    const bytes = Uint8Array.from(atob(drawing.ranking), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const size = drawing.wide ? 4 : 2;
    one.ranking = Array.from({ length: bytes.length / size }, (_, place) => (drawing.wide ? view.getUint32(place * 4, true) : view.getUint16(place * 2, true)));
    one.boxes = drawing.rasters.flatMap(([rows, cols, x, y, width, height, overview]) =>
      Array.from({ length: rows * cols }, (_, place) => [x + (place % cols) * width, y + Math.floor(place / cols) * height, width, height, overview]));
  }
  function keptOf({ drawing }) {
    if (run !== null && drawing.tokens[run]) return Math.min(drawing.k, drawing.tokens[run]);
    const wanted = same ? Number(slider.value) : Math.floor((Number(slider.value) / 1000) * drawing.n + 0.5);
    return Math.min(drawing.k, Math.max(1, wanted));
  }
  function draw(one) {
    const kept = keptOf(one);
    const { canvas, drawing } = one;
    const { clientWidth, clientHeight } = canvas;
    if (!clientWidth || (one.shown === kept && canvas.width)) return;
    if (one.ranking === null) unpack(one);
    one.shown = kept;
    const scale = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.round(clientWidth * scale);
    canvas.height = Math.round(clientHeight * scale);
    const pen = canvas.getContext("2d");
    pen.fillStyle = "rgb(12 14 18 / 78%)";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const [left, top, across, down] = drawing.seen;
    pen.globalCompositeOperation = "destination-out";
    for (const token of one.ranking.slice(0, kept)) {
      const [x, y, width, height, overview] = one.boxes[token];
      const x1 = Math.round((left + x * across) * canvas.width), x2 = Math.round((left + (x + width) * across) * canvas.width);
      const y1 = Math.round((top + y * down) * canvas.height), y2 = Math.round((top + (y + height) * down) * canvas.height);
      pen.fillStyle = overview ? "rgb(0 0 0 / 45%)" : "#000";
      pen.fillRect(x1, y1, Math.max(1, x2 - x1), Math.max(1, y2 - y1));
    }
    canvas.dataset.kept = kept;
    const known = kept <= one.ranking.length ? "" : ` (${count(one.ranking.length)} drawn)`;
    one.told.textContent = `${count(kept)} of ${count(drawing.n)} tokens${known}`;
  }

  const visible = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const one = cards[Number(entry.target.dataset.card)];
      if (entry.isIntersecting) {
        visible.add(one);
        draw(one);
      } else visible.delete(one);
    }
  }, { rootMargin: "400px" });

  let frame = 0;
  function redraw() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => visible.forEach(draw));
  }
  function tell() {
    const share = same ? Number(slider.value) / cards[0].drawing.n : Number(slider.value) / 1000;
    const percent = `${d3.format(".3~g")(100 * share)} %`;
    const asked = run !== null && !same ? `as answered at ${charts.accuracy.runs[run]}` : null;
    value.textContent = asked ?? (same ? `${count(Number(slider.value))} of ${count(cards[0].drawing.n)} (${percent})` : `${percent} of an image`);
    slider.setAttribute("aria-valuetext", value.textContent);
    stops.forEach((stop, place) => stop.setAttribute("aria-pressed", String(place === run)));
    for (const { given } of cards) for (const line of given) line.classList.toggle("current", Number(line.dataset.run) === run);
  }
  function runAt(tokens) {
    const found = stops.findIndex((_, place) => cards.every(({ drawing }) => !drawing.tokens[place] || Math.min(drawing.tokens[place], drawing.k) === Math.min(tokens, drawing.k)));
    return found >= 0 && onRun(found) ? found : null;
  }
  function goTo(place) {
    run = place;
    const ratios = cards.filter(({ drawing }) => drawing.tokens[place]).map(({ drawing }) => drawing.tokens[place] / (same ? 1 : drawing.n / 1000));
    if (ratios.length) slider.value = String(Math.round(d3.mean(ratios)));
    tell();
    redraw();
  }
  slider.max = String(most);
  slider.addEventListener("input", () => {
    run = same ? runAt(Number(slider.value)) : null;
    tell();
    redraw();
  });
  stops.forEach((stop, place) => stop.addEventListener("click", () => goTo(place)));

  const type = byId("type"), marks = byId("marks"), find = byId("find");
  function filter() {
    const [how, at] = (marks?.value ?? "").split(":");
    const words = find.value.trim().toLowerCase();
    const all = !type.value && !how && !words;
    let images = 0, prompts = 0;
    for (const { card, prompts: own } of cards) {
      let some = false;
      for (const prompt of own) {
        const { type: kind, marks: letters } = prompt.dataset;
        const fits = (!type.value || kind === type.value) &&
          (!how || (letters[at] === "w" && (how === "wrong" || letters[0] === "r"))) &&
          (!words || prompt.textContent.toLowerCase().includes(words));
        prompt.hidden = !fits;
        some ||= fits;
        prompts += fits;
      }
      const named = words && !type.value && !how && card.querySelector(".source").textContent.toLowerCase().includes(words);
      if (named) for (const prompt of own) prompt.hidden = false;
      card.hidden = !(all || some || named);
      images += !card.hidden;
    }
    byId("count").textContent = `${count(images)} of ${count(cards.length)} images, ${count(prompts)} prompts`;
    byId("nothing").hidden = images > 0;
    redraw();
  }
  type.addEventListener("change", filter);
  marks?.addEventListener("change", () => {
    const at = marks.value.split(":")[1];
    if (at) goTo(Number(at));
    filter();
  });
  find.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());

  addEventListener("beforeprint", () => {
    let printed = 0, shown = 0;
    for (const one of cards) {
      if (one.card.hidden) continue;
      shown += 1;
      const taken = printed < MAX_PRINTED;
      printed += taken;
      one.card.classList.toggle("unprinted", !taken);
      if (taken) draw(one);
    }
    byId("printed").textContent = printed < shown ? `${count(printed)} of ${count(shown)} images are printed.` : "";
  });
  addEventListener("afterprint", () => {
    for (const { card } of cards) card.classList.remove("unprinted");
    byId("printed").textContent = "";
  });

  form.hidden = false;
  slider.value = String(Math.max(1, Math.round(most / 4)));
  if (stops.length && onRun(stops.length - 1)) goTo(stops.length - 1);
  else tell();
  filter();
  for (const { card } of cards) watcher.observe(card);
})();
