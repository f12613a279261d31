"""Pictures of how experts are used: the busiest, the hot ones, coverage, and rank curves."""

import importlib
from typing import Any

import numpy as np

from moetrace.metrics import coverage_floor, dead_experts_floor
from moetrace.plot.choice import Choice
from moetrace.plot.drawing import FLOOR, LINES, QUIET, end_labels, names_of, plain, ramp, step_axis
from moetrace.plot.usage import Usage, uniform_ranks, usages

__all__ = ["draw_coverage", "draw_hot_experts", "draw_ranks", "draw_top_experts", "draw_usage"]

MOST_PANELS = 6
MOST_ROWS = 25
TOP_OF_EACH = 20
MOST_COLUMNS = 80


def draw_usage(figure: Any, choice: Choice) -> None:
    """The busiest experts as bars, up to 100 of each of the six layers with the hottest ones.

    Raises:
        ValueError: There is no such window or layer.
    """
    window = choice.window()
    found = _chosen(choice, list(usages(window)))
    hottest = sorted(found, key=lambda usage: -usage.top_draws[0] / usage.mean)[:MOST_PANELS]
    found = [usage for usage in found if usage in hottest]
    rows = -(-len(found) // 2)
    for place, usage in enumerate(found, 1):
        axes = figure.add_subplot(rows, min(2, len(found)), place)
        bars = np.arange(len(usage.top_draws))
        hot = np.array(usage.top_draws) > usage.threshold * usage.mean
        axes.bar(bars[~hot], np.array(usage.top_draws)[~hot], width=0.86, color=LINES[0])
        axes.bar(bars[hot], np.array(usage.top_draws)[hot], width=0.86, color=LINES[1])
        axes.axhline(usage.mean, color=FLOOR, linestyle=(0, (4, 3)), linewidth=1.0)
        every = max(1, -(-len(bars) // 16))
        axes.set_xticks(
            bars[::every], [str(expert) for expert in usage.top_experts[::every]], rotation=90
        )
        axes.set_xlabel("expert, busiest first")
        axes.set_ylabel("assignments")
        told = f", {usage.hot} hot" if usage.hot else ""
        axes.set_title(f"{plain(usage.layer)} (mean of all {usage.mean:,.1f}{told})")
        axes.margins(x=0.01)
    patches = importlib.import_module("matplotlib.patches")
    lines = importlib.import_module("matplotlib.lines")
    threshold = found[0].threshold
    figure.legend(
        handles=[
            lines.Line2D([], [], color=FLOOR, linestyle=(0, (4, 3)), label="mean of all experts"),
            patches.Patch(facecolor=LINES[1], label=f"hot: above {threshold:g} times the mean"),
            patches.Patch(facecolor=LINES[0], label="not hot"),
        ],
        loc="outside lower center",
        ncols=3,
    )
    figure.suptitle(choice.title("Busiest experts", window), x=0.01, ha="left")


def draw_coverage(figure: Any, choice: Choice) -> None:
    """Share of the experts of each layer that each window used, and what chance would use.

    Raises:
        ValueError: There is no such layer, or no window.
    """
    series: dict[str, list[tuple[int, float, float]]] = {}
    for window in choice.run.windows(phase=choice.phase):
        for usage in usages(window):
            if usage.coverage is not None:
                own = series.setdefault(usage.layer, [])
                own.append((window.last_step, usage.coverage, _chance(usage)))
    layers = choice.matching(series, of="a known coverage")
    axes = figure.add_subplot()
    lowest = sorted(layers, key=lambda layer: series[layer][-1][1])[: len(LINES) - 1]
    ends = []
    for layer, name in zip(layers, names_of(layers), strict=True):
        steps, covered, chance = np.array(series[layer]).T
        colour = LINES[lowest.index(layer)] if layer in lowest[:3] else QUIET
        dots = "o" if len(steps) == 1 else ""
        axes.plot(steps, 100 * covered, color=colour, marker=dots, zorder=3 - (colour == QUIET))
        if colour != QUIET:
            axes.plot(steps, 100 * chance, color=colour, linestyle=(0, (4, 3)), linewidth=0.9)
            ends.append((100 * float(covered[-1]), name, colour))
    axes.set_ylim(0, 104)
    axes.set_ylabel("experts used in the window, %")
    axes.plot([], [], color=FLOOR, linestyle=(0, (4, 3)), linewidth=0.9, label="uniform choice")
    axes.legend(loc="lower left")
    step_axis(axes, np.unique([step for own in series.values() for step, _, _ in own]))
    end_labels(axes, ends)
    axes.set_title(choice.title("Coverage over time"))


def draw_hot_experts(figure: Any, choice: Choice) -> None:
    """A table of the hot experts of a window, the hottest first, at most 25.

    Raises:
        ValueError: There is no such window or layer.
    """
    window = choice.window()
    found = _chosen(choice, list(usages(window)))
    names = dict(zip((u.layer for u in found), names_of([u.layer for u in found]), strict=True))
    hot = sorted(
        (-draws / usage.mean, usage.layer, expert, draws)
        for usage in found
        for expert, draws in zip(usage.hot_experts, usage.hot_draws, strict=True)
    )
    total = sum(usage.hot or 0 for usage in found)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title(choice.title(f"{total:,} hot experts", window))
    if not hot:
        bound = f"no expert is above {found[0].threshold:g} times the mean load of its layer"
        axes.text(0.0, 0.9, bound, transform=axes.transAxes)
        return
    rows = [
        [names[layer], f"{expert:,}", f"{draws:,}", f"{-times:.1f}"]
        for times, layer, expert, draws in hot[:MOST_ROWS]
    ]
    head = ["layer", "expert", "assignments", "times the mean"]
    table = axes.table(
        cellText=rows,
        colLabels=head,
        loc="upper left",
        cellLoc="right",
        edges="horizontal",
        colWidths=[0.34, 0.18, 0.24, 0.24],
    )
    table.auto_set_font_size(False)
    height = 0.9 / (MOST_ROWS + 2)
    table.set_fontsize(8)
    for cell in table.get_celld().values():
        cell.set_edgecolor(QUIET)
        cell.set_height(height)
    if total > len(rows):
        below = 1 - height * (len(rows) + 2.2)
        axes.text(
            0, below, f"and {total - len(rows):,} more", transform=axes.transAxes, color=FLOOR
        )


def draw_ranks(figure: Any, choice: Choice) -> None:
    """Assignments of the experts in falling order, on logarithmic axes, beside a uniform choice.

    Raises:
        ValueError: There is no such window or layer.
    """
    window = choice.window()
    found = [usage for usage in _chosen(choice, list(usages(window))) if usage.ranks]
    if not found:
        raise ValueError("found no rank curve in this window; it is of added-up ranks of a table")
    steepest = sorted(found, key=lambda usage: -usage.rank_draws[0] / usage.mean)[:3]
    names = dict(zip((u.layer for u in found), names_of([u.layer for u in found]), strict=True))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    lines = sorted(found, key=lambda usage: usage in steepest)
    for usage in lines:
        draws = np.array(usage.rank_draws, np.float64) / usage.mean
        draws[draws == 0] = np.nan
        colour = LINES[steepest.index(usage)] if usage in steepest else QUIET
        told = names[usage.layer] if usage in steepest else None
        axes.plot(usage.ranks, draws, color=colour, label=told)
    uniform = uniform_ranks(steepest[0]) / steepest[0].mean
    uniform[uniform == 0] = np.nan
    label = f"uniform choice, as many as in {names[steepest[0].layer]}"
    axes.plot(steepest[0].ranks, uniform, color=FLOOR, linestyle=(0, (4, 3)), label=label)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_log(axis)
    axes.set_xlabel("rank of the expert")
    axes.set_ylabel("load over the fair share")
    axes.legend(title="steepest layers", loc="lower left", alignment="left")
    axes.set_title(choice.title("Rank curve", window))


def draw_top_experts(figure: Any, choice: Choice) -> None:
    """The busiest experts of all layers, layer by layer: load over the fair share.

    Of layers with the most experts, where the numbers of experts differ: an expert of a router has
    nothing to do with the expert of the same number in a table of thousands.

    Raises:
        ValueError: There is no such window or layer.
    """
    window = choice.window()
    found = _chosen(choice, list(usages(window)))
    widest = max(usage.num_experts for usage in found)
    found = [usage for usage in found if usage.num_experts == widest]
    known = [_known_draws(usage, window) for usage in found]
    totals: dict[int, float] = {}
    for usage in found:
        listed = zip(usage.top_experts[:TOP_OF_EACH], usage.top_draws, strict=False)
        for expert, draws in listed:
            totals[expert] = max(totals.get(expert, 0.0), draws / usage.mean)
    experts = sorted(sorted(totals, key=lambda expert: -totals[expert])[:MOST_COLUMNS])
    table = np.array(
        [
            [own.get(expert, np.nan) / usage.mean for expert in experts]
            for usage, own in zip(found, known, strict=True)
        ]
    )
    axes = figure.add_subplot()
    picture = axes.imshow(np.ma.masked_invalid(table), aspect="auto", cmap=ramp("cividis"), vmin=0)
    axes.set_yticks(range(len(found)), names_of([usage.layer for usage in found]))
    every = max(1, -(-len(experts) // 40))
    axes.set_xticks(
        range(0, len(experts), every), [str(e) for e in experts[::every]], rotation=90, fontsize=7
    )
    axes.set_xlabel(f"expert: the {TOP_OF_EACH} busiest of each layer, at most {MOST_COLUMNS}")
    axes.set_ylabel("layer")
    bar = figure.colorbar(picture, ax=axes, pad=0.015, aspect=28)
    bar.set_label("load over the fair share")
    bar.outline.set_visible(False)
    axes.set_title(choice.title("Busiest experts by layer (grey: not recorded)", window))


def _chosen(choice: Choice, found: list[Usage]) -> list[Usage]:
    layers = set(choice.matching((usage.layer for usage in found), of="assignments"))
    return [usage for usage in found if usage.layer in layers]


def _chance(usage: Usage) -> float:
    """Coverage of a uniform choice."""
    if not usage.tokens:
        return coverage_floor(usage.draws, num_experts=usage.num_experts)
    top_k = usage.draws / usage.tokens
    if top_k != int(top_k) or not 1 <= top_k <= usage.num_experts:
        return coverage_floor(usage.draws, num_experts=usage.num_experts)
    dead = dead_experts_floor(usage.tokens, num_experts=usage.num_experts, top_k=int(top_k))
    return 1 - dead / usage.num_experts


def _known_draws(usage: Usage, window: Any) -> dict[int, int]:
    """Assignments of every expert of a layer of which they are known."""
    for stats in window:
        if stats.layer == usage.layer:
            return dict(enumerate(stats.tokens_per_expert.tolist()))
    for stats in window.indices:
        if stats.layer == usage.layer:
            listed = dict(zip(stats.top_experts, stats.top_draws, strict=True))
            return {**dict(zip(stats.shared_experts, stats.shared_draws, strict=True)), **listed}
    return {}


def _plain_log(axis: Any) -> None:
    """Numbers on a logarithmic axis as people write them."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
