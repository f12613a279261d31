// Four curves over the steps: all layers in grey, the median dark, the worst coloured and named.

const CURVES = [
  { metric: "load_cv", floor: "load_cv_floor", title: "Load CV", unit: "standard deviation over mean" },
  { metric: "max_vio", floor: "max_vio_floor", title: "MaxVio", unit: "heaviest expert over the mean, less 1" },
  { metric: "routing_entropy", title: "Routing entropy", unit: "nats, mean per token" },
  { metric: "load_balancing_loss", title: "Load-balancing loss", unit: "1 is even, no coefficient" },
];
const TALL = 210;

// The value of a colour variable as a canvas understands it.
function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function quantile50(values) {
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!known.length) return null;
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}

class Curves {
  constructor(layers, onWindow) {
    this.layers = layers;
    this.onWindow = onWindow;
    this.plots = [];
    const root = document.getElementById("curves");
    this.figures = CURVES.map((curve) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const title = document.createElement("b"), unit = document.createElement("span");
      title.textContent = curve.title;
      unit.textContent = curve.unit;
      caption.append(title, " ", unit);
      const body = document.createElement("div");
      body.className = "plot";
      const note = document.createElement("p");
      note.className = "hover";
      figure.append(caption, body, note);
      root.append(figure);
      return { figure, body, note };
    });
    this.root = root;
    new ResizeObserver(() => this.phase && this.wide !== root.clientWidth && this.draw()).observe(root);
  }

  // Colours by layer position, for the worst layers of a phase.
  static colours(phase) {
    return new Map(phase.worst.map((at, rank) => [at, colour(`worst-${rank + 1}`)]));
  }

  show(phase, window) {
    if (phase !== this.phase) {
      this.phase = phase;
      this.window = window;
      this.draw();
    }
    this.window = window;
    for (const plot of this.plots) if (plot) this.markWindow(plot);
  }

  draw() {
    this.wide = this.root.clientWidth;
    for (const plot of this.plots) plot?.destroy();
    this.plots = CURVES.map((curve, at) => this.plot(curve, this.figures[at]));
  }

  column(metric, layer) {
    const count = this.layers.length, values = this.phase.metrics[metric];
    return this.phase.spans.map((_, row) => {
      const value = values[row * count + layer];
      return Number.isNaN(value) ? null : value;
    });
  }

  median(columns) {
    return this.phase.spans.map((_, row) => quantile50(columns.map((column) => column[row])));
  }

  plot(curve, { body, note }) {
    body.replaceChildren();
    note.textContent = "";
    const columns = this.layers.map((_, at) => this.column(curve.metric, at));
    if (columns.every((column) => column.every((value) => value === null))) {
      const empty = document.createElement("p");
      empty.className = "empty";
      empty.textContent = "No layer has this figure in this phase.";
      body.append(empty);
      return null;
    }
    const single = this.phase.spans.length === 1;
    const lines = [];
    const line = (label, values, stroke, width, more = {}) =>
      lines.push({ label, values, stroke, width, ...more });
    const worst = Curves.colours(this.phase);
    columns.forEach((values, at) => {
      if (!worst.has(at)) line(this.layers[at].name, values, colour("quiet"), 1);
    });
    if (curve.floor) {
      const floors = this.layers.map((_, at) => this.column(curve.floor, at));
      line("noise floor", this.median(floors), colour("ink"), 1.5, { dash: [5, 4], tag: "noise floor" });
    }
    if (this.layers.length > 1) line("median", this.median(columns), colour("ink"), 1.75, { tag: "median" });
    [...worst].reverse().forEach(([at, stroke]) =>
      line(this.layers[at].name, columns[at], stroke, 2, { tag: layerTag(this.layers[at].short) }));
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const plot = new uPlot({
      width: body.clientWidth,
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
        { ...axis, font, size: 28, space: 60, values: (_, ticks) => ticks.map((v) => (v % 1 ? "" : `${v}`)) },
        { ...axis, font, size: 48, space: 32 },
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
          this.markWindow(u);
        }],
        setSeries: [(u, at) => this.name(u, at, note)],
        setCursor: [(u) => u.cursor.idx == null && (note.textContent = "")],
      },
    }, [this.phase.spans.map((span) => span[1]), ...lines.map((item) => item.values)], body);
    // not plot.cursor: right after a scroll that still counts from where the plot was
    plot.over.addEventListener("click", (event) =>
      this.onWindow(plot.posToIdx(event.clientX - plot.over.getBoundingClientRect().left)));
    return plot;
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

  name(plot, at, note) {
    const index = plot.cursor.idx;
    if (at == null || index == null) return;
    const value = plot.data[at][index];
    note.textContent = value == null ? "" :
      `${plot.series[at].label}: ${value.toPrecision(4)} at ${steps(this.phase.spans[index])}`;
  }

  markWindow(plot) {
    const marker = plot.over.querySelector(".now");
    if (marker) marker.style.left = `${plot.valToPos(this.phase.spans[this.window][1], "x")}px`;
  }
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
