"""Dense architectures of transformers that look in some way as if they chose among experts."""

import importlib
import inspect
import warnings

import pytest
import torch

import moetrace
from tests.coverage.look_alikes import LOOK_ALIKES

WRAPPERS = {"kimi_k25": "DeepseekV3TopkRouter", "nemotron3_5_transcribe": "NemotronHTopkRouter"}
"""Those that wrap a text model of another folder: its routers are the only ones."""

SETTINGS = {
    "autoformer": {"prediction_length": 4, "feature_size": 8},
    "deformable_detr": {"use_timm_backbone": False, "backbone": None},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "informer": {"prediction_length": 4},
    "omdet_turbo": {"use_timm_backbone": False, "backbone": None},
}
"""What a configuration needs beyond its defaults."""


def models(folder, monkeypatch):
    """The last model class of each configuration in the folder, which holds the others.

    In their default size, built without memory.
    """
    from transformers import PreTrainedModel

    name = f"transformers.models.{folder}.modeling_{folder}"
    module = importlib.import_module(name)
    if hasattr(module, "requires_backends"):  # libraries of a loss or a kernel; nothing runs here
        monkeypatch.setattr(module, "requires_backends", lambda *needs: None)
    last = {}
    for item in vars(module).values():
        known = inspect.isclass(item) and issubclass(item, PreTrainedModel)
        if known and item.__module__ == name and not item.__name__.endswith("PreTrainedModel"):
            last[item.config_class] = item
    for config_class, item in last.items():
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                config = config_class(**SETTINGS.get(folder, {}))
                if folder.endswith("_assistant"):  # its layers use the cache of another model
                    config.text_config.num_kv_shared_layers = 0
                yield item(config)
        except (ImportError, AttributeError, TypeError):
            continue  # a part that has no configuration of its own


@pytest.mark.parametrize("folder", LOOK_ALIKES)
def test_no_false_site(folder, monkeypatch):
    """No class of the folder has a site but those of a mixture of experts that it wraps."""
    pytest.importorskip("transformers")
    built = 0
    for model in models(folder, monkeypatch):
        built += 1
        taken = {site.router for site in moetrace.discover(model) if site.taken}
        assert taken <= {WRAPPERS.get(folder)}
    assert built > 0


@pytest.mark.parametrize("folder", ["rt_detr", "recurrent_gemma", "csm", "granite_docling"])
def test_attach_says_so(folder, monkeypatch):
    """Attach refuses such a model, with a reason for what came near."""
    pytest.importorskip("transformers")
    for model in models(folder, monkeypatch):
        with pytest.raises(moetrace.NoRouterFound, match="to name a router, pass readers"):
            moetrace.attach(model)
