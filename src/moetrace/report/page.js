// Puts the views together: one phase and one window, shown by all of them.

const PACE = 180; // milliseconds a window while playing

async function start() {
  const report = JSON.parse(document.getElementById("data").textContent);
  if (!report.phases.length) return;
  let start = 0;
  for (const layer of report.layers) {
    layer.start = start;
    start += layer.experts;
  }
  const phases = await Promise.all(report.phases.map(openPhase));
  for (const phase of phases) phase.cellCount = start;
  document.getElementById("views").hidden = false;
  new Page(report.layers, phases);
}

class Page {
  constructor(layers, phases) {
    Object.assign(this, { layers, phases });
    this.slider = document.getElementById("step");
    this.heatmap = new Heatmap(layers, (cell) => this.read(cell));
    this.curves = new Curves(layers, (window) => this.go(window));
    this.table = new LayerTable(layers);
    this.choosePhase();
    this.slider.addEventListener("input", () => this.go(this.slider.valueAsNumber));
    document.getElementById("play").addEventListener("click", () => this.play(!this.timer));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.open(this.phase));
    document.getElementById("stem").textContent = stem(layers);
    this.open(phases[0]);
  }

  choosePhase() {
    const choice = document.getElementById("phase");
    for (const phase of this.phases) choice.append(new Option(phase.name));
    document.getElementById("phase-label").hidden = this.phases.length < 2;
    choice.addEventListener("change", () => this.open(this.phases[choice.selectedIndex]));
  }

  open(phase) {
    this.play(false);
    const again = phase === this.phase;
    this.phase = phase;
    const last = phase.spans.length - 1;
    this.slider.max = last;
    this.slider.disabled = document.getElementById("play").disabled = last === 0;
    this.heatmap.mark(Curves.colours(phase));
    const binned = document.getElementById("binned");
    binned.hidden = phase.recorded === phase.spans.length;
    binned.textContent = `To keep this file small, the ${phase.recorded} windows of the run are added up into ` +
      `${phase.spans.length} wider ones, and every figure is formed from those sums; the last window is as it was ` +
      "recorded. A wider window is more even, and so is its noise floor.";
    if (again) this.curves.draw();
    this.go(again ? Math.min(this.window, last) : last);
  }

  go(window) {
    this.window = window;
    this.slider.value = window;
    const { phase } = this;
    const text = steps(phase.spans[window]);
    this.slider.setAttribute("aria-valuetext", `${phase.name}, ${text}`);
    document.getElementById("window").textContent = `${text} (window ${window + 1} of ${phase.spans.length})`;
    this.heatmap.show(phase, window);
    this.curves.show(phase, window);
    this.table.show(phase, window);
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
