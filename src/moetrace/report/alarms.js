// Puts a bar into each row of the table of alerts: since when, until when, on the steps of its phase.

function drawAlarms(phases) {
  for (const track of document.querySelectorAll("td.track")) {
    const phase = phases[Number(track.dataset.phase)];
    if (!phase) continue;
    const start = phase.spans[0][0], end = phase.spans.at(-1)[1], long = Math.max(1, end - start + 1);
    const first = Number(track.dataset.first), last = Number(track.dataset.last || end);
    const bar = document.createElement("i");
    bar.style.left = `${Math.max(0, (100 * (first - start)) / long)}%`;
    bar.style.width = `${Math.max(0.8, Math.min(100, (100 * (last - first + 1)) / long))}%`;
    track.append(bar);
  }
}
