"""What a rule may say, and what is said about one that cannot be read."""

from pathlib import Path

import pytest

from moetrace.check import parse_rule, read_rules
from moetrace.check.figures import SHORT
from moetrace.metrics import METRICS


class TestParseRule:
    def test_reads_every_part(self) -> None:
        """Figure, reduction, comparison, number, and where it holds, in any order."""
        rule = parse_rule("max_vio_excess p95 <= -2.5 phase=eval after step 500 layers='*.1 b'")
        assert (rule.figure, rule.reduction) == ("max_vio_excess", "p95")
        assert (rule.comparison, rule.number) == ("<=", -2.5)
        assert (rule.after, rule.layers, rule.phase) == (500, "*.1 b", "eval")

    def test_is_about_every_train_window_and_layer_by_default(self) -> None:
        """Nothing behind the number: from the first step, all layers, phase train."""
        rule = parse_rule("load_cv<1")
        assert (rule.after, rule.layers, rule.phase, rule.reduction) == (0, "*", "train", None)

    @pytest.mark.parametrize("text", ["after step 7", "after 7", "after=7"])
    def test_takes_a_step_as_people_write_it(self, text: str) -> None:
        """Three spellings of the same condition."""
        assert parse_rule(f"load_cv < 1 {text}").after == 7

    @pytest.mark.parametrize(("short", "metric"), SHORT.items())
    def test_takes_short_names(self, short: str, metric: str) -> None:
        """``cv`` stands for ``load_cv`` and so on; each stands for a metric that there is."""
        assert parse_rule(f"{short} < 1").figure == metric
        assert metric in METRICS

    @pytest.mark.parametrize(
        ("comparison", "below", "equal", "above"),
        [
            ("<", True, False, False),
            ("<=", True, True, False),
            (">", False, False, True),
            (">=", False, True, True),
            ("==", False, True, False),
            ("!=", True, False, True),
        ],
    )
    def test_compares(self, comparison: str, below: bool, equal: bool, above: bool) -> None:
        """1, 2 and 3 held against 2."""
        rule = parse_rule(f"load_cv {comparison} 2")
        assert [rule.holds(value) for value in (1.0, 2.0, 3.0)] == [below, equal, above]

    @pytest.mark.parametrize(
        ("reduction", "expected"),
        [("mean", 4.0), ("sum", 12.0), ("min", 1.0), ("max", 9.0), ("p50", 2.0), ("p100", 9.0)],
    )
    def test_puts_layers_together(self, reduction: str, expected: float) -> None:
        """1, 2 and 9 as one number."""
        assert parse_rule(f"load_cv {reduction} < 1").reduced([1.0, 9.0, 2.0]) == expected

    def test_names_the_nearest_metric(self) -> None:
        """A mistyped metric is told with what was meant."""
        with pytest.raises(ValueError, match="no metric 'max_voi'; did you mean max_vio"):
            parse_rule("max_voi < 1")

    def test_lists_the_metrics_where_none_is_near(self) -> None:
        """A name like none of them gets all of them."""
        with pytest.raises(
            ValueError, match=r"no metric 'zzz'; there are load_cv, .*out_of_range, .*coverage"
        ):
            parse_rule("zzz < 1")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("load_cv 1", "found no comparison in the rule 'load_cv 1'"),
            ("load_cv = 1", "found no comparison"),
            ("< 1", "expected a metric before '<', found ''"),
            ("load_cv of x < 1", "expected a metric before '<', found 'load_cv of x'"),
            ("load_cv p101 < 1", "found 'p101' behind the metric"),
            ("load_cv <", "expected a number after '<'"),
            ("load_cv < x", "found 'x' where a number belongs"),
            ("load_cv < nan", "found 'nan' where a number belongs"),
            ("load_cv < inf", "found 'inf' where a number belongs"),
            ("load_cv < 1 2", "found '2' behind the number"),
            ("load_cv < 1 after", "found 'after' behind the number"),
            ("load_cv < 1 after -5", "found '-5' where a step belongs"),
            ("load_cv < 1 layers=", "found 'layers=' behind the number"),
            ("load_cv < 1 phase=a phase=b", "found 'phase=b' behind the number"),
            ("load_cv < 1 layers='a", "No closing quotation"),
        ],
    )
    def test_says_what_it_cannot_read(self, text: str, said: str) -> None:
        """The part that is wrong, and the form of a rule."""
        with pytest.raises(ValueError, match="a rule is METRIC") as caught:
            parse_rule(text)
        assert said in str(caught.value)


class TestReadRules:
    def test_takes_names_from_the_table(self, tmp_path: Path) -> None:
        """A rule of a file is called by its key."""
        path = tmp_path / "rules.toml"
        path.write_text('[rules]\nbalanced = "cv < 1"\nalive = "dead == 0 after step 9"\n')
        first, second = read_rules(path)
        assert (first.name, first.text, first.figure) == ("balanced", "cv < 1", "load_cv")
        assert (second.name, second.after) == ("alive", 9)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "found no rules"),
            (b"rules = 3", "found no rules"),
            (b"[rules]\n", "found no rules"),
            (b"[rules]\na = 3", "found 3 as rule 'a'"),
            (b"[rules]\na = 'cvv < 1'", "did you mean cv"),
            (b"[rules", "as TOML"),
            (b"\xff", "as TOML"),
            (b"#" * ((1 << 20) + 1), "more than 1 MiB"),
        ],
    )
    def test_says_what_is_wrong_with_a_file(
        self, content: bytes, said: str, tmp_path: Path
    ) -> None:
        """A file that is no rules is refused, however it is none."""
        (tmp_path / "rules.toml").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_rules(tmp_path / "rules.toml")

    def test_a_file_that_is_not_there_is_an_error_of_the_system(self, tmp_path: Path) -> None:
        """It is named by the system's own words."""
        with pytest.raises(FileNotFoundError, match=r"rules\.toml"):
            read_rules(tmp_path / "rules.toml")
