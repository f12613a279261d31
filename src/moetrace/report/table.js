// One row per layer at the slider's window, as text; sorted by any column.

const COLUMNS = [
  { key: "name", title: "layer" },
  { key: "tokens", title: "tokens", format: whole },
  { key: "load_cv", title: "load CV", format: fixed },
  { key: "max_vio", title: "MaxVio", format: fixed },
  { key: "max_vio_floor", title: "noise floor", format: fixed },
  { key: "max_vio_excess", title: "excess", format: fixed },
  { key: "routing_entropy", title: "routing entropy (nats)", format: fixed },
  { key: "dead_experts", title: "dead experts", format: whole },
  { key: "hottest", title: "hottest expert", format: whole },
  { key: "share", title: "its share", format: (value) => `${(100 * value).toFixed(2)} %` },
];

function whole(value) {
  return value.toLocaleString("en-US");
}

function fixed(value) {
  return value.toFixed(3);
}

function steps([first, last]) {
  return first === last ? `step ${first}` : `steps ${first}-${last}`;
}

class LayerTable {
  constructor(layers) {
    this.layers = layers;
    this.order = { key: null, up: false };
    const table = document.getElementById("layers");
    this.body = table.tBodies[0];
    for (const column of COLUMNS) {
      const head = document.createElement("th"), button = document.createElement("button");
      head.scope = "col";
      button.type = "button";
      button.textContent = column.title;
      button.addEventListener("click", () => this.sort(column.key));
      head.append(button);
      table.tHead.rows[0].append(head);
    }
  }

  sort(key) {
    const up = this.order.key === key ? !this.order.up : key === "name";
    this.order = { key, up };
    [...document.getElementById("layers").tHead.rows[0].cells].forEach((head, at) => {
      if (COLUMNS[at].key === key) head.ariaSort = up ? "ascending" : "descending";
      else head.removeAttribute("aria-sort");
    });
    this.show(this.phase, this.window);
  }

  rows() {
    const { phase, window } = this, count = this.layers.length;
    return this.layers.map((layer, at) => {
      const row = { name: layer.name, at, tokens: phase.tokens[window * count + at] };
      for (const [metric, values] of Object.entries(phase.metrics)) row[metric] = values[window * count + at];
      const mean = fairShare(phase, window, layer);
      if (row.tokens < 0) row.tokens = NaN;
      row.hottest = row.share = NaN;
      if (!mean) return row;
      row.hottest = hottest(phase, window, layer);
      row.share = countOf(phase, window, layer, row.hottest) / (mean * layer.experts);
      return row;
    });
  }

  show(phase, window) {
    Object.assign(this, { phase, window });
    const { key, up } = this.order;
    const rows = this.rows();
    if (key === "name") rows.sort((a, b) => a.at - b.at);
    else if (key) rows.sort((a, b) => rank(a[key]) - rank(b[key]) || a.at - b.at);
    if (key && !up) rows.reverse();
    const colours = worstColours(phase);
    this.body.replaceChildren(...rows.map((row) => {
      const line = document.createElement("tr");
      line.style.setProperty("--dot", colours.get(row.at) ?? "transparent");
      for (const column of COLUMNS) {
        const cell = document.createElement(column.format ? "td" : "th");
        const value = row[column.key];
        cell.textContent = !column.format ? value : Number.isNaN(value) ? "-" : column.format(value);
        if (!column.format) cell.scope = "row";
        if (column.key === "dead_experts" && value > 0) cell.className = "alarm";
        line.append(cell);
      }
      return line;
    }));
  }
}

function rank(value) {
  return Number.isNaN(value) ? -Infinity : value;
}

// Percentiles over the layers of this window, and the worst layer by name.

const SPREAD = [
  { key: "load_cv", title: "load CV" },
  { key: "max_vio", title: "MaxVio" },
  { key: "max_vio_excess", title: "MaxVio over its floor" },
  { key: "load_gini", title: "Gini" },
  { key: "routing_entropy", title: "routing entropy (nats)", low: true },
  { key: "load_balancing_loss", title: "load-balancing loss" },
  { key: "dead_experts", title: "experts without a token" },
];

class SpreadTable {
  constructor(layers) {
    this.layers = layers;
    this.body = document.getElementById("spread").tBodies[0];
  }

  show(phase, window) {
    const count = this.layers.length;
    this.body.replaceChildren(...SPREAD.map(({ key, title, low }) => {
      const values = [...phase.metrics[key].subarray(window * count, (window + 1) * count)];
      const known = values.filter((value) => !Number.isNaN(value));
      if (!known.length) return tableRow([title, "-", "-", "-", "-", "-", "-"]);
      const worst = low ? Math.min(...known) : Math.max(...known);
      const tail = (q) => tidy(quantile(known, q));
      return tableRow([title, tail(0.5), tail(0.75), tail(0.9), tail(0.95), tidy(worst),
        key === "dead_experts" && !worst ? "none" : this.layers[values.indexOf(worst)].name]);
    }));
  }
}

function tidy(value) {
  return Number.isInteger(value) ? whole(value) : fixed(value);
}
