// Layers by experts. Cells are device pixels drawn from one small picture; text is HTML around it.

const ABSENT = -1;
const CLIP = 4; // of log2(load / fair share)
const RAMPS = {
  light: ["#0b4f8a", "#3f83bd", "#9cc3e0", "#f1efe9", "#f3bd84", "#d9772b", "#8f3a06"],
  dark: ["#58a6f0", "#3a7cba", "#294c6d", "#25282e", "#6f451f", "#c57a2c", "#f5a24e"],
};
const DEAD = { light: "#15171b", dark: "#fbfbfd" };
const STEPS = 129;
const DRAWN = 16384; // a canvas is no wider than 32767 pixels

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function ramp(theme) {
  const stops = RAMPS[theme].map(rgb);
  return Array.from({ length: STEPS }, (_, i) => {
    const at = (i / (STEPS - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((v, c) => Math.round(v + (stops[low + 1][c] - v) * (at - low)));
  });
}

// The theme that the page stands in: chosen by its button, or else the system's.
function theme() {
  const chosen = document.documentElement.style.colorScheme;
  if (chosen) return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function palette() {
  return { colours: ramp(theme()), dead: rgb(DEAD[theme()]) };
}

function cellColour(count, fair, colours, dead) {
  if (!count) return dead;
  const log = Math.max(-CLIP, Math.min(CLIP, Math.log2(count / fair)));
  return colours[Math.round(((log + CLIP) / (2 * CLIP)) * (STEPS - 1))];
}

class Heatmap {
  constructor(layers, { onCell, onPick }) {
    Object.assign(this, { layers, onCell, onPick });
    this.most = Math.min(DRAWN, Math.max(1, ...layers.map((layer) => layer.experts)));
    this.canvas = document.getElementById("heat");
    this.cursor = document.getElementById("cursor");
    this.cell = null;
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => {
      this.point(event);
      this.onPick(this.cell.row);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.names();
    this.layout();
    new ResizeObserver(() => this.layout()).observe(document.querySelector(".heat-scroll"));
  }

  names() {
    const list = document.getElementById("heat-names");
    for (const layer of this.layers) {
      const item = document.createElement("span");
      item.textContent = layer.short;
      item.title = layer.name;
      list.append(item);
    }
  }

  mark(colours) {
    [...document.getElementById("heat-names").children].forEach((item, at) => {
      item.style.setProperty("--dot", colours.get(at) ?? "transparent");
    });
  }

  show(phase, window) {
    this.phase = phase;
    this.window = window;
    this.draw();
    if (this.cell) this.onCell(this.cell);
    else this.move(phase.worst[0] ?? 0, hottest(phase, window, this.layers[phase.worst[0] ?? 0]));
  }

  layout() {
    const scale = devicePixelRatio;
    const room = (document.querySelector(".heat-scroll").clientWidth - 6) * scale;
    this.width = Math.max(Math.min(Math.floor(room / this.most), 64 * scale), Math.round(this.most > 1024 ? 1 : 2 * scale));
    const tall = Math.min(Math.max(640 / this.layers.length, 14), 30);
    // a canvas is no taller than 32767 pixels
    this.height = Math.max(1, Math.min(Math.round(tall * scale), Math.floor(32000 / this.layers.length)));
    this.canvas.width = this.width * this.most;
    this.canvas.height = this.height * this.layers.length;
    this.canvas.style.width = `${this.canvas.width / scale}px`;
    this.canvas.style.height = `${this.canvas.height / scale}px`;
    const names = document.getElementById("heat-names");
    names.style.setProperty("--row", `${this.height / scale}px`);
    this.axis();
    this.draw();
    this.place();
  }

  axis() {
    const axis = document.getElementById("heat-axis");
    const unit = this.width / devicePixelRatio;
    let every = 1;
    while (every * unit < 34) every *= 2;
    axis.replaceChildren();
    for (let expert = 0; expert < this.most; expert += every) {
      const tick = document.createElement("span");
      tick.textContent = expert;
      tick.style.left = `${(expert + 0.5) * unit}px`;
      axis.append(tick);
    }
  }

  draw() {
    if (!this.phase || !this.width) return;
    const { colours, dead } = palette();
    const image = new ImageData(this.most, this.layers.length);
    this.layers.forEach((layer, row) => {
      const fair = fairShare(this.phase, this.window, layer);
      for (let expert = 0; expert < Math.min(layer.experts, DRAWN); expert++) {
        const count = countOf(this.phase, this.window, layer, expert);
        if (count === ABSENT || !fair) continue;
        const colour = cellColour(count, fair, colours, dead), at = 4 * (row * this.most + expert);
        image.data[at] = colour[0];
        image.data[at + 1] = colour[1];
        image.data[at + 2] = colour[2];
        image.data[at + 3] = 255;
      }
    });
    const small = new OffscreenCanvas(this.most, this.layers.length);
    small.getContext("2d").putImageData(image, 0, 0);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
    // gaps where cells are wide enough to lose a pixel
    const gap = Math.round(devicePixelRatio);
    if (this.width > 6 * gap)
      for (let x = this.width; x <= this.canvas.width; x += this.width)
        context.clearRect(x - gap, 0, gap, this.canvas.height);
    for (let y = this.height; y <= this.canvas.height; y += this.height)
      context.clearRect(0, y - gap, this.canvas.width, gap);
    const sample = document.querySelector(".legend i");
    sample.style.background = `linear-gradient(90deg, ${colours.map((c) => `rgb(${c})`).join(",")})`;
    document.querySelector(".legend .dead").style.background = DEAD[theme()];
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.layers.length);
    const expert = Math.floor(((event.clientX - box.left) / box.width) * this.most);
    if (this.layers[row] && expert >= 0 && expert < this.layers[row].experts) this.move(row, expert);
  }

  key(event) {
    const { row, expert } = this.cell;
    const page = Math.max(1, Math.round(this.most / 8));
    const to = {
      ArrowLeft: [row, expert - 1], ArrowRight: [row, expert + 1],
      ArrowUp: [row - 1, expert], ArrowDown: [row + 1, expert],
      Home: [row, 0], End: [row, Infinity],
      PageUp: [row, expert - page], PageDown: [row, expert + page],
    }[event.key];
    if (!to || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.move(...to);
    this.onPick(this.cell.row);
  }

  move(row, expert) {
    row = Math.max(0, Math.min(this.layers.length - 1, row));
    expert = Math.max(0, Math.min(this.layers[row].experts - 1, expert));
    this.cell = { row, expert };
    this.place();
    this.onCell(this.cell);
  }

  place() {
    this.cursor.hidden = !this.cell;
    if (!this.cell || !this.width) return;
    const scale = devicePixelRatio;
    this.cursor.style.width = `${this.width / scale}px`;
    this.cursor.style.height = `${this.height / scale}px`;
    this.cursor.style.left = `${(this.cell.expert * this.width) / scale}px`;
    this.cursor.style.top = `${(this.cell.row * this.height) / scale}px`;
  }
}

function countOf(phase, window, layer, expert) {
  return phase.cells[window * phase.cellCount + layer.start + expert];
}

function fairShare(phase, window, layer) {
  let sum = 0;
  for (let expert = 0; expert < layer.experts; expert++) {
    const count = countOf(phase, window, layer, expert);
    if (count === ABSENT) return 0;
    sum += count;
  }
  return sum / layer.experts;
}

function hottest(phase, window, layer) {
  let best = 0;
  for (let expert = 1; expert < layer.experts; expert++)
    if (countOf(phase, window, layer, expert) > countOf(phase, window, layer, best)) best = expert;
  return best;
}
