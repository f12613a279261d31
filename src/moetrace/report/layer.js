// One layer in depth: its experts over time, and how its load is shared out in one window.

const WHOLE = 512; // experts that the picture shows one by one; of more, the busiest and the idlest

class LayerDepth {
  constructor(layers, { onWindow, onCell }) {
    Object.assign(this, { layers, onWindow, onCell, at: 0 });
    this.canvas = document.getElementById("time");
    this.said = document.getElementById("time-readout");
    this.choice = document.getElementById("layer");
    for (const layer of layers) this.choice.append(new Option(layer.name));
    this.choice.addEventListener("change", () => this.pick(this.choice.selectedIndex));
    this.canvas.addEventListener("pointermove", (event) => this.read(event));
    this.canvas.addEventListener("pointerleave", () => this.sum());
    this.canvas.addEventListener("pointerdown", (event) => {
      const { expert, window } = this.under(event);
      this.onWindow(window);
      this.onCell(this.at, expert);
    });
    this.table = document.getElementById("experts");
    this.table.closest("details").addEventListener("toggle", () => this.list());
    this.sorted = this.curve("sorted", "sorted-axis");
    this.lorenz = this.curve("lorenz", "lorenz-axis");
    new ResizeObserver(() => this.phase && this.draw()).observe(this.canvas.parentElement);
  }

  curve(id) {
    return { body: document.getElementById(id), plot: null };
  }

  pick(at) {
    this.at = at;
    this.choice.selectedIndex = at;
    if (this.phase) this.draw();
  }

  show(phase, window) {
    const again = phase === this.phase;
    Object.assign(this, { phase, window });
    if (again) this.share();
    else this.draw();
  }

  draw() {
    const layer = this.layers[this.at], rows = this.phase.spans.length;
    this.order = this.chosen(layer);
    const tall = this.order.length;
    const row = Math.max(1, Math.min(14, Math.floor(360 / tall)));
    this.canvas.width = rows;
    this.canvas.height = tall;
    this.canvas.style.height = `${row * tall}px`;
    const { colours, dead } = palette(), image = new ImageData(rows, tall);
    for (let window = 0; window < rows; window++) {
      const fair = fairShare(this.phase, window, layer);
      if (!fair) continue;
      this.order.forEach((expert, y) => {
        const colour = cellColour(countOf(this.phase, window, layer, expert), fair, colours, dead);
        image.data.set([...colour, 255], 4 * (y * rows + window));
      });
    }
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    document.getElementById("time-note").textContent = tall === layer.experts
      ? `expert 0 on top, ${layer.experts - 1} at the bottom; the first window is on the left`
      : `of ${layer.experts} experts the ${tall / 2} with the most assignments in this window, then the ` +
        `${tall / 2} with the fewest; the first window is on the left`;
    this.share();
  }

  chosen(layer) {
    const all = Array.from({ length: layer.experts }, (_, expert) => expert);
    if (layer.experts <= WHOLE) return all;
    all.sort((a, b) => countOf(this.phase, this.window, layer, b) - countOf(this.phase, this.window, layer, a));
    return [...all.slice(0, WHOLE / 2), ...all.slice(-WHOLE / 2)];
  }

  // What belongs to one window: the two curves, the table, the sentence.
  share() {
    const layer = this.layers[this.at], fair = fairShare(this.phase, this.window, layer);
    const marker = document.getElementById("time-now");
    marker.style.left = `${(100 * (this.window + 0.5)) / this.phase.spans.length}%`;
    this.counts = Array.from({ length: layer.experts }, (_, expert) => ({
      expert, count: Math.max(0, countOf(this.phase, this.window, layer, expert)),
    })).sort((a, b) => b.count - a.count || a.expert - b.expert);
    this.fair = fair;
    this.sum();
    this.list();
    const ranks = this.counts.map((_, at) => at + 1), times = this.counts.map(({ count }) => (fair ? count / fair : null));
    this.plot(this.sorted, [ranks, times, ranks.map(() => 1)], {
      x: (_, ticks) => ticks.map((v) => (v % 1 ? "" : `${v}`)),
      y: (_, ticks) => ticks.map((v) => `${+v.toPrecision(4)}`),
      range: [0, Math.max(1.2, 1.06 * (times[0] ?? 1))],
      label: `Load of the experts of ${layer.name}, the heaviest first`,
      stepped: true,
    });
    const total = fair * layer.experts;
    let sum = 0;
    const cumulated = [0, ...this.counts.toReversed().map(({ count }) => (sum += count) && sum / (total || 1))];
    const share = cumulated.map((_, at) => at / layer.experts);
    this.plot(this.lorenz, [share, fair ? cumulated : share.map(() => null), share], {
      x: percents, y: percents, range: [0, 1], label: `Lorenz curve of ${layer.name}`,
    });
  }

  plot(curve, data, { x, y, range, label, stepped }) {
    const key = `${this.at} ${data[0].length} ${curve.body.clientWidth} ${document.documentElement.style.colorScheme}`;
    if (curve.plot && curve.key === key) {
      curve.range = range;
      curve.plot.setData(data);
      return;
    }
    curve.plot?.destroy();
    Object.assign(curve, { key, range });
    curve.body.setAttribute("role", "img");
    curve.body.setAttribute("aria-label", label);
    const font = plotFont(), paths = stepped ? uPlot.paths.stepped({ align: 1 }) : undefined;
    curve.plot = new uPlot({
      width: curve.body.clientWidth,
      height: TALL,
      padding: [8, 22, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false }, y: { range: () => curve.range } },
      axes: [
        { ...axisLook(), font, size: 28, space: 50, values: x },
        { ...axisLook(), font, size: 48, space: 32, values: y },
      ],
      series: [
        {},
        { stroke: colour("worst-2"), width: 2, fill: colour("wash"), paths, points: { show: false } },
        { stroke: colour("ink"), width: 1.25, dash: [5, 4], points: { show: false } },
      ],
    }, data, curve.body);
  }

  sum() {
    const layer = this.layers[this.at], { phase, window } = this, count = this.layers.length;
    const gini = phase.metrics.load_gini[window * count + this.at];
    const floor = phase.metrics.load_gini_floor[window * count + this.at];
    const dead = this.counts.filter((item) => !item.count).length;
    const where = `${layer.name}, ${steps(phase.spans[window])}`;
    document.getElementById("gini").textContent = Number.isNaN(gini) ? "" :
      `Gini ${gini.toFixed(3)}${Number.isNaN(floor) ? "" : `, by chance ${floor.toFixed(3)}`}`;
    if (!this.fair) {
      this.said.textContent = `${where}: no token was routed`;
      return;
    }
    const [first] = this.counts, half = this.fair * layer.experts / 2;
    let taken = 0;
    const few = 1 + this.counts.findIndex(({ count }) => (taken += count) >= half);
    this.said.textContent = `${where}: half of the assignments go to ${few} of ${layer.experts} experts; the heaviest, ` +
      `expert ${first.expert}, has ${(first.count / this.fair).toFixed(3)} times its fair share; ` +
      `${dead ? `${dead} got no token` : "every expert got tokens"}`;
    this.canvas.setAttribute("aria-label", `Experts by time. ${this.said.textContent}`);
  }

  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const within = (share, size) => Math.max(0, Math.min(size - 1, Math.floor(share * size)));
    return {
      window: within((event.clientX - box.left) / box.width, this.phase.spans.length),
      expert: this.order[within((event.clientY - box.top) / box.height, this.order.length)],
    };
  }

  read(event) {
    const { window, expert } = this.under(event), layer = this.layers[this.at];
    const count = countOf(this.phase, window, layer, expert), fair = fairShare(this.phase, window, layer);
    const where = `${layer.name}, expert ${expert}, ${steps(this.phase.spans[window])}`;
    this.said.textContent = !fair ? `${where}: no token was routed` :
      `${where}: ${whole(count)} assignments, ${(count / fair).toFixed(3)} times the fair share`;
  }

  list() {
    if (!this.table.closest("details").open) return;
    let sum = 0;
    const total = this.fair * this.layers[this.at].experts;
    this.table.tBodies[0].replaceChildren(...this.counts.map(({ expert, count }) => {
      sum += count;
      return tableRow([
        `expert ${expert}`, whole(count), this.fair ? (count / this.fair).toFixed(3) : "-",
        total ? `${((100 * sum) / total).toFixed(1)} %` : "-",
      ], count ? "" : "idle");
    }));
  }
}

function percents(_, ticks) {
  return ticks.map((value) => `${Math.round(100 * value)} %`);
}

function tableRow(texts, kind = "") {
  const line = document.createElement("tr");
  line.className = kind;
  texts.forEach((text, at) => {
    const cell = document.createElement(at ? "td" : "th");
    if (!at) cell.scope = "row";
    cell.textContent = text;
    line.append(cell);
  });
  return line;
}
