import io
import unicodedata

import pytest

from moetrace.sinks import ConsoleSink
from moetrace.sinks.console import window_line
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.sinks.contract import ALERTS, WINDOWS, SinkContract


class TestConsoleSink(SinkContract):
    @pytest.fixture
    def sink(self) -> ConsoleSink:
        """One that writes into memory."""
        return ConsoleSink(io.StringIO())

    def test_prints_one_line_per_window(self) -> None:
        """A window is a line, whatever stands in its names."""
        stream = io.StringIO()
        sink = ConsoleSink(stream)
        for snapshot in WINDOWS:
            sink.write(snapshot)
        assert stream.getvalue().count("\n") == len(WINDOWS)
        assert stream.getvalue().endswith("\n")

    def test_goes_to_standard_output_as_it_stands_at_that_time(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without a stream of its own it prints where ``print`` would."""
        ConsoleSink().write(WINDOWS[0])
        assert capsys.readouterr().out.startswith("train steps 1-10: 4 tokens, ")

    def test_leaves_the_stream_open(self) -> None:
        """The stream belongs to whoever opened it."""
        stream = io.StringIO()
        ConsoleSink(stream).close()
        assert not stream.closed

    def test_spells_out_what_the_stream_cannot_say(self) -> None:
        """A terminal without Unicode gets an escape, not an error."""
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        ConsoleSink(stream).write(window(1, 1, stats("Schicht \u00e9", [3, 1])))
        assert b"in Schicht \\xe9, " in raw.getvalue()

    def test_no_name_can_act_on_the_terminal(self) -> None:
        """J3, J5: no control and no reordering character of a name reaches the stream."""
        stream = io.StringIO()
        for snapshot in WINDOWS:
            ConsoleSink(stream).write(snapshot)
        kinds = {unicodedata.category(character) for character in stream.getvalue()}
        assert "\\x1b]0;title\\x07\\u202e[/b]" in stream.getvalue()
        assert not (kinds - {"Zs"}) & {"Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert set(filter(lambda c: unicodedata.category(c) == "Cc", stream.getvalue())) == {"\n"}


class TestAlerts:
    def test_the_lines_are_those_of_the_seeds(self) -> None:
        """S1-08, S1-37, S1-38: byte for byte, with two spaces behind the sign."""
        stream = io.StringIO()
        sink = ConsoleSink(stream)
        sink.alert(alert(step=1500))
        message = "layers.4.mlp: 3/8 experts unused"
        sink.alert(alert(kind="unused_experts", step=2300, message=message))
        assert stream.getvalue() == (
            "\u26a0\ufe0f  MoE Alert at step 1500: layers.0.mlp: "
            "Severe expert imbalance (ratio: 4.52)\n"
            "\u26a0\ufe0f  MoE Alert at step 2300: layers.4.mlp: 3/8 experts unused\n"
        )

    def test_one_line_when_it_is_over(self) -> None:
        """The end says since when it was, with the figure that ended it."""
        stream = io.StringIO()
        over = "layers.0.mlp: Severe expert imbalance (ratio: 1.20)"
        ConsoleSink(stream).alert(alert(state="ended", step=40, first_step=11, message=over))
        assert stream.getvalue() == (
            "\u26a0\ufe0f  MoE Alert over at step 40: layers.0.mlp: "
            "Severe expert imbalance (ratio: 1.20) (since step 11)\n"
        )

    def test_no_name_can_act_on_the_terminal(self) -> None:
        """J3: a layer's name in an alert is spelled out like any other."""
        stream = io.StringIO()
        for item in ALERTS:
            ConsoleSink(stream).alert(item)
        assert stream.getvalue().count("\n") == len(ALERTS)
        assert "\x1b" not in stream.getvalue()
        assert "\\x1b]0;t\\x07\\ud800: Severe" in stream.getvalue()

    def test_a_terminal_without_the_sign_gets_an_escape(self) -> None:
        """An ASCII log shows the alert all the same."""
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        ConsoleSink(stream).alert(alert())
        assert raw.getvalue().startswith(b"\\u26a0\\ufe0f  MoE Alert at step 20: ")


class TestWindowLine:
    def test_names_the_layer_that_is_furthest_above_its_floor(self) -> None:
        """CV and entropy are means over layers; the worst layer is named; dead experts add up."""
        line = window_line(
            window(
                11,
                20,
                stats("even", [2, 2, 2, 2], entropy=1.0),
                stats("uneven", [8, 0, 0, 0], entropy=0.5),
            )
        )
        # CV of [8, 0, 0, 0]: deviations 6, -2, -2, -2, so sqrt(48 / 4) / 2; half of it is the mean.
        assert line.startswith("train steps 11-20: 8 tokens, CV 0.866, MaxVio 3.000 (floor ")
        assert line.endswith(") in uneven, entropy 0.750, dead 3/8")

    def test_shows_a_dash_for_what_is_unknown(self) -> None:
        """A figure that no layer has is a dash, never a zero."""
        line = window_line(window(5, 5, stats("mlp", [0, 0], scoring="none")))
        assert line == "train step 5: 0 tokens, CV -, MaxVio -, entropy -, dead -/2"
