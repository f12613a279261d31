// Tables of experts that are looked up by index: coverage over time, sub-keys, rank curve.

const TABLE_CURVES = [
  { metric: "coverage", title: "Coverage", unit: "share of the experts drawn; dashed: by chance" },
  { metric: "unevenness", title: "Unevenness", unit: "nats from uniform; dashed: by chance" },
  { metric: "row_unevenness", title: "Unevenness of the row keys", unit: "nats; dashed: by chance" },
  { metric: "hot_indices", title: "Hot experts", unit: "above the threshold; dashed: by chance" },
];

// Perceptually even from black to pale yellow, so that it reads without colour too.
const MAP_RAMP = (() => {
  const stops = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
  return Array.from({ length: 256 }, (_, grey) => {
    const place = (grey / 255) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
    return stops[low].map((from, at) => Math.round(from + (stops[low + 1][at] - from) * (place - low)));
  });
})();

class ExpertTables {
  constructor(found, metrics) {
    Object.assign(this, { found, metrics });
    this.choice = document.getElementById("table");
    for (const table of found.tables) this.choice.append(new Option(table.name));
    this.choice.addEventListener("change", () => this.draw());
    // first the one that falls furthest short of what chance would reach
    const reached = found.tables.map(({ now }) => (now.coverage === null ? 1 : now.coverage / now.coverage_floor));
    this.choice.selectedIndex = reached.indexOf(Math.min(...reached));
    document.getElementById("table-label").hidden = found.tables.length < 2;
    document.getElementById("tables").hidden = false;
    const phase = { spans: found.spans, worst: [] };
    this.charts = new Charts(document.getElementById("table-curves"), TABLE_CURVES,
      (_, { metric }) => this.lines(metric), () => {});
    this.charts.show(phase, found.spans.length - 1);
    this.draw();
  }

  lines(metric) {
    const { tables, spans } = this.found, chosen = this.choice.selectedIndex;
    const of = (name, at) => columnOf(this.metrics[name], spans.length, tables.length, at);
    const lines = tables.flatMap(({ name }, at) =>
      at === chosen ? [] : [{ label: name, values: of(metric, at), stroke: colour("quiet"), width: 1 }]);
    lines.push({ label: "by chance", values: of(`${metric}_floor`, chosen), stroke: colour("ink"), width: 1.5,
      dash: [5, 4], tag: "by chance" });
    lines.push({ label: tables[chosen].name, values: of(metric, chosen), stroke: colour("worst-1"), width: 2,
      tag: layerTag(tables[chosen].short) });
    return lines;
  }

  draw() {
    const table = this.found.tables[Math.max(0, this.choice.selectedIndex)], { now } = table;
    const mean = table.draws / table.experts, known = (value) => (value === null ? "not known" : `${+value.toPrecision(4)}`);
    const parts = [`${table.name}: ${whole(table.draws)} draws of ${whole(table.experts)} experts by ${whole(table.tokens)} tokens`];
    if (now.coverage !== null)
      parts.push(`${whole(table.used)} experts drawn, coverage ${(100 * now.coverage).toFixed(2)} % ` +
        `(by chance ${(100 * now.coverage_floor).toFixed(2)} %)`);
    parts.push(`unevenness ${known(now.unevenness)} nats (by chance ${known(now.unevenness_floor)})`);
    if (table.rows.length)
      parts.push(`${now.dead_rows ?? 0} of ${table.rows.length} row keys and ${now.dead_columns ?? 0} of ` +
        `${table.columns.length} column keys without a draw`);
    document.getElementById("table-said").textContent = `${parts.join("; ")}.`;
    this.charts.draw();
    for (const [id, counts] of [["row-keys", table.rows], ["column-keys", table.columns]]) this.strip(id, counts);
    document.getElementById("sub-keys").hidden = !table.rows.length;
    this.ranked(table, mean);
    this.mapped(table);
    document.getElementById("busiest").tBodies[0].replaceChildren(...table.top.map(([expert, draws]) =>
      tableRow([`expert ${expert}`, whole(draws), (draws / mean).toFixed(2)])));
  }

  // One cell a sub-key, in the colours of the map of layers.
  strip(id, counts) {
    const canvas = document.getElementById(id), { colours, dead } = palette();
    canvas.width = Math.max(1, counts.length);
    canvas.height = 1;
    const fair = counts.reduce((a, b) => a + b, 0) / counts.length;
    const idle = counts.filter((count) => !count).length;
    canvas.setAttribute("aria-label", `${counts.length} sub-keys, ${idle} without a draw, the busiest ` +
      `${counts.length && fair ? (counts.reduce((a, b) => Math.max(a, b), 0) / fair).toFixed(2) : 0} times its fair share`);
    if (!fair) return;
    const image = new ImageData(counts.length, 1);
    counts.forEach((count, at) => image.data.set([...cellColour(count, fair, colours, dead), 255], 4 * at));
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // A pixel an expert, or some neighbours: black was never drawn, brighter is more, on a logarithmic scale.
  async mapped(table) {
    document.getElementById("expert-map").hidden = !table.map;
    if (!table.map) return;
    const { span, pixels } = table.map, { rows, columns } = pixels, greys = await integers(pixels);
    if (table !== this.found.tables[this.choice.selectedIndex]) return; // another was chosen meanwhile
    const canvas = document.getElementById("expert-pixels"), image = new ImageData(columns, rows);
    const drawn = greys.reduce((sum, grey) => sum + (grey > 0), 0);
    greys.forEach((grey, at) => image.data.set([...MAP_RAMP[grey], 255], 4 * at));
    canvas.width = columns;
    canvas.height = rows;
    canvas.getContext("2d").putImageData(image, 0, 0);
    const each = Math.max(1, Math.round(table.experts / (rows * columns)));
    document.getElementById("expert-map-of").textContent =
      `steps ${span[0]}-${span[1]}; ${each > 1 ? `a pixel is ${each} experts` : "a pixel an expert"}, ` +
      `rows are the first sub-keys; black was never drawn, brighter is more, logarithmic`;
    canvas.setAttribute("aria-label", `${whole(drawn)} of ${whole(rows * columns)} pixels hold an expert that was drawn`);
  }

  ranked(table, mean) {
    const body = document.getElementById("rank-curve");
    this.plot?.destroy();
    body.replaceChildren();
    const points = table.ranks.map((rank, at) => [rank, table.rankDraws[at]]).filter(([rank, draws]) => rank > 0 && draws > 0);
    if (points.length < 2) return;
    const font = plotFont(), powers = (_, ticks) => ticks.map((v) => (v === null || Math.log10(v) % 1 ? "" : v >= 1e4 ? v.toExponential() : `${v}`));
    body.setAttribute("role", "img");
    body.setAttribute("aria-label", `Draws by rank: the busiest expert ${whole(points[0][1])}, the last one drawn at rank ${whole(points.at(-1)[0])}`);
    this.plot = new uPlot({
      width: body.clientWidth,
      height: TALL,
      padding: [8, 22, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, distr: 3 }, y: { distr: 3 } },
      axes: [{ ...axisLook(), font, size: 28, values: powers }, { ...axisLook(), font, size: 52, values: powers }],
      series: [
        {},
        { stroke: colour("worst-1"), width: 2, points: { show: false } },
        { stroke: colour("ink"), width: 1.25, dash: [5, 4], points: { show: false } },
      ],
    }, [points.map(([rank]) => rank), points.map(([, draws]) => draws), points.map(() => mean || null)], body);
  }
}

// Drawn by itself: a model may have such tables and no router.
async function openTables(found) {
  return found && new ExpertTables(found, await tables(found.metrics));
}
