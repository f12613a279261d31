import json
from typing import Any

import numpy as np

from moetrace.report.payload import build, layers_drawn, worst_layers
from moetrace.report.windows import layers_of, tabulate
from moetrace.snapshot import Snapshot
from tests.report.made import drifting, stats, window
from tests.report.test_packing import unpacked


def built(history: list[Snapshot], *, cap: int = 10**9) -> dict[str, Any]:
    """The payload of one training phase, parsed."""
    layers = layers_of(history, history[0].layers)
    table = tabulate("train", [[item] for item in history], layers)
    payload: dict[str, Any] = json.loads(
        build({"train": history}, layers, {"train": table}, cap=cap)
    )
    return payload


class TestBuild:
    def test_holds_every_count_exactly(self) -> None:
        """What the page reads is what the snapshots say, window by window."""
        history = [
            window(1, 10, stats("l.0.mlp", [7, 1]), stats("l.1.mlp", [4, 2, 2])),
            window(11, 20, stats("l.0.mlp", [0, 8]), stats("l.1.mlp", [8, 0, 0])),
        ]
        payload = built(history)
        (phase,) = payload["phases"]
        assert unpacked(phase["cells"]) == [[7, 1, 4, 2, 2], [0, 8, 8, 0, 0]]
        assert unpacked(phase["tokens"]) == [[8, 8], [8, 8]]
        assert phase["spans"] == [[1, 10], [11, 20]]
        assert phase["recorded"] == 2
        assert payload["layers"] == [
            {"name": "l.0.mlp", "short": "0", "experts": 2, "topK": 1},
            {"name": "l.1.mlp", "short": "1", "experts": 3, "topK": 1},
        ]

    def test_adds_windows_up_until_it_fits(self) -> None:
        """Beyond the cap time gets coarser: no assignment is lost, the last window is untouched."""
        history = drifting(windows=60, layers=3, experts=16, tokens=5000)
        whole = built(history)["phases"][0]
        cap = len(json.dumps(built(history))) // 3
        payload = built(history, cap=cap)
        (phase,) = payload["phases"]
        cells, exact = np.array(unpacked(phase["cells"])), np.array(unpacked(whole["cells"]))
        assert len(json.dumps(payload)) < cap * 1.1
        assert phase["recorded"] == 60
        assert 2 < len(cells) < 60
        assert cells[-1].tolist() == exact[-1].tolist()
        assert cells.sum(axis=0).tolist() == exact.sum(axis=0).tolist()
        assert phase["spans"][-1] == [591, 600]

    def test_keeps_a_last_window_that_is_larger_than_the_cap(self) -> None:
        """Exactness of the last window goes before the size; two rows are the least."""
        history = drifting(windows=9, layers=2, experts=16, tokens=5000)
        assert len(built(history, cap=10)["phases"][0]["spans"]) == 2


class TestWorstLayers:
    def test_ranks_by_the_excess_over_the_floor_in_the_last_window(self) -> None:
        """At most three, worst first; a layer without a figure is not among them."""
        history = [
            window(
                1, 9, stats("even", [50, 50]), stats("bad", [90, 10]), stats("mild", [60, 40]),
                stats("worse", [99, 1]), stats("broken", [3, 4], top_k=2),
            )
        ]  # fmt: skip
        table = tabulate("train", [history], layers_of(history, history[0].layers))
        assert worst_layers(table) == [3, 1, 2]


class TestLayersDrawn:
    def test_are_the_most_uneven_in_the_order_of_the_model(self) -> None:
        """Of five layers two: the second and the last; one without a figure comes after all."""
        counts = ([5, 5], [9, 1], [6, 4], [0, 0], [8, 2])
        history = [window(1, 1, *(stats(f"l.{at}", load) for at, load in enumerate(counts)))]
        windows = tabulate("train", [history], layers_of(history, history[0].layers))
        assert [layer.name for layer in layers_drawn(windows, most=2)] == ["l.1", "l.4"]
        assert [layer.name for layer in layers_drawn(windows, most=4)] == [
            "l.0", "l.1", "l.2", "l.4",
        ]  # fmt: skip
