// Puts the views together: one phase, one window and one layer, shown by all of them.

const PACE = 180; // milliseconds a window while playing

async function start() {
  const report = JSON.parse(document.getElementById("data").textContent);
  if (!report.layers.length) {
    await openProbes(report);
    document.body.dataset.drawn = "all";
    return;
  }
  let start = 0;
  for (const layer of report.layers) {
    layer.start = start;
    start += layer.experts;
  }
  // The first phase is what is seen first; the others are unpacked behind it.
  const first = { ...(await openPhase(report.phases[0])), cellCount: start };
  document.getElementById("views").hidden = false;
  const page = new Page(report.layers, [first, ...report.phases.slice(1)]);
  await painted();
  document.body.dataset.drawn = "first";
  performance.mark("first draw");
  page.more();
  for (let at = 1; at < report.phases.length; at++)
    page.phases[at] = { ...(await openPhase(report.phases[at])), cellCount: start };
  page.choosePhase();
  drawAlarms(page.phases);
  await painted();
  page.rest();
  const found = await openTables(report.tables);
  if (found) page.views.push({ show: () => {}, draw: () => found.draw() });
  // of live.js, where the page is served
  if (typeof resume === "function") resume(page);
  document.body.dataset.drawn = "all";
  performance.mark("all drawn");
}

// A run without a router: what probes and tables recorded, at its last window.
async function openProbes({ phases, tables }) {
  const opened = await Promise.all(phases.map(openPhase));
  drawAlarms(opened);
  const phase = opened.find((phase) => probeKinds([phase]).length);
  if (phase) probeCharts([phase], [], () => {}).show(phase, phase.spans.length - 1);
  await openTables(tables);
}

// Resolves when what was drawn so far is on the screen, or at once where nothing is painted.
function painted() {
  return new Promise((done) => {
    const shown = () => setTimeout(done);
    if (document.hidden) shown();
    else requestAnimationFrame(shown);
  });
}

class Page {
  constructor(layers, phases) {
    Object.assign(this, { layers, phases });
    this.slider = document.getElementById("step");
    this.heatmap = new Heatmap(layers, {
      onCell: (cell) => this.read(cell),
      onPick: (layer) => this.pick(layer),
    });
    this.views = [this.heatmap];
    this.slider.addEventListener("input", () => this.go(this.slider.valueAsNumber));
    document.getElementById("play").addEventListener("click", () => this.play(!this.timer));
    const button = document.getElementById("theme");
    button.hidden = false;
    button.addEventListener("click", () => this.turn());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    document.getElementById("stem").textContent = stem(layers);
    this.layer = phases[0].worst[0] ?? 0;
    this.open(phases[0]);
  }

  // What stands on the second screen, then what stands below it.
  more() {
    const go = (window) => this.go(window);
    this.add(new Charts(document.getElementById("curves"), CURVES, balanceLines(this.layers), go));
    this.add(new SpreadTable(this.layers));
    this.table = new LayerTable(this.layers);
    this.add(this.table);
  }

  rest() {
    const go = (window) => this.go(window);
    this.depth = new LayerDepth(this.layers, {
      onWindow: go,
      onCell: (layer, expert) => this.heatmap.move(layer, expert),
    });
    document.getElementById("layer").addEventListener("change", (event) => this.pick(event.target.selectedIndex));
    this.add(this.depth);
    this.depth.pick(this.layer);
    this.ranks = new RankLoad(this.layers);
    this.add({ show: (phase, window) => this.ranks.show(phase, window, this.layer) });
    if (probeKinds(this.phases).length) this.add(probeCharts(this.phases, this.layers, go));
  }

  add(view) {
    this.views.push(view);
    view.show(this.phase, this.window);
  }

  choosePhase() {
    const choice = document.getElementById("phase");
    for (const phase of this.phases) choice.append(new Option(phase.name));
    document.getElementById("phase-label").hidden = this.phases.length < 2;
    choice.addEventListener("change", () => this.open(this.phases[choice.selectedIndex]));
  }

  open(phase) {
    this.play(false);
    this.phase = phase;
    const last = phase.spans.length - 1;
    this.slider.max = last;
    this.slider.disabled = document.getElementById("play").disabled = last === 0;
    this.heatmap.mark(worstColours(phase));
    const binned = document.getElementById("binned");
    binned.hidden = phase.recorded === phase.spans.length;
    binned.textContent = `To keep this file small, the ${phase.recorded} windows of the run are added up into ` +
      `${phase.spans.length} wider ones, and every figure is formed from those sums; the last window is as it was ` +
      "recorded. A wider window is more even, and so is its noise floor.";
    this.go(last);
  }

  go(window) {
    this.window = window;
    this.slider.value = window;
    const { phase } = this;
    const text = steps(phase.spans[window]);
    this.slider.setAttribute("aria-valuetext", `${phase.name}, ${text}`);
    document.getElementById("window").textContent = `${text} (window ${window + 1} of ${phase.spans.length})`;
    for (const view of this.views) view.show(phase, window);
  }

  pick(layer) {
    if (layer === this.layer) return;
    this.layer = layer;
    this.depth?.pick(layer);
    this.ranks?.show(this.phase, this.window, layer);
  }

  turn() {
    document.documentElement.style.colorScheme = theme() === "dark" ? "light" : "dark";
    this.repaint();
  }

  repaint() {
    this.heatmap.mark(worstColours(this.phase));
    for (const view of this.views) {
      view.draw?.();
      view.show(this.phase, this.window);
    }
  }

  play(on) {
    clearInterval(this.timer);
    this.timer = null;
    const button = document.getElementById("play");
    button.textContent = on ? "Pause" : "Play";
    button.setAttribute("aria-pressed", String(on));
    if (!on) return;
    if (this.window === this.phase.spans.length - 1) this.go(0);
    this.timer = setInterval(() => {
      if (this.window === this.phase.spans.length - 1) this.play(false);
      else this.go(this.window + 1);
    }, PACE);
  }

  read({ row, expert }) {
    const layer = this.layers[row], { phase, window } = this;
    const count = countOf(phase, window, layer, expert), fair = fairShare(phase, window, layer);
    const where = `${layer.name}, expert ${expert}, ${steps(phase.spans[window])}`;
    document.getElementById("readout").textContent =
      count === ABSENT ? `${where}: not recorded` :
      !fair ? `${where}: the layer routed no token` :
      `${where}: ${whole(count)} assignments, ${(count / fair).toFixed(3)} times the fair share of ` +
      `${fair.toLocaleString("en-US", { maximumFractionDigits: 1 })}`;
  }
}

// Says what the rows and columns are; short names leave out what all layers share.
function stem(layers) {
  const [{ name, short }] = layers;
  return `${name === short ? "layers" : name.replace(short, "*")} by expert`;
}

start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.hidden = false;
  trouble.textContent = `This browser could not open the data of the page (${error.message}). The verdict and the ` +
    "facts are complete; for the rest use a browser of 2023 or later.";
});
