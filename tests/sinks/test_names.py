import posixpath
import re

from hypothesis import example, given
from hypothesis import strategies as st

from moetrace.sinks.names import LONGEST, tracker_name

PATHS = st.text(alphabet=st.sampled_from("ab.-/_[]0h:~ \u00e9\x00"), max_size=12)


class TestTrackerName:
    def test_ordinary_names_are_themselves(self) -> None:
        """J13: the default keys and the names of ordinary layers stay literal."""
        for name in ("moe/avg_expert_cv", "moe/model.layers.0.mlp/usage_heatmap", "alerts/x"):
            assert tracker_name(name) == name

    def test_spells_what_trackers_refuse(self) -> None:
        """A bracket, a space and a dash become their numbers."""
        assert tracker_name("a[0] b-c") == "a-5b-0-5d--20-b-2d-c"

    @given(st.text() | PATHS)
    @example("..")
    @example("/etc/passwd")
    @example("a" * 300)
    @example("\ud800")
    def test_uses_only_what_every_tracker_keeps(self, name: str) -> None:
        """J13, J15: letters, digits and ``_ - . /``; never a folder above, never an empty part."""
        spelled = tracker_name(name)
        assert re.fullmatch(r"[A-Za-z0-9_./-]+", spelled)
        assert len(spelled) <= LONGEST
        assert posixpath.normpath(spelled) == spelled
        assert not spelled.startswith(("/", ".."))
        assert set(spelled.split("/")).isdisjoint({"", ".", ".."})

    @given(st.lists(st.text() | PATHS, unique=True, max_size=30))
    @example(["layers[0]", "layers-5b-0-5d-", "layers 0", "layers_0"])
    @example(["a/b", "a//b", "a--b", "a/--/b"])
    @example(["", "--", "/", "-/-", "-2d--2d-", ".", "-2e-"])
    @example(["a" * 300, "a" * 301, "a" * 299 + "b"])
    def test_two_names_never_become_one(self, names: list[str]) -> None:
        """J13: the spelling is injective."""
        assert len({tracker_name(name) for name in names}) == len(names)
