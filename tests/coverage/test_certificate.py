"""The certificate of a few architectures, and that it can fail."""

import functools

import pytest
import torch

from moetrace import NoRouterFound, Routing, attach
from tests.coverage import certificate
from tests.coverage.certificate import examine, with_identity
from tests.coverage.scan import Suspect, models_folder, scan
from tests.coverage.test_scan import PAGE
from tests.coverage.truth import SCORINGS

EXACT = (
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


class ByLogits:
    """Reads the highest two logits, as if there were no bias and no groups."""

    def matches(self, module):
        """Every router of DeepSeek-V3."""
        return type(module).__name__ == "DeepseekV3TopkRouter"

    def read(self, module, args, kwargs, output):
        """The logits and their highest two."""
        return Routing(output[0].topk(2).indices, output[0])


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


class TestIdentityChoices:
    def test_skips_have_the_last_column(self):
        """Choices of no expert stand behind the experts."""
        assert with_identity([3, 1], experts=4, skipped=2) == [3, 1, 0, 0, 2]

    def test_identity_experts_share_it(self):
        """Those of ids past the experts do, together."""
        assert with_identity([3, 1, 5, 6], experts=2, skipped=0) == [3, 1, 11]


class TestThatItCanFail:
    def test_wrong_ids(self, monkeypatch):
        """A reader that reads other ids than the experts got is found out."""
        watch = functools.partial(attach, readers=[ByLogits()])
        monkeypatch.setattr(certificate, "attach", watch)
        (row,) = examine(suspect("deepseek_v3"))
        assert (row.reader, row.counts) == ("ByLogits", "wrong")

    def test_wrong_scores(self, monkeypatch):
        """An entropy of other scores than the router's own is found out."""
        monkeypatch.setitem(SCORINGS, "DeepseekV3TopkRouter", "softmax")
        (row,) = examine(suspect("deepseek_v3"))
        assert (row.counts, row.entropy) == ("exact", "wrong")

    def test_padding_counted(self, monkeypatch):
        """Padding that is counted is found out."""

        def watch(model, **arguments):
            tracer = attach(model, **arguments)
            tracer.tokens(torch.ones(24))
            return tracer

        monkeypatch.setattr(certificate, "attach", watch)
        (row,) = examine(suspect("mixtral"))
        assert row.counts == "wrong"
        assert "train: counted 24 tokens, true 19" in row.notes

    def test_nothing_found(self, monkeypatch):
        """A model in which moetrace finds no router has a row that says so."""

        def watch(model, **arguments):
            raise NoRouterFound("found no router")

        monkeypatch.setattr(certificate, "attach", watch)
        (row,) = examine(suspect("mixtral"))
        assert row.counts == "no router found"

    def test_not_built(self):
        """An architecture that cannot be built is a row with the reason, and no exception."""
        (row,) = examine(Suspect("novel", ("NovelExperts",), ()))
        assert row.counts == "not built"
        assert "No module named 'transformers.models.novel'" in row.notes[0]

    def test_no_truth(self):
        """An architecture whose experts the truth does not find is a row of its own."""
        (row,) = examine(Suspect("mixtral", ("MixtralSparseMoeBlock",), ()))
        assert row.counts == "no truth"
        assert "moetrace finds 3 sites" in row.notes[0]

    def test_part_not_reached(self):
        """A part that no built model holds is a row of its own."""
        known = suspect("mixtral")
        rows = examine(Suspect("mixtral", (*known.parts, "MixtralGhostRouter"), ()))
        assert [row.counts for row in rows] == ["exact", "not built"]
        assert rows[1].notes == ["found no MixtralGhostRouter in MixtralForCausalLM"]
