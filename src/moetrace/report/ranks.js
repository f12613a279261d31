// Load of the expert-parallel ranks, for a placement that the reader chooses.

// Each says on which rank every copy of an expert lies and what it takes, from the assignments of the window shown.
const PLACEMENTS = {
  contiguous: (counts, ranks) => counts.map((load, expert) => ({ expert, load, rank: Math.floor((expert * ranks) / counts.length) })),
  striped: (counts, ranks) => counts.map((load, expert) => ({ expert, load, rank: expert % ranks })),
  balanced: (counts, ranks) => packed(counts.map((load, expert) => ({ expert, load })), ranks),
  replicas: (counts, ranks) => packed(replicated(counts, ranks), ranks),
};

// Heaviest copy first, onto the lightest rank that has room: what rearranging could give at most.
function packed(copies, ranks) {
  const loads = new Array(ranks).fill(0), held = new Array(ranks).fill(0);
  const room = Math.ceil(copies.length / ranks);
  copies.sort((a, b) => b.load - a.load || a.expert - b.expert);
  for (const copy of copies) {
    let best = -1;
    for (let rank = 0; rank < ranks; rank++)
      if (held[rank] < room && (best < 0 || loads[rank] < loads[best])) best = rank;
    copy.rank = best;
    loads[best] += copy.load;
    held[best] += 1;
  }
  return copies;
}

// One copy more for each rank: of the expert whose copies take most, every time; they share its tokens evenly.
// Source: DeepSeek's expert parallelism load balancer (EPLB), redundant experts.
function replicated(counts, ranks) {
  const copies = new Array(counts.length).fill(1);
  for (let spare = 0; spare < ranks; spare++) {
    let most = 0;
    for (let expert = 1; expert < counts.length; expert++)
      if (counts[expert] / copies[expert] > counts[most] / copies[most]) most = expert;
    copies[most] += 1;
  }
  return counts.flatMap((count, expert) =>
    Array.from({ length: copies[expert] }, () => ({ expert, load: count / copies[expert] })));
}

class RankLoad {
  constructor(layers) {
    this.layers = layers;
    this.ranks = document.getElementById("ranks");
    this.placement = document.getElementById("placement");
    this.body = document.getElementById("rank-loads").tBodies[0];
    const most = Math.max(...layers.map((layer) => layer.experts));
    for (let ranks = 2; ranks <= Math.min(64, most); ranks *= 2) this.ranks.append(new Option(ranks, ranks));
    this.ranks.selectedIndex = Math.min(2, this.ranks.length - 1);
    document.getElementById("ep").hidden = !this.ranks.length;
    this.all = document.getElementById("stragglers").tBodies[0];
    this.all.closest("details").addEventListener("toggle", () => this.list());
    for (const choice of [this.ranks, this.placement]) choice.addEventListener("change", () => this.draw());
  }

  show(phase, window, at) {
    Object.assign(this, { phase, window, at });
    this.draw();
  }

  // Where the copies of the experts lie and the assignments of each rank; null where the layer routed nothing.
  placed(layer, ranks, placement = this.placement.value) {
    if (!fairShare(this.phase, this.window, layer)) return null;
    const counts = Array.from({ length: layer.experts }, (_, expert) => countOf(this.phase, this.window, layer, expert));
    const copies = PLACEMENTS[placement](counts, ranks), loads = new Array(ranks).fill(0);
    for (const { rank, load } of copies) loads[rank] += load;
    return { copies, loads };
  }

  // All layers together: the heaviest rank of each, over an even split; and the worst layer.
  over(ranks, placement) {
    let heaviest = 0, total = 0, worst = null;
    for (const layer of this.layers) {
      const loads = this.placed(layer, ranks, placement)?.loads;
      if (!loads) continue;
      const sum = loads.reduce((a, b) => a + b, 0), most = Math.max(...loads), times = (most * ranks) / sum;
      heaviest += most;
      total += sum;
      if (!worst || times > worst.times) worst = { times, name: layer.name, rank: loads.indexOf(most) };
    }
    return { factor: (heaviest * ranks) / total, worst };
  }

  // Only while it is looked at: every layer is placed anew for each cell.
  list() {
    if (!this.all.closest("details").open) return;
    this.all.replaceChildren(...[...this.ranks.options].map(({ value }) => tableRow([
      `${value} ranks`,
      ...Object.keys(PLACEMENTS).map((placement) => {
        const { factor, worst } = this.over(Number(value), placement);
        return worst ? factor.toFixed(3) : "-";
      }),
    ])));
  }

  draw() {
    this.list();
    if (!this.ranks.length) return;
    const ranks = Number(this.ranks.value);
    const layer = this.layers[this.at], said = document.getElementById("ranks-said");
    const { factor, worst } = this.over(ranks, this.placement.value);
    const { copies, loads } = this.placed(layer, ranks) ?? {};
    if (!worst || !loads) {
      said.textContent = `${layer.name} routed no token in ${steps(this.phase.spans[this.window])}.`;
      this.body.replaceChildren();
      return;
    }
    const mean = loads.reduce((a, b) => a + b, 0) / ranks;
    const placed = this.placement.selectedOptions[0].textContent;
    said.textContent = `With ${ranks} ranks, ${placed}, every layer waits for its heaviest rank: over all layers ` +
      `that is ${factor.toFixed(3)} times an even split, at worst ${worst.times.toFixed(3)} times in ` +
      `${worst.name} (rank ${worst.rank}). Below: ${layer.name}, ${steps(this.phase.spans[this.window])}.`;
    const most = Math.max(...loads);
    this.body.replaceChildren(...loads.map((load, rank) => {
      const held = copies.filter((copy) => copy.rank === rank).map((copy) => copy.expert).sort((a, b) => a - b);
      const line = tableRow([`rank ${rank}`, spelled(held), whole(Math.round(load)), (load / mean).toFixed(3)]);
      const track = document.createElement("td"), bar = document.createElement("i");
      track.className = "share";
      track.style.setProperty("--even", `${(100 * mean) / most}%`);
      bar.style.width = `${(100 * load) / most}%`;
      if (load === most && load > mean * (1 + 1e-9)) bar.className = "most";
      track.append(bar);
      line.append(track);
      return line;
    }));
  }
}

// Experts in a few characters: a range where they are neighbours.
function spelled(held) {
  if (!held.length) return "none";
  if (held.length > 2 && held.at(-1) - held[0] === held.length - 1) return `${held[0]}-${held.at(-1)}`;
  return held.length > 4 ? `${held.slice(0, 3).join(", ")} ... ${held.at(-1)}` : held.join(", ");
}
