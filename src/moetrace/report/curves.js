// Curves over the steps: all layers in grey, the median dark, the worst coloured and named.

const CURVES = [
  { metric: "load_cv", floor: "load_cv_floor", title: "Load CV", unit: "standard deviation over mean" },
  { metric: "max_vio", floor: "max_vio_floor", title: "MaxVio", unit: "heaviest expert over the mean, less 1" },
  { metric: "routing_entropy", low: true, title: "Routing entropy", unit: "nats, mean per token" },
  { metric: "load_balancing_loss", title: "Load-balancing loss", unit: "1 is even, no coefficient" },
];
const WEIGHT_CURVES = [
  { metric: "norm", title: "Router weight norm", unit: "Euclidean, at the end of the window" },
  { metric: "update_ratio", low: true, title: "Update of the router per step", unit: "change over norm; 1e-3 is usual" },
  { metric: "drift", title: "Drift since the run began", unit: "distance over the first norm" },
  { metric: "row_norm_cv", title: "Spread of the experts' rows", unit: "standard deviation over mean of their norms" },
];
const TALL = 210;
const GROUPS = 7; // colours of groups
const MANY = 12; // layers from which the 90th percentile is drawn too

// The value of a colour variable as a canvas understands it.
function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

// Linear interpolation between neighbours, as numpy does it.
function quantile(values, q) {
  const known = values.filter((value) => value !== null && !Number.isNaN(value)).sort((a, b) => a - b);
  if (!known.length) return null;
  const at = q * (known.length - 1), low = Math.floor(at), high = Math.ceil(at);
  return known[low] + (known[high] - known[low]) * (at - low);
}

function quantiles(columns, rows, q) {
  return Array.from({ length: rows }, (_, row) => quantile(columns.map((column) => column[row]), q));
}

function columnOf(values, rows, count, at) {
  return Array.from({ length: rows }, (_, row) => {
    const value = values[row * count + at];
    return Number.isNaN(value) ? null : value;
  });
}

// Colours by layer position, for the worst layers of a phase.
function worstColours(phase) {
  return new Map(phase.worst.map((at, rank) => [at, colour(`worst-${rank + 1}`)]));
}

// The lines of one figure over all layers: grey ones first, so that the named ones lie on top.
function layerLines(phase, columns, { floors, low }) {
  const rows = phase.spans.length, worst = worstColours(phase), lines = [], tagged = new Set();
  const values = columns.map((column) => column.values);
  const soft = colour("quiet"), ink = colour("ink");
  for (const { label, layer, values } of columns)
    if (!worst.has(layer)) lines.push({ label, values, stroke: soft, width: 1 });
  if (floors) {
    const floor = quantiles(floors, rows, 0.5);
    lines.push({ label: "noise floor", values: floor, stroke: ink, width: 1.5, dash: [5, 4], tag: "noise floor" });
  }
  if (columns.length >= MANY) {
    const name = low ? "p10" : "p90", tail = quantiles(values, rows, low ? 0.1 : 0.9);
    lines.push({ label: `${name} of the layers`, values: tail, stroke: ink, width: 1.25, dash: [2, 3], tag: name });
  }
  if (columns.length > 1)
    lines.push({ label: "median", values: quantiles(values, rows, 0.5), stroke: ink, width: 1.75, tag: "median" });
  for (const [layer, stroke] of [...worst].reverse())
    for (const column of columns.filter((item) => item.layer === layer)) {
      const tag = tagged.has(layer) ? undefined : layerTag(column.short);
      tagged.add(layer);
      lines.push({ label: column.label, values: column.values, stroke, width: 2, tag });
    }
  return lines;
}

// One figure: a caption, a plot, and what lies under the pointer.
class Chart {
  constructor(root, { title, unit }, onWindow) {
    this.onWindow = onWindow;
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const head = document.createElement("b"), remark = document.createElement("span");
    head.textContent = title;
    remark.textContent = unit;
    caption.append(head, " ", remark);
    this.body = document.createElement("div");
    this.body.className = "plot";
    this.title = title;
    this.note = document.createElement("p");
    this.note.className = "hover";
    figure.append(caption, this.body, this.note);
    root.append(figure);
  }

  draw(phase, window, lines) {
    this.plot?.destroy();
    this.plot = null;
    this.phase = phase;
    this.window = window;
    this.named = lines.filter(({ tag }) => tag !== undefined);
    this.body.replaceChildren();
    this.body.removeAttribute("role");
    this.note.textContent = "";
    if (!lines.some(({ values }) => values.some((value) => value !== null))) {
      const empty = document.createElement("p");
      empty.className = "empty";
      empty.textContent = "No layer has this figure in this phase.";
      this.body.append(empty);
      return;
    }
    const single = phase.spans.length === 1, font = plotFont();
    const plot = new uPlot({
      width: this.body.clientWidth,
      height: TALL,
      padding: [8, 92, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { range: rangeOf } },
      cursor: {
        sync: { key: "moetrace" }, drag: { x: false, y: false }, y: false,
        focus: { prox: 24 }, points: { show: false },
      },
      focus: { alpha: 0.45 },
      axes: [
        { ...axisLook(), font, size: 28, space: 60, values: (_, ticks) => ticks.map((v) => (v % 1 ? "" : `${v}`)) },
        { ...axisLook(), font, size: 52, space: 32, values: (_, ticks) => ticks.map(tickText) },
      ],
      series: [{}, ...lines.map(({ label, stroke, width, dash }) => ({
        label, stroke, width, dash, points: { show: single, size: 6, fill: stroke },
      }))],
      hooks: {
        // positions are known only now: uPlot lays out after its constructor has returned
        ready: [(u) => {
          this.tags(u, lines);
          const marker = document.createElement("div");
          marker.className = "now";
          u.over.append(marker);
          this.plot = u;
          this.mark(this.window);
        }],
        setSeries: [(u, at) => this.name(u, at)],
        setCursor: [(u) => u.cursor.idx == null && (this.note.textContent = "")],
      },
    }, [phase.spans.map((span) => span[1]), ...lines.map((item) => item.values)], this.body);
    // not plot.cursor: right after a scroll that still counts from where the plot was
    plot.over.addEventListener("click", (event) =>
      this.onWindow(plot.posToIdx(event.clientX - plot.over.getBoundingClientRect().left)));
  }

  // Names beside the ends of the lines, pushed apart where they would lie on each other.
  tags(plot, lines) {
    const box = document.createElement("div");
    box.className = "tags";
    const tags = lines.flatMap(({ tag, values, stroke }) => {
      const last = values.findLast((value) => value !== null);
      return tag === undefined || last === undefined ? [] : [{ tag, stroke, y: plot.valToPos(last, "y") }];
    }).sort((a, b) => a.y - b.y);
    const gap = 14, low = plot.over.clientHeight || TALL - 36;
    tags.forEach((item, at) => at && (item.y = Math.max(item.y, tags[at - 1].y + gap)));
    for (let at = tags.length - 1, limit = low; at >= 0; at--, limit = tags[at + 1].y - gap)
      tags[at].y = Math.min(tags[at].y, limit);
    for (const { tag, stroke, y } of tags) {
      const item = document.createElement("span");
      item.textContent = tag;
      item.title = tag;
      item.style.color = stroke;
      item.style.top = `${y}px`;
      box.append(item);
    }
    plot.over.append(box);
  }

  name(plot, at) {
    const index = plot.cursor.idx;
    if (at == null || index == null) return;
    const value = plot.data[at][index];
    this.note.textContent = value == null ? "" :
      `${plot.series[at].label}: ${value.toPrecision(4)} at ${steps(this.phase.spans[index])}`;
  }

  // What the named lines show at the slider's window, for who does not see them.
  tell() {
    const named = this.named.map(({ tag, values }) => [tag, values[this.window]]).filter(([, value]) => value != null);
    this.body.setAttribute("role", "img");
    this.body.setAttribute("aria-label", `${this.title}, ${steps(this.phase.spans[this.window])}: ` +
      (named.map(([tag, value]) => `${tag} ${+value.toPrecision(4)}`).join(", ") || "nothing"));
  }

  mark(window) {
    this.window = window;
    if (this.plot) this.tell();
    const marker = this.plot?.over.querySelector(".now");
    if (marker) marker.style.left = `${this.plot.valToPos(this.phase.spans[window][1], "x")}px`;
  }
}

// A grid of charts; `lines` says for a phase what each of them shows.
class Charts {
  constructor(root, kinds, lines, onWindow) {
    this.kinds = kinds;
    this.lines = lines;
    this.charts = kinds.map((kind) => new Chart(root, kind, onWindow));
    new ResizeObserver(() => this.phase && this.wide !== root.clientWidth && this.draw()).observe(root);
    this.root = root;
  }

  show(phase, window) {
    this.window = window;
    if (phase !== this.phase) {
      this.phase = phase;
      this.draw();
    } else for (const chart of this.charts) chart.mark(window);
  }

  draw() {
    this.wide = this.root.clientWidth;
    this.charts.forEach((chart, at) =>
      chart.draw(this.phase, this.window, this.lines(this.phase, this.kinds[at])));
  }
}

function balanceLines(layers) {
  return (phase, { metric, floor, low }) => {
    const rows = phase.spans.length, count = layers.length;
    const of = (name) => layers.map((_, at) => columnOf(phase.metrics[name], rows, count, at));
    const columns = of(metric).map((values, at) =>
      ({ values, layer: at, label: layers[at].name, short: layers[at].short }));
    return layerLines(phase, columns, { floors: floor && of(floor), low });
  };
}

function probeColumns(phase, key, metric, layers) {
  const { columns, metrics } = phase[key];
  return columns.map(({ layer, name, short }, at) => ({
    values: columnOf(metrics[metric], phase.spans.length, columns.length, at),
    layer, label: name, short: layers[layer]?.short ?? short,
  }));
}

// Weights by layer; gradients of the routers by layer, those of all groups each in its own colour.
function probeLines(layers) {
  return (phase, { metric, low, from = "weights" }) => {
    if (!phase[from]) return [];
    const columns = probeColumns(phase, from, metric, layers);
    // without layers that were counted none is the worst, and a few are told apart like groups
    const apart = from === "groups" || (!layers.length && columns.length <= GROUPS);
    if (!apart) return layerLines(phase, columns, { low });
    return columns.map(({ values, label, short }, at) => ({
      values, label, tag: from === "groups" ? label : layerTag(short), stroke: colour(`group-${1 + (at % GROUPS)}`),
      width: 1.75,
    }));
  };
}

function probeKinds(phases) {
  const has = (key) => phases.some((phase) => phase[key]);
  return [
    ...(has("weights") ? WEIGHT_CURVES : []),
    ...(has("routers") ? [{ from: "routers", metric: "norm", title: "Gradient norm of the routers", unit: "by block" }] : []),
    ...(has("groups") ? [{ from: "groups", metric: "norm", title: "Gradient norm by group", unit: "of the whole model" }] : []),
  ];
}

function probeCharts(phases, layers, go) {
  document.getElementById("probes").hidden = false;
  return new Charts(document.getElementById("probe-curves"), probeKinds(phases), probeLines(layers), go);
}

function plotFont() {
  return `11px ${getComputedStyle(document.body).fontFamily}`;
}

function axisLook() {
  return { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
}

function tickText(value) {
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : String(+value.toPrecision(6));
}

function layerTag(short) {
  return /^\d+$/.test(short) ? `layer ${short}` : short;
}

// From 0 where 0 is near, so that a small wobble does not fill the plot.
function rangeOf(_, low, high) {
  if (low == null) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const room = (high - low) * 0.08;
  return [low > 0 && low < high * 0.75 ? 0 : low - room, high + room];
}
