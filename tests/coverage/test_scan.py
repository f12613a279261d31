import functools
from pathlib import Path

import pytest

from tests.coverage.look_alikes import LOOK_ALIKES
from tests.coverage.scan import scan

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

installed = functools.cache(scan)


def scanned(folder, source, kind="modeling"):
    """What the scan finds in a release that holds one folder with one file."""
    (folder / "novel").mkdir()
    (folder / "novel" / f"{kind}_novel.py").write_text(source, encoding="utf-8")
    return scan(folder)


class TestScan:
    def test_stacked_experts(self, tmp_path):
        """A parameter of three dimensions whose first counts experts makes its class a part."""
        source = """
class Mixer(nn.Module):
    def __init__(self, config):
        self.up = nn.Parameter(torch.empty(self.num_experts, 4, config.hidden_size))
"""
        assert scanned(tmp_path, source)[0].parts == ("Mixer",)

    def test_listed_experts(self, tmp_path):
        """A module list of experts makes its class a part."""
        source = """
class Mixer(nn.Module):
    def __init__(self, config):
        self.mlps = nn.ModuleList([Mlp(config) for _ in range(config.num_experts)])
"""
        assert scanned(tmp_path, source)[0].parts == ("Mixer",)

    def test_declared_router(self, tmp_path):
        """A class that the model declares as a source of router logits is a part."""
        source = """
class NovelPreTrainedModel(PreTrainedModel):
    _can_record_outputs = {"router_logits": OutputRecorder(Mixer, index=1)}
"""
        assert scanned(tmp_path, source)[0].parts == ("Mixer",)

    @pytest.mark.parametrize("name", ["NovelExperts", "NovelRouter", "NovelMoE", "NovelMoeGate"])
    def test_name(self, tmp_path, name):
        """A class that is called like experts, a router or a block is a part."""
        assert scanned(tmp_path, f"class {name}(nn.Module): pass")[0].parts == (name,)

    def test_imported_experts(self, tmp_path):
        """Experts that come from the modeling file of another folder are a part."""
        source = "from ..mixtral.modeling_mixtral import MixtralExperts"
        assert scanned(tmp_path, source)[0].parts == ("MixtralExperts",)

    def test_choice(self, tmp_path):
        """A top-k anywhere makes a suspect, without a part."""
        source = "class Mixer(nn.Module):\n    def forward(self, x): return torch.topk(x, 2)"
        assert scanned(tmp_path, source)[0].hints == ("Mixer takes a topk",)

    def test_configuration(self, tmp_path):
        """A field that speaks of experts makes a suspect, without a part."""
        found = scanned(tmp_path, "num_experts: int = 8", kind="configuration")
        assert found[0].hints == ("its configuration says num_experts",)

    def test_dense(self, tmp_path):
        """A dense model is no suspect."""
        source = "class NovelMLP(nn.Module):\n    def forward(self, x): return self.gate_proj(x)"
        assert scanned(tmp_path, source) == []


class TestInstalledRelease:
    def test_every_architecture_is_on_the_page(self):
        """A folder with a mixture of experts has a row of its own in docs/coverage.md."""
        page = PAGE.read_text(encoding="utf-8")
        found = [item.folder for item in installed() if item.parts]
        missing = [
            name for name in found if name not in LOOK_ALIKES and f"\n| {name} | " not in page
        ]
        assert not missing, "run python -m tests.coverage_certificate"

    def test_nobody_has_not_looked(self):
        """Every suspect without a part is among the look-alikes, with what it is."""
        assert [i.folder for i in installed() if not i.parts and i.folder not in LOOK_ALIKES] == []

    def test_look_alikes_are_suspects(self):
        """No look-alike is kept that the scan no longer suspects."""
        assert set(LOOK_ALIKES) <= {item.folder for item in installed()}
