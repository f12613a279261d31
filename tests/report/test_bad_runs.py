"""Three runs that went wrong: fault, layer and step stand in the first lines that anybody reads."""

import re
from pathlib import Path

from moetrace.report import render
from moetrace.snapshot import Snapshot
from moetrace.watch import Follower, screen
from tests.report.made import MadeRun, drifting, recorded, silent_layer, slow_collapse


def headline(history: list[Snapshot]) -> tuple[str, str]:
    """The first sentence of the report, and what to try."""
    page = render(MadeRun({"train": history}))  # type: ignore[arg-type]
    (first,) = re.findall(r'class="headline">([^<]*)<', page)
    (advice,) = re.findall(r'class="advice"><b>To try:</b> ([^<]*)<', page)
    return first, advice


class TestHotExpert:
    def test_is_named_with_its_layer_and_where_it_was_half_as_bad(self) -> None:
        """Expert 7 of layer 2 grows from step 550 on; at step 1,011 it has half of its excess."""
        said, advice = headline(drifting())
        assert said == (
            "model.layers.2.mlp has been far out of balance since steps 1011-1020: expert 7 takes "
            "16.8% of the assignments, 5.37 times its fair share, in steps 1191-1200."
        )
        assert advice.startswith(
            "stop and go back to a checkpoint from before step 561, when it began to show;"
        )


class TestDeadLayer:
    def test_is_named_with_the_first_step_without_a_token(self) -> None:
        """Layer 5 is not called from window 71 on; that comes before what else is wrong."""
        history = silent_layer()
        said, advice = headline(history)
        assert said == (
            "1 layer routes no token any more while others do: "
            "model.layers.5.mlp since steps 701-710."
        )
        assert "moetrace doctor" in advice
        page = render(MadeRun({"train": history}))  # type: ignore[arg-type]
        assert "2 of 224 experts in layers that route are dead: " in page
        assert "<dt>experts without a token</dt><dd>34 <small>of 256</small></dd>" in page


class TestSlowCollapse:
    def test_is_named_with_its_layer_and_the_fall_of_its_entropy(self) -> None:
        """Layer 6 sharpens from step 300 on."""
        history = slow_collapse()
        said, _ = headline(history)
        assert re.match(
            r"model\.layers\.6\.mlp has been far out of balance since steps \d+-\d+: expert 0", said
        )
        page = render(MadeRun({"train": history}))  # type: ignore[arg-type]
        assert "Routing entropy of model.layers.6.mlp fell from 3.300 to " in page


class TestOnTheTerminal:
    def test_the_first_screen_says_the_same(self, tmp_path: Path) -> None:
        """80 columns and 24 lines, as a new terminal has them, without colour."""
        for name, history, said in (
            ("hot", drifting(), "model.layers.2.mlp has been far out of balance since steps 1011"),
            ("dead", silent_layer(), "model.layers.5.mlp since steps 701-710"),
            ("slow", slow_collapse(), "model.layers.6.mlp has been far out of balance since steps"),
        ):
            view = Follower(recorded(tmp_path / name, *history).path).refresh()
            lines = screen(view, width=80, height=24, colour=False)
            text = " ".join(" ".join(line.plain for line in lines).split())
            assert said in text
            assert "to try: " in text
