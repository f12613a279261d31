// Renews a page that moetrace serve gave out, and comes back to where the reader was.

const LOOK = 3000; // milliseconds between two questions whether there is something new
const KEPT = "moetrace";

// Called once everything stands.
function resume(page) {
  const live = document.getElementById("live"), on = live.querySelector("input"), said = live.querySelector("output");
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
  sessionStorage.removeItem(KEPT);
  on.checked = kept.on ?? true;
  const phase = page.phases.findIndex((item) => item.name === kept.phase);
  if (phase > 0) {
    document.getElementById("phase").selectedIndex = phase;
    page.open(page.phases[phase]);
  }
  const window = page.phase.spans.findIndex((span) => span[1] >= kept.step);
  if (kept.step !== undefined && window >= 0) page.go(window);
  if (page.layers[kept.layer]) page.pick(kept.layer);
  if (kept.cell && page.layers[kept.cell.row]) page.heatmap.move(kept.cell.row, kept.cell.expert);
  if (kept.theme) {
    document.documentElement.style.colorScheme = kept.theme;
    page.repaint();
  }
  if (kept.at !== undefined) scrollTo(0, kept.at);
  document.getElementById(kept.focus)?.focus({ preventScroll: true });
  said.textContent = `as of ${new Date().toLocaleTimeString()}`;
  setInterval(() => look(page, live, on, said), LOOK);
}

async function look(page, live, on, said) {
  if (!on.checked || page.timer || document.hidden) return;
  try {
    const answer = await fetch("state", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    if ((await answer.text()) === live.dataset.state) return;
  } catch {
    said.textContent = "the server does not answer; this is the last page it gave";
    return;
  }
  const { phase, window } = page, last = phase.spans.length - 1;
  sessionStorage.setItem(KEPT, JSON.stringify({
    on: on.checked,
    phase: phase.name,
    // at the last window the reader stays at the last; anywhere else at that step
    step: window === last ? undefined : phase.spans[window][1],
    layer: page.layer,
    cell: window === last ? undefined : page.heatmap.cell,
    theme: document.documentElement.style.colorScheme || undefined,
    at: scrollY,
    focus: document.activeElement?.id || undefined,
  }));
  location.reload();
}
