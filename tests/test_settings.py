"""The same settings from keyword arguments, a mapping, YAML and the environment."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest

from moetrace import AlertRules, attach
from moetrace.settings import Settings, load
from moetrace.sinks import ConsoleSink, MemorySink
from tests.tiny import ScriptedModel

NOTHING: dict[str, str] = {}
"""An environment without a variable of ours."""


def written(tmp_path, text):
    """A YAML file with this text."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


class TestPlaces:
    def test_one_setting_from_four_places(self, tmp_path):
        """Keyword arguments, a mapping, a file and the environment say the same thing."""
        expected = Settings(every=7)
        assert load(environment=NOTHING, every=7) == expected
        assert load({"every": 7}, environment=NOTHING) == expected
        assert load(written(tmp_path, "every: 7"), environment=NOTHING) == expected
        assert load(environment={"MOETRACE_EVERY": "7"}) == expected

    def test_the_nearer_to_the_code_wins(self):
        """Keyword arguments before the environment, the environment before the mapping."""
        source, environment = (
            {"every": 1, "sample": 1, "run": "a"},
            {
                "MOETRACE_EVERY": "2",
                "MOETRACE_SAMPLE": "2",
            },
        )
        settings = load(source, environment=environment, every=3)
        assert (settings.every, settings.sample, settings.run) == (3, 2, "a")

    def test_thresholds_are_overridden_one_by_one(self):
        """A threshold from one place leaves those from another as they are."""
        settings = load(
            {"alerts": {"duration": 1, "usage_threshold": 2.0}},
            environment={"MOETRACE_USAGE_THRESHOLD": "3"},
            alert_threshold_imbalance=6,
        )
        assert settings.alerts == AlertRules(
            duration=1, usage_threshold=3.0, alert_threshold_imbalance=6
        )

    def test_rules_given_as_an_object_take_a_threshold_from_elsewhere(self):
        """An AlertRules of the mapping is changed where the keyword arguments say so."""
        rules = AlertRules(duration=4)
        settings = load({"alerts": rules}, environment=NOTHING, usage_threshold=2.0)
        assert settings.alerts == AlertRules(duration=4, usage_threshold=2.0)

    def test_the_environment_of_the_process_by_default(self, monkeypatch):
        """Without an environment of its own, load() reads the variables of the process."""
        for name in ("MOETRACE_TESTS_OF_WHEEL",):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MOETRACE_EVERY", "9")
        assert load().every == 9

    def test_everything_from_the_environment(self):
        """Every setting that is no object can be a variable."""
        environment = {
            "MOETRACE_RUN": "runs/a",
            "MOETRACE_EVERY": "10",
            "MOETRACE_SAMPLE": "2",
            "MOETRACE_SINKS": "console, memory",
            "MOETRACE_LAYERS": "model.layers.0.*",
            "MOETRACE_REDUCE": "live",
            "MOETRACE_STRICT": "on",
            "MOETRACE_ENABLED": "false",
            "MOETRACE_ENTROPY_THRESHOLD": "0.2",
        }
        assert load(environment=environment) == Settings(
            run="runs/a",
            every=10,
            sample=2,
            sinks=["console", "memory"],
            layers=["model.layers.0.*"],
            reduce="live",
            strict=True,
            enabled=False,
            alerts=AlertRules(entropy_threshold=0.2),
        )

    @pytest.mark.parametrize("off", ["0", "off", "False", "no"])
    def test_alerts_are_switched_off_by_a_word(self, off):
        """MOETRACE_ALERTS=off is no rules at all."""
        assert load(environment={"MOETRACE_ALERTS": off}).alerts is None
        assert load({"alerts": False}, environment=NOTHING).alerts is None

    def test_alerts_are_switched_on_by_a_word(self):
        """MOETRACE_ALERTS=on brings the usual rules back."""
        assert load({"alerts": None}, environment={"MOETRACE_ALERTS": "on"}).alerts == AlertRules()


PEER = """
model_config:
  use_peer: true
  peer_start_layer: 2
  peer_config:
    num_heads: 8
    log_expert_usage: true
    log_freq: 1000
    usage_threshold: 5.0
"""


class TestBlocks:
    def test_a_peer_config_block_as_it_is(self, tmp_path):
        """S2-01 to S2-03: log_expert_usage, log_freq and usage_threshold are read as they stand.

        What else is in the block, and the layer from which on the model has tables, is the model's.
        """
        settings = load(written(tmp_path, PEER), environment=NOTHING)
        assert settings == Settings(
            every=1000,
            alerts=AlertRules(usage_threshold=5.0),
            probes=({"indices": {"usage_threshold": 5.0}},),
        )

    def test_a_peer_config_block_reaches_the_probe(self):
        """S2-01, S2-03: the threshold of the block is that of the probe, and of the alerts."""
        block = {"peer_config": {"log_freq": 2, "usage_threshold": 3.0}}
        found = load({"model_config": block}, environment=NOTHING).attach_arguments()
        (probe,) = found["probes"]
        assert (found["every"], found["alerts"].usage_threshold) == (2, 3.0)
        assert (probe.usage_threshold, probe.tables) == (3.0, None)

    def test_probes_by_name(self):
        """Probes are named as sinks are: in a file, with arguments, and in the environment."""
        found = load({"probes": ["weights", {"indices": {"dense_every": 1}}]}, environment=NOTHING)
        weights, indices = found.attach_arguments()["probes"]
        assert (type(weights).__name__, indices.dense_every) == ("WeightProbe", 1)
        found = load(environment={"MOETRACE_PROBES": "gradients,indices"}).attach_arguments()
        assert [type(p).__name__ for p in found["probes"]] == ["GradientProbe", "IndexProbe"]

    def test_a_probe_that_is_none(self):
        """A slip in the name of a probe names the nearest."""
        with pytest.raises(ValueError, match=r"'indexes' in probes; did you mean 'indices'"):
            load({"probes": "indexes"}, environment=NOTHING).attach_arguments()

    def test_a_peer_config_block_that_switches_it_off(self, tmp_path):
        """S2-01: log_expert_usage: false says not to attach at all: no hook is put on."""
        text = PEER.replace("log_expert_usage: true", "log_expert_usage: false")
        assert load(written(tmp_path, text), environment=NOTHING).enabled is False

    def test_a_slip_in_a_peer_config_block(self, tmp_path):
        """What is nearly a name of ours is no setting of the model's."""
        text = PEER.replace("usage_threshold", "usage_treshold")
        with pytest.raises(ValueError, match=r"'usage_treshold' .* did you mean 'usage_threshold'"):
            load(written(tmp_path, text), environment=NOTHING)

    def test_a_moetrace_block_beside_everything_else(self, tmp_path):
        """Of a training's own file only the block moetrace is read."""
        text = "lr: 0.1\nmoetrace:\n  every: 5\n  alerts: {duration: 1}\n" + PEER
        settings = load(written(tmp_path, text), environment=NOTHING)
        assert settings == Settings(every=5, alerts=AlertRules(duration=1))

    def test_names_of_other_monitors(self):
        """S1-16, S1-20 to S1-22: their names mean the settings of ours."""
        given = {
            "log_every_n_steps": 50,
            "save_dir": "runs/a",
            "alert_threshold_imbalance": 3.0,
            "unused_expert_threshold": 0.5,
            "entropy_threshold": 0.2,
        }
        assert load(given, environment=NOTHING) == Settings(
            every=50,
            run="runs/a",
            alerts=AlertRules(
                alert_threshold_imbalance=3.0, unused_expert_threshold=0.5, entropy_threshold=0.2
            ),
        )

    def test_an_empty_file_says_nothing(self, tmp_path):
        """A file without a name in it leaves the defaults."""
        assert load(written(tmp_path, "# later\n"), environment=NOTHING) == Settings()


class TestMistakes:
    @pytest.mark.parametrize(
        ("call", "said"),
        [
            (lambda: load(environment=NOTHING, evry=1), "'evry' in the keyword .* mean 'every'"),
            (lambda: load({"sinkz": []}, environment=NOTHING), "in the mapping; .* 'sinks'"),
            (
                lambda: load(environment={"MOETRACE_EVRY": "1"}),
                "'MOETRACE_EVRY' in the environment; did you mean 'MOETRACE_EVERY'",
            ),
            (
                lambda: load({"alerts": {"duratoin": 2}}, environment=NOTHING),
                "'duratoin' in alerts; did you mean 'duration'",
            ),
            (lambda: load({"zzz": 1}, environment=NOTHING), "'zzz' .* the names are run, every"),
        ],
    )
    def test_an_unknown_name_is_told_the_nearest(self, call, said):
        """A name that is no setting is an error that says what was probably meant."""
        with pytest.raises(ValueError, match=said):
            call()

    def test_one_setting_under_two_names(self):
        """Two names of one setting in one place do not settle which one counts."""
        with pytest.raises(ValueError, match="found 'every' twice in the mapping, once as 'log_fr"):
            load({"every": 1, "log_freq": 2}, environment=NOTHING)

    @pytest.mark.parametrize(
        ("name", "text"),
        [("EVERY", "often"), ("STRICT", "perhaps"), ("USAGE_THRESHOLD", "high")],
    )
    def test_a_value_that_cannot_be_read(self, name, text):
        """The message shows the variable and its text."""
        with pytest.raises(ValueError, match=f"found MOETRACE_{name}='{text}'; "):
            load(environment={f"MOETRACE_{name}": text})

    def test_a_file_without_names(self, tmp_path):
        """A list is no settings."""
        with pytest.raises(ValueError, match=r"found list in .*config\.yaml"):
            load(written(tmp_path, "- every"), environment=NOTHING)

    def test_a_threshold_that_none_can_be(self):
        """A value that AlertRules refuses is refused here."""
        with pytest.raises(ValueError, match="found usage_threshold=-1"):
            load(environment=NOTHING, usage_threshold=-1)

    def test_no_yaml(self, tmp_path, monkeypatch):
        """Without PyYAML a file says what to install; a mapping needs none."""
        monkeypatch.setitem(sys.modules, "yaml", None)
        assert load({"every": 2}, environment=NOTHING).every == 2
        with pytest.raises(ImportError, match=r"pip install 'moetrace\[yaml\]'"):
            load(written(tmp_path, "every: 7"), environment=NOTHING)


class TestSinks:
    def test_by_name(self):
        """A name of the entry-point group is that sink, made anew each time."""
        settings = Settings(sinks="console")
        first, second = (settings.attach_arguments()["sinks"][0] for _ in range(2))
        assert type(first) is type(second) is ConsoleSink
        assert first is not second

    def test_by_name_with_arguments(self, capsys):
        """A name may bring the arguments of its sink."""
        settings = Settings(sinks=[{"console": {"stream": sys.stderr}}])
        (sink,) = settings.attach_arguments()["sinks"]
        assert sink._stream is sys.stderr

    def test_objects_as_they_are(self):
        """A sink that is given is passed on."""
        sink = MemorySink()
        assert Settings(sinks=[sink]).attach_arguments()["sinks"] == [sink]

    def test_an_unknown_name(self):
        """A name without a sink is told the nearest."""
        with pytest.raises(ValueError, match="found 'consol' in sinks; did you mean 'console'"):
            Settings(sinks=["consol"]).attach_arguments()

    def test_two_names_in_one(self):
        """A mapping names one sink."""
        with pytest.raises(ValueError, match="give one name with its arguments"):
            Settings(sinks=[{"console": {}, "memory": {}}]).attach_arguments()


class TestAttach:
    def test_has_the_parameters_of_attach(self):
        """Settings name what attach does, with the same defaults; enabled is the caller's own."""
        parameters = inspect.signature(attach).parameters
        names = [name for name in parameters if name != "model"]
        assert sorted(item.name for item in fields(Settings)) == sorted([*names, "enabled"])
        for item in fields(Settings):
            if item.name != "enabled":
                assert parameters[item.name].default == item.default, item.name

    def test_attaches(self):
        """attach(model, **settings.attach_arguments()) is all there is to do."""
        sink = MemorySink()
        settings = load({"every": 2}, environment=NOTHING, sinks=[sink], layers="blocks.1")
        model = ScriptedModel([[0, 1]], [[2, 3]], num_experts=4)
        from torch import zeros

        with attach(model, **settings.attach_arguments()) as tracer:
            for _ in range(4):
                tracer.on_step_begin()
                model(zeros(1, 4))
                tracer.on_step_end()
        assert [(s.last_step, s.layers) for s in sink.snapshots] == [
            (2, ("blocks.1",)),
            (4, ("blocks.1",)),
        ]

    def test_reading_settings_imports_no_torch(self):
        """A command line may read settings without a GPU stack."""
        code = (
            "import sys; from moetrace.settings import load; load({'every': 1}, environment={});"
            "sys.exit('torch' in sys.modules or 'yaml' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
