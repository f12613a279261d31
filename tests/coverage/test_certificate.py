"""The certificate of a few architectures, and that it can fail."""

import functools

import pytest

from moetrace.probes import MaskProbe
from moetrace.readers import StandardRouterReader
from moetrace.readers import discovery as discovery_module
from moetrace.routing import Routing
from tests.coverage.certificate import examine
from tests.coverage.scan import Suspect, models_folder, scan
from tests.coverage.test_scan import PAGE

EXACT = (
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "dots3_note",
    "ernie4_5_moe",
    "gpt_oss",
    "granitemoe",
    "kolibri1",
    "longcat_flash",
    "minimax_m2",
    "mixtral",
    "phimoe",
    "qwen3_moe",
)
"""One architecture of each way to choose that the readers have to get right."""


@functools.cache
def suspect(folder):
    """The suspect of one folder of the installed release; parses no other."""
    return next(item for item in scan(models_folder(), only=folder))


class TestCertificate:
    @pytest.mark.parametrize("folder", EXACT)
    def test_exact(self, folder):
        """Counts, tokens, entropy and names of every site are those of the truth."""
        rows = examine(suspect(folder))
        assert [(row.block, row.counts, row.entropy) for row in rows if not row.exact] == []
        assert all(row.entropy == "exact" for row in rows)

    @pytest.mark.parametrize("folder", ["mixtral", "dbrx", "vitpose_backbone"])
    def test_page(self, folder):
        """The page says what a run says."""
        page = PAGE.read_text(encoding="utf-8")
        for row in examine(suspect(folder)):
            line = next(x for x in page.splitlines() if x.startswith(f"| {folder} | {row.block} |"))
            assert f"| {row.sites} | {row.counts} | {row.entropy} |" in line


class TestThatItCanFail:
    def test_wrong_ids(self, monkeypatch):
        """A reader that reads other ids than the experts got is found out."""
        read = StandardRouterReader.read

        def by_logits(self, module, args, kwargs, output):
            routing = read(self, module, args, kwargs, output)
            ids = routing.logits_TE.topk(routing.topk_expert_ids_TK.shape[-1]).indices
            return Routing(ids, routing.logits_TE, routing.topk_weights_TK)

        monkeypatch.setattr(StandardRouterReader, "read", by_logits)
        (row,) = examine(suspect("deepseek_v3"))
        assert row.counts == "wrong"

    def test_wrong_scores(self, monkeypatch):
        """An entropy of other scores than the router's own is found out."""
        monkeypatch.setattr(discovery_module, "scoring_of", lambda router: "softmax")
        (row,) = examine(suspect("deepseek_v3"))
        assert (row.counts, row.entropy) == ("exact", "wrong")

    def test_padding_counted(self, monkeypatch):
        """Padding that is counted is found out."""
        monkeypatch.setattr(MaskProbe, "__call__", lambda *arguments: None)
        (row,) = examine(suspect("mixtral"))
        assert row.counts == "wrong"
        assert "train: counted 24 tokens, true 19" in row.notes

    def test_nothing_found(self, monkeypatch):
        """A model in which moetrace finds no router has a row that says so."""
        monkeypatch.setattr(discovery_module, "_consider", lambda *args: None)
        (row,) = examine(suspect("mixtral"))
        assert row.counts == "no router found"

    def test_not_built(self):
        """An architecture that cannot be built is a row with the reason, and no exception."""
        (row,) = examine(Suspect("novel", ("NovelExperts",), ()))
        assert row.counts == "not built"
        assert "No module named 'transformers.models.novel'" in row.notes[0]

    def test_part_not_reached(self):
        """A part that no built model holds is a row of its own."""
        known = suspect("mixtral")
        rows = examine(Suspect("mixtral", (*known.parts, "MixtralGhostRouter"), ()))
        assert [row.counts for row in rows] == ["exact", "not built"]
        assert rows[1].notes == ["found no MixtralGhostRouter in MixtralForCausalLM"]
