import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from moetrace.run import Run
from moetrace.snapshot import Snapshot
from moetrace.store import RunFolder
from moetrace.watch import Follower, View, screen, show_once, view_record
from tests.report.made import drifting, recorded, stats, window

HOSTILE = (
    "l.\x1b[2J\x1b]52;c;x\x07",
    "[bold]l[/x][link=x]",
    "l.\u202egpj\u200d",
    "l." + "x" * 900,
)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Sixty windows of eight layers: layer 2 collapses on expert 7, layer 6 loses two."""
    history = drifting(windows=60, layers=8, experts=32)
    return recorded(tmp_path_factory.mktemp("runs") / "bad", *history)


@pytest.fixture(scope="module")
def bad_view(bad: Run) -> View:
    """That run as it stands."""
    return Follower(bad.path).refresh()


def viewed(path: Path, *history: Snapshot) -> View:
    """A view of a run of these windows."""
    return Follower(recorded(path / "run", *history).path).refresh()


def plain(lines: Sequence[Text]) -> str:
    """The text of a frame."""
    return "\n".join(line.plain for line in lines)


class TestScreen:
    @pytest.mark.parametrize("width", [40, 80, 250])
    @pytest.mark.parametrize("height", [12, 24, 60])
    @pytest.mark.parametrize("colour", [True, False])
    def test_fits_every_terminal(
        self, bad_view: View, width: int, height: int, colour: bool
    ) -> None:
        """Never wider nor higher than told, and what is wrong is on it: layer, expert and step."""
        lines = screen(bad_view, width=width, height=height, colour=colour)
        assert len(lines) <= height
        assert max(line.cell_len for line in lines) <= width
        said = " ".join(line.plain.strip() for line in lines)
        assert "model.layers.2.mlp has been far out of balance since steps " in said
        assert "expert 7" in said

    def test_shows_the_map_in_letters_where_there_is_no_colour(self, tmp_path: Path) -> None:
        """A hot, a fair and a dead expert are told apart without any colour, in plain ASCII."""
        view = viewed(tmp_path, window(1, 1, stats("mlp", [0, 100, 400, 100, 100, 100])))
        text = plain(screen(view, width=40, height=24, colour=False, ascii_only=True))
        assert "mlp xxxx....++++............" in text
        assert text.isascii()

    def test_dead_cells_are_white_in_colour(self, tmp_path: Path) -> None:
        """Of two experts the dead one has the colour that no load has."""
        view = viewed(tmp_path, window(1, 1, stats("mlp", [0, 100])))
        (row,) = [
            line
            for line in screen(view, width=40, height=24)
            if line.plain.startswith("mlp ") and line.spans
        ]
        colours = [span.style.bgcolor.name for span in row.spans]  # type: ignore[union-attr]
        assert colours[0] == "#ffffff"
        assert colours[1] != "#ffffff"

    def test_many_layers_share_lines_and_then_the_worst_are_chosen(self, tmp_path: Path) -> None:
        """Of 60 layers in 24 lines: two to a line in colour, the uneven one among them."""
        layers = [stats(f"l.{at}", [50, 50]) for at in range(59)]
        view = viewed(tmp_path, window(1, 1, *layers, stats("l.59", [99, 1])))
        text = plain(screen(view, width=80, height=24))
        assert ",59 " in text
        assert "\nworst 30 of 60 layers: " in text
        wider = plain(screen(view, width=100, height=24))
        assert "\nload over fair share, the worst 32 of 60 layers: " in wider

    @pytest.mark.parametrize("colour", [True, False])
    def test_what_the_map_leaves_out_is_said_in_full(self, tmp_path: Path, colour: bool) -> None:
        """160 layers of 256 experts on 80 columns: the short form, which is not cut."""
        layers = [stats(f"l.{at}", [8] * 256) for at in range(160)]
        view = viewed(tmp_path, window(1, 1, *layers))
        lines = plain(screen(view, width=80, height=24, colour=colour)).splitlines()
        (caption,) = [line for line in lines if "of 160 layers" in line]
        assert re.search(r"worst \d+ of 160 layers, 4 experts a cell(:|$)", caption)
        assert re.search(r"(^| )(fair|\.fair) .*(more|#8x)", caption)

    def test_a_layer_that_went_silent_is_a_row_that_says_so(self, tmp_path: Path) -> None:
        """An empty row could be taken for a fair one."""
        history = (
            window(1, 1, stats("a", [5, 5]), stats("b", [5, 5])),
            window(2, 2, stats("a", [5, 5]), stats("b", [0, 0])),
        )
        text = plain(screen(viewed(tmp_path, *history), width=60, height=24, colour=False))
        assert "b no token routed" in text

    def test_says_how_long_nothing_came(self, tmp_path: Path) -> None:
        """A window every ten seconds; after two minutes that is said as trouble."""
        folder = RunFolder.prepare(tmp_path / "run")
        segment = folder.open_segment(rank=0, header={})
        for n in range(5):
            made = window(n + 1, n + 1, stats("mlp", [5, 3]))
            segment.append(replace(made, run_id=folder.run_id, seq=n, wall_time=1000.0 + 10 * n))
        try:
            view = Follower(tmp_path / "run").refresh()
        finally:
            segment.close()
        early = plain(screen(view, width=100, height=24, now=1045.0))
        late = plain(screen(view, width=100, height=24, now=1160.0))
        assert "open, last window 5 s ago\n" in early
        assert "last window 2 min ago; one took 10 s: stalled?" in late
        narrow = plain(screen(view, width=60, height=24, now=1160.0))
        assert "\nlast window 2 min ago; one took 10 s: stalled?\n" in narrow

    @pytest.mark.parametrize("name", HOSTILE)
    @pytest.mark.parametrize("colour", [True, False])
    def test_hostile_names_are_seen_and_do_nothing(
        self, tmp_path: Path, name: str, colour: bool
    ) -> None:
        """J3, J4, J5: no control byte, no markup, no turned text reaches the terminal."""
        view = viewed(tmp_path, window(1, 1, stats(name, [970, 10, 10, 10])))
        out = io.StringIO()
        console = Console(file=out, width=100, no_color=True, color_system=None)
        for line in screen(view, width=100, height=60, colour=colour):
            console.print(line, soft_wrap=True)
        text = out.getvalue()
        assert not {c for c in text if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0}
        assert not {"\u202e", "\u200d"} & set(text)
        said = name.encode("unicode_escape").decode()
        assert text.startswith("moetrace ")
        assert f"!! {said[:60]}" in text

    def test_a_run_without_a_window_says_what_it_waits_for(self, tmp_path: Path) -> None:
        """The first window is written when it closes."""
        view = viewed(tmp_path)
        assert "no window yet" in plain(screen(view, width=80, height=24))


class TestFollower:
    def test_reads_only_what_is_new_and_shows_the_same(self, tmp_path: Path) -> None:
        """Two refreshes while a run grows equal one look at its end."""
        history = drifting(windows=30, layers=3, experts=8, top_k=2, tokens=500)
        folder = RunFolder.prepare(tmp_path / "run")
        segment = folder.open_segment(rank=0, header={})
        follower = Follower(tmp_path / "run")
        for seq, snapshot in enumerate(history):
            segment.append(replace(snapshot, run_id=folder.run_id, seq=seq))
            if seq in (0, 3, 17):
                assert follower.refresh().windows is not None
        segment.close()
        grown, whole = follower.refresh().windows, Follower(tmp_path / "run").refresh().windows
        assert grown is not None
        assert whole is not None
        np.testing.assert_array_equal(grown.spans, whole.spans)
        np.testing.assert_array_equal(grown.cells, whole.cells)
        np.testing.assert_array_equal(grown.tokens, whole.tokens)
        for name in whole.metrics:
            np.testing.assert_array_equal(grown.metrics[name], whole.metrics[name])

    def test_a_window_grows_when_another_rank_has_written_it_too(self, tmp_path: Path) -> None:
        """Read with one rank's part first: the next look has the sum."""
        folder = RunFolder.prepare(tmp_path / "run")
        segments = [folder.open_segment(rank=rank, header={"world_size": 2}) for rank in (0, 1)]

        def close(rank: int, step: int, counts: list[int]) -> None:
            made = window(step, step, stats("mlp", counts))
            segments[rank].append(replace(made, run_id=folder.run_id, rank=rank, seq=step))

        follower = Follower(tmp_path / "run")
        seen = []
        for step in range(1, 8):
            close(0, step, [4, 1])
            follower.refresh()
            close(1, step, [2, 3])
            windows = follower.refresh().windows
            assert windows is not None
            seen.append(windows.cells.tolist())
        for segment in segments:
            segment.close()
        assert seen == [[[6, 4]] * count for count in range(1, 8)]

    def test_begins_anew_with_another_attempt(self, tmp_path: Path) -> None:
        """A resumed run wrote steps 11 to 20 again: what was superseded is gone, however old."""
        recorded(tmp_path / "run", *(window(n, n, stats("mlp", [8, 0])) for n in range(1, 21)))
        follower = Follower(tmp_path / "run")
        before = follower.refresh().windows
        recorded(tmp_path / "run", *(window(n, n, stats("mlp", [4, 4])) for n in range(11, 21)))
        after = follower.refresh().windows
        assert before is not None
        assert after is not None
        assert before.cells.tolist() == [[8, 0]] * 20
        assert after.cells.tolist() == [[8, 0]] * 10 + [[4, 4]] * 10

    def test_names_the_phases_where_one_does_not_exist(self, bad: Run) -> None:
        """A typing error is told with what there is."""
        with pytest.raises(ValueError, match=r"no phase 'evil'; this run has train"):
            Follower(bad.path, phase="evil").refresh()


class TestRecord:
    def test_is_json_and_says_what_the_frame_says(self, bad: Run) -> None:
        """Findings with advice, and every layer's figures of the last window."""
        record = json.loads(json.dumps(view_record(Follower(bad.path).refresh()), allow_nan=False))
        assert record["steps"] == [591, 600]
        assert record["findings"][0]["tone"] == "bad"
        assert record["findings"][0]["advice"]
        last = bad.snapshots()[-1]
        assert [row["layer"] for row in record["layers"]] == list(last.layers)
        assert record["layers"][2]["max_vio"] == last.routing[2].metrics()["max_vio"]


class TestShowOnce:
    def test_a_pipe_gets_text_without_an_escape(self, bad: Run) -> None:
        """A log or a mail: no byte that only a terminal understands."""
        out = io.StringIO()
        show_once(Follower(bad.path).refresh(), stream=out)
        assert "\x1b" not in out.getvalue()
        assert "x none _<1/4" in out.getvalue()
