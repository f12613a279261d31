// Load of the expert-parallel ranks, for a placement that the reader chooses.

const PLACEMENTS = {
  contiguous: (expert, experts, ranks) => Math.floor((expert * ranks) / experts),
  striped: (expert, _, ranks) => expert % ranks,
};

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
    for (const choice of [this.ranks, this.placement]) choice.addEventListener("change", () => this.draw());
  }

  show(phase, window, at) {
    Object.assign(this, { phase, window, at });
    this.draw();
  }

  // Assignments by rank; null where the layer routed nothing.
  loads(layer, ranks, place) {
    if (!fairShare(this.phase, this.window, layer)) return null;
    const loads = new Array(ranks).fill(0);
    for (let expert = 0; expert < layer.experts; expert++)
      loads[place(expert, layer.experts, ranks)] += countOf(this.phase, this.window, layer, expert);
    return loads;
  }

  draw() {
    if (!this.ranks.length) return;
    const ranks = Number(this.ranks.value), place = PLACEMENTS[this.placement.value];
    const layer = this.layers[this.at], said = document.getElementById("ranks-said");
    let heaviest = 0, total = 0, worst = null;
    this.layers.forEach((item) => {
      const loads = this.loads(item, ranks, place);
      if (!loads) return;
      const sum = loads.reduce((a, b) => a + b, 0), most = Math.max(...loads);
      heaviest += most;
      total += sum;
      const times = (most * ranks) / sum;
      if (!worst || times > worst.times) worst = { times, name: item.name, rank: loads.indexOf(most) };
    });
    const loads = this.loads(layer, ranks, place);
    if (!worst || !loads) {
      said.textContent = `${layer.name} routed no token in ${steps(this.phase.spans[this.window])}.`;
      this.body.replaceChildren();
      return;
    }
    const mean = loads.reduce((a, b) => a + b, 0) / ranks;
    said.textContent = `With ${ranks} ranks, ${this.placement.value}, every layer waits for its heaviest rank: over all layers ` +
      `that is ${((heaviest * ranks) / total).toFixed(3)} times an even split, at worst ${worst.times.toFixed(3)} times in ` +
      `${worst.name} (rank ${worst.rank}). Below: ${layer.name}, ${steps(this.phase.spans[this.window])}.`;
    const most = Math.max(...loads);
    this.body.replaceChildren(...loads.map((load, rank) => {
      const held = [];
      for (let expert = 0; expert < layer.experts; expert++)
        if (place(expert, layer.experts, ranks) === rank) held.push(expert);
      const line = tableRow([`rank ${rank}`, spelled(held), whole(load), (load / mean).toFixed(3)]);
      const track = document.createElement("td"), bar = document.createElement("i");
      track.className = "share";
      track.style.setProperty("--even", `${(100 * mean) / most}%`);
      bar.style.width = `${(100 * load) / most}%`;
      if (load === most && load > mean) bar.className = "most";
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
