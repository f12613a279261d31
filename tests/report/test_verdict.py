from collections.abc import Sequence

import pytest

from moetrace.report.advice import ADVICE
from moetrace.report.finding import Finding
from moetrace.report.verdict import verdict
from moetrace.report.windows import layers_of, tabulate
from moetrace.snapshot import Snapshot
from tests.report.made import stats, window


def judged(history: Sequence[Snapshot]) -> list[Finding]:
    """The verdict over a training phase."""
    layers = layers_of(history, history[-1].layers)
    return verdict(tabulate("train", [[item] for item in history], layers))


def texts(history: Sequence[Snapshot], tone: str) -> list[str]:
    """The sentences of one tone."""
    return [finding.text for finding in judged(history) if finding.tone == tone]


class TestBalance:
    def test_calls_an_even_layer_within_the_noise(self) -> None:
        """51 to 49 of 100 tokens is what chance does: nothing is uneven."""
        (sentence,) = texts([window(1, 10, stats("mlp", [51, 49]))], "good")[:1]
        assert sentence == (
            "Within the noise of a uniform router: the most uneven layer in steps 1-10 is mlp, "
            "MaxVio 0.020 where chance alone gives 0.080."
        )

    def test_names_the_worst_layer_its_expert_and_its_share(self) -> None:
        """900 of 1000 tokens to one of four experts: 3.6 times its fair share of 250."""
        history = [window(1, 10, stats("a", [250] * 4), stats("b", [30, 900, 40, 30]))]
        (sentence,) = texts(history, "bad")
        assert sentence == (
            "b is far out of balance: expert 1 takes 90.0% of the assignments, 3.60 times its fair "
            "share, in steps 1-10."
        )

    @pytest.mark.parametrize(
        ("counts", "tone", "word"),
        [
            ([300, 250, 240, 210], "note", "uneven"),
            ([600, 150, 130, 120], "warn", "heavily uneven"),
            ([940, 20, 20, 20], "bad", "far out of balance"),
        ],
    )
    def test_chooses_its_words_by_the_excess(self, counts: list[int], tone: str, word: str) -> None:
        """Uneven below twice the fair share, heavily uneven from there, far out near all."""
        (first, *_) = judged([window(1, 10, stats("mlp", counts))])
        assert first.tone == tone
        assert first.text.startswith(f"mlp is {word}: expert 0 takes ")

    def test_says_since_when(self) -> None:
        """Even, then a little uneven from step 11, then twice as much from step 31 to the end."""
        history = [
            window(1, 10, stats("mlp", [500, 500])),
            window(11, 20, stats("mlp", [650, 350])),
            window(21, 30, stats("mlp", [650, 350])),
            window(31, 40, stats("mlp", [950, 50])),
            window(41, 50, stats("mlp", [960, 40])),
        ]
        (sentence,) = [text for text in texts(history, "note") if text.startswith("MaxVio")]
        assert sentence == (
            "MaxVio of mlp is 0.920 where chance alone gives 0.025; it has been beyond chance "
            "since steps 11-20, half as far over the floor as now since steps 31-40."
        )

    def test_says_when_a_slow_fault_began_to_show(self) -> None:
        """A tenth, a half and all of the excess in three steps: the checkpoint is the first's."""
        history = [
            window(1, 10, stats("mlp", [320, 226, 227, 227])),
            window(11, 20, stats("mlp", [400, 200, 200, 200])),
            window(21, 30, stats("mlp", [700, 100, 100, 100])),
            window(31, 40, stats("mlp", [997, 1, 1, 1])),
        ]
        (first, second, *_) = judged(history)
        assert first.text.startswith("mlp has been far out of balance since steps 21-30: expert 0")
        assert first.advice == ADVICE["collapse"].format(step=11)
        assert second.text.endswith(
            "it has been beyond chance since the first window (steps 1-10), a tenth as far over "
            "the floor as now since steps 11-20 and half as far since steps 21-30."
        )

    def test_the_headline_says_since_when_it_has_half_of_its_excess(self) -> None:
        """The step to look at is where it went wrong, not where chance was first exceeded."""
        history = [
            window(1, 10, stats("mlp", [400, 200, 200, 200])),
            window(11, 20, stats("mlp", [940, 20, 20, 20])),
            window(21, 30, stats("mlp", [970, 10, 10, 10])),
        ]
        (first, *_) = judged(history)
        assert first.text == (
            "mlp has been far out of balance since steps 11-20: expert 0 takes 97.0% of the "
            "assignments, 3.88 times its fair share, in steps 21-30."
        )
        assert first.advice == ADVICE["collapse"].format(step=11)

    @pytest.mark.parametrize("counts", [[600, 150, 130, 120], [940, 20, 20, 20]])
    def test_does_not_send_back_to_before_the_first_window(self, counts: list[int]) -> None:
        """What was never even has no checkpoint in which it was."""
        history = [window(1, 10, stats("mlp", counts)), window(11, 20, stats("mlp", counts))]
        (first, *_) = judged(history)
        assert first.advice == ADVICE["never_even"]
        assert "checkpoint" not in first.advice

    def test_says_that_it_has_been_worse(self) -> None:
        """A layer that recovers is told with the window in which it was worst."""
        history = [
            window(1, 10, stats("mlp", [900, 100])),
            window(11, 20, stats("mlp", [700, 300])),
        ]
        (sentence,) = [text for text in texts(history, "note") if text.startswith("MaxVio")]
        assert sentence.endswith("; at its worst it was 0.800, in steps 1-10.")

    def test_an_even_window_in_between_starts_the_count_again(self) -> None:
        """Since when means without a break until the last window."""
        uneven, even = [900, 100], [500, 500]
        loads = [uneven, even, uneven]
        history = [window(n, n, stats("mlp", load)) for n, load in enumerate(loads, 1)]
        (sentence,) = [text for text in texts(history, "note") if text.startswith("MaxVio")]
        assert sentence.endswith("it has been beyond chance since step 3.")

    def test_counts_the_other_layers(self) -> None:
        """One more of two is named as one, not hidden behind the worst."""
        history = [
            window(1, 1, stats("a", [900, 100]), stats("b", [800, 200]), stats("c", [500, 500]))
        ]
        assert "One of the 2 other layers is also uneven beyond chance." in texts(history, "note")

    def test_says_that_nothing_can_be_judged(self) -> None:
        """Without a token there is no balance, and no figure is made up."""
        (first, *_) = judged([window(1, 1, stats("mlp", [0, 0]))])
        assert first == Finding("note", "No layer has a balance to judge in step 1.")

    def test_says_why_a_figure_is_withheld(self) -> None:
        """Counts that contradict each other are a finding of their own."""
        assert texts([window(1, 1, stats("mlp", [2, 1], top_k=2))], "warn") == [
            "mlp has no balance figure in step 1: found 3 assignments where tokens * top_k is 2."
        ]


class TestDead:
    def test_names_dead_experts_and_since_when(self) -> None:
        """Expert 2 was last used in the first window."""
        loads = [[40, 30, 30], [60, 40, 0], [50, 50, 0]]
        history = [window(n, n, stats("mlp", load)) for n, load in enumerate(loads, 1)]
        assert texts(history, "bad") == ["1 of 3 experts is dead: mlp expert 2 since step 2."]

    def test_adds_up_silent_windows_before_it_calls_an_expert_dead(self) -> None:
        """Four tokens leave an expert out by chance; forty in a row do not."""
        short = [window(n, n, stats("mlp", [2, 2, 0])) for n in range(1, 3)]
        long = [window(n, n, stats("mlp", [2, 2, 0])) for n in range(1, 11)]
        assert (
            "No expert is dead beyond chance: 1 of 3 got no token in step 2, which a uniform "
            "router leaves out as well."
        ) in texts(short, "good")
        assert texts(long, "bad") == [
            "1 of 3 experts is dead: mlp expert 2 since the first window (step 1)."
        ]

    def test_an_expert_that_came_back_is_not_dead(self) -> None:
        """What counts is the silence that lasts until now."""
        history = [window(1, 1, stats("mlp", [99, 0])), window(2, 2, stats("mlp", [50, 49]))]
        assert texts(history, "bad") == []

    def test_names_three_and_counts_the_rest(self) -> None:
        """Sixteen experts of which eleven are dead fit into one sentence, oldest first."""
        history = [window(1, 1, stats("mlp", [200] * 5 + [0] * 11))]
        (sentence,) = [text for text in texts(history, "bad") if "dead" in text]
        assert sentence.startswith("11 of 16 experts are dead: mlp expert 5 since")
        assert sentence.endswith("; and 8 more.")


class TestEntropy:
    @pytest.mark.parametrize(
        ("start", "end", "words"),
        [
            (1.0, 0.5, "fell from 1.000 to 0.500 nats (-50%)"),
            (0.5, 0.6, "rose from 0.500 to 0.600 nats (+20%)"),
            (0.6, 0.601, "held at 0.601 nats"),
        ],
    )
    def test_says_where_it_went(self, start: float, end: float, words: str) -> None:
        """From the first window to the last, the median layer, within 2 % called unchanged."""
        history = [
            window(1, 10, stats("mlp", [50, 50], entropy=start)),
            window(11, 20, stats("mlp", [50, 50], entropy=end)),
        ]
        assert (
            f"Routing entropy {words} between steps 1-10 and steps 11-20 (median layer); "
            "0.69 nats would be total indecision."
        ) in texts(history, "note")

    def test_says_that_there_is_none(self) -> None:
        """A router that shows no logits has no routing entropy, and not one of 0."""
        history = [window(1, 1, stats("mlp", [5, 5], scoring="none"))]
        assert "No routing entropy: no layer shows its router's logits." in texts(history, "note")


class TestSilentLayer:
    def test_is_named_with_the_first_window_without_a_token(self) -> None:
        """Two layers route, one of them stops after step 10."""
        history = [
            window(1, 10, stats("a", [50, 50]), stats("b", [50, 50])),
            window(11, 20, stats("a", [50, 50]), stats("b", [0, 0])),
            window(21, 30, stats("a", [50, 50]), stats("b", [0, 0])),
        ]
        (first, *rest) = judged(history)
        assert "No dead expert: each of the 2 in layers that route got tokens in steps 21-30." in [
            item.text for item in rest
        ]
        assert first == Finding(
            "bad",
            "1 layer routes no token any more while others do: b since steps 11-20.",
            ADVICE["silent"],
        )
        assert not [item for item in rest if "b has no balance figure" in item.text]

    def test_needs_another_layer_that_goes_on(self) -> None:
        """A window without any token says nothing about one layer."""
        history = [
            window(1, 10, stats("a", [50, 50]), stats("b", [50, 50])),
            window(11, 20, stats("a", [0, 0]), stats("b", [0, 0])),
        ]
        assert not [item for item in judged(history) if "no token any more" in item.text]
        assert not [item for item in judged(history) if "dead" in item.text]


class TestFallingEntropy:
    def test_names_the_layer_whose_entropy_more_than_halved(self) -> None:
        """Of two layers b falls from 2 to 0.5 nats; it passes 1.25, the middle, in steps 21-30."""
        falls = (2.0, 1.9, 1.0, 0.5)
        history = [
            window(
                10 * at + 1,
                10 * at + 10,
                stats("a", [50, 50], entropy=2.0),
                stats("b", [50, 50], entropy=entropy),
            )
            for at, entropy in enumerate(falls)
        ]
        (found,) = [item for item in judged(history) if item.text.startswith("Routing entropy of")]
        assert found == Finding(
            "warn",
            "Routing entropy of b fell from 2.000 to 0.500 nats (-75%), half of it by steps 21-30.",
            ADVICE["certain"],
        )

    def test_keeps_quiet_above_half_of_the_first_value(self) -> None:
        """A training sharpens its routers: from 2 to 1.2 nats is told for the median alone."""
        history = [
            window(1, 10, stats("a", [50, 50], entropy=2.0)),
            window(11, 20, stats("a", [50, 50], entropy=1.2)),
        ]
        assert not [item for item in judged(history) if "Routing entropy of" in item.text]
