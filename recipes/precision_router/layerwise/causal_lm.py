"""A frozen causal language model of nested weights, with a router per layer.

Letters: B sequences of a batch, S positions, V vocabulary, L layers.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from layerwise.errors import RecipeError
from layerwise.nested_model import decoder_layers, load_nested
from layerwise.pooling import Pool
from layerwise.precision_layer import BatchPolicy, MixMode, Plan, PrecisionLayer
from layerwise.router import PrecisionRouter

__all__ = ["LayerwiseOutput", "LayerwiseQuantizeForCausalLM", "checked_precisions"]


@dataclass(frozen=True, slots=True)
class LayerwiseOutput:
    """What one forward gave.

    Attributes:
        logits: Shape ``(B, S, V)``.
        bits_BL: Bits that each layer ran with, per sequence; in a mixture the expected bits, which
            have a gradient.
    """

    logits: Tensor
    bits_BL: Tensor

    @property
    def avg_precision(self) -> Tensor:
        """Mean bits over layers and sequences: every layer counts the same."""
        return self.bits_BL.mean()


class LayerwiseQuantizeForCausalLM(nn.Module):
    """The model. Only its routers are trained, and only they are in its ``state_dict``.

    Made by `from_quantized`. A call of the model itself is refused, since it would not say which of
    its three forwards is meant.

    Attributes:
        base: The model of transformers.
        layers: Its decoder layers, each with its router.
        precisions: Bits to choose from, ascending.
    """

    def __init__(
        self, base: nn.Module, precisions: Sequence[int], *, pool: Pool, start: int
    ) -> None:
        super().__init__()
        base.requires_grad_(False)
        base.eval()
        self.base, self.precisions = base, tuple(precisions)
        stack = decoder_layers(base)
        config: Any = base.config
        for index, layer in enumerate(list(stack)):
            router = PrecisionRouter(config.hidden_size, self.precisions, pool=pool, start=start)
            stack[index] = PrecisionLayer(layer, router, index)
        self._stack = [stack]  # in a list: registered once, where transformers has it

    @classmethod
    def from_quantized(
        cls,
        quant_model_path: str | os.PathLike[str],
        trust_remote_code: bool = False,
        precisions: Sequence[int] | None = None,
        *,
        pool: str = "prefix:64",
        start_precision: int | None = None,
    ) -> Self:
        """Load what ``quantize.py`` has made, with new routers.

        Args:
            quant_model_path: The folder.
            trust_remote_code: Run the model code that the folder names, as transformers does.
            precisions: Some of the precisions that the folder says it holds; None for all.
            pool: ``"prefix:K"`` or ``"mean"``, see `Pool`.
            start_precision: What new routers choose; None for the highest.

        Raises:
            RecipeError: The folder is none, or a precision is not in it.
        """
        base, offered = load_nested(quant_model_path, trust_remote_code=trust_remote_code)
        chosen = checked_precisions(precisions, offered)
        start = chosen[-1] if start_precision is None else start_precision
        if start not in chosen:
            raise RecipeError(f"found --start_precision {start}; take one of {list(chosen)}")
        return cls(base, chosen, pool=Pool.parse(pool), start=start)

    @property
    def layers(self) -> list[PrecisionLayer]:
        """The decoder layers, in order."""
        return [layer for layer in self._stack[0] if isinstance(layer, PrecisionLayer)]

    @property
    def sites(self) -> list[str]:
        """What moetrace calls the layers; a model of experts has routers of its own beside them."""
        return [name for name, part in self.named_modules() if isinstance(part, PrecisionLayer)]

    @property
    def pool(self) -> Pool:
        """Which tokens the routers look at."""
        return self.layers[0].router.pool

    def router_parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [weight for layer in self.layers for weight in layer.router.parameters()]

    def recompute_layers(self, on: bool = True) -> None:
        """Keep no activations inside layers for the backward: less memory, one forward more."""
        for layer in self.layers:
            layer.recompute = on

    def train_forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mode: MixMode = "output",
        neighbours: int | None = None,
    ) -> LayerwiseOutput:
        """Every layer as the mixture of its precisions that its router says.

        Args:
            input_ids: Shape ``(B, S)``.
            attention_mask: 1 where a token is real; None for all.
            mode: ``"output"`` weighs the layer's outputs with the probabilities;
                ``"straight_through"`` runs the choice and takes the gradient of the mixture.
            neighbours: 2 runs only the two precisions around the expected one.

        Cost: one forward of each layer per precision that has a weight.
        """
        if neighbours not in (None, 2):
            raise ValueError(f"found neighbours={neighbours}; it is None or 2")
        if neighbours is not None and mode == "straight_through":
            raise ValueError("straight_through needs every precision; take neighbours=None")
        plan = Plan(_mask(input_ids, attention_mask), "mixed", mode=mode, neighbours=neighbours)
        return self._forward(input_ids, attention_mask, plan)

    @torch.no_grad()
    def infer_forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        batch_policy: BatchPolicy = "sample",
    ) -> LayerwiseOutput:
        """Every layer in the most probable precision, for each sequence by itself.

        Args:
            input_ids: Shape ``(B, S)``.
            attention_mask: 1 where a token is real; None for all.
            batch_policy: ``"max"`` runs the whole batch in the highest precision that one of its
                sequences has chosen; a result then depends on who else is in the batch.

        Cost: one forward of each layer per precision that a sequence of the batch has chosen there.
        """
        plan = Plan(_mask(input_ids, attention_mask), "chosen", batch_policy=batch_policy)
        return self._forward(input_ids, attention_mask, plan)

    @torch.no_grad()
    def fixed_forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        bits: int | Sequence[int],
    ) -> LayerwiseOutput:
        """Every layer in a given precision; no router runs.

        Args:
            input_ids: Shape ``(B, S)``.
            attention_mask: 1 where a token is real; None for all.
            bits: One number for all layers, or one per layer.
        """
        count = len(self.layers)
        fixed = [bits] * count if isinstance(bits, int) else list(bits)
        if len(fixed) != count or not set(fixed) <= set(self.precisions):
            raise ValueError(f"found bits={bits}; one of {self.precisions} for {count} layers")
        plan = Plan(_mask(input_ids, attention_mask), "fixed", fixed=fixed)
        return self._forward(input_ids, attention_mask, plan)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refused.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("call train_forward, infer_forward or fixed_forward")

    def train(self, mode: bool = True) -> Self:
        """Routers go into train mode; the frozen model stays in eval mode, without dropout."""
        super().train(mode)
        self.base.eval()
        for layer in self.layers:
            layer.training = mode
            layer.router.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The routers alone."""
        whole = super().state_dict(*args, **kwargs)
        return {name: value for name, value in whole.items() if ".router." in name}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load routers; the frozen model is not touched.

        Raises:
            RecipeError: They are of another model, or for other precisions.
        """
        own = self.state_dict()
        missing, foreign = sorted(own.keys() - state_dict), sorted(state_dict.keys() - own)
        if strict and (missing or foreign):
            named = ", ".join([*missing, *foreign][:3])
            raise RecipeError(
                f"found routers of another model: {len(missing)} entries are missing and "
                f"{len(foreign)} are unknown ({named}); give the model that they were trained on"
            )
        for name, value in state_dict.items():
            if name.endswith("_extra_state") and name in own:  # says more than a wrong shape
                self.get_submodule(name.rpartition(".")[0]).set_extra_state(value)
        known = {name: value for name, value in state_dict.items() if name in own}
        return super().load_state_dict(known, strict=False, assign=assign)

    def _forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, plan: Plan
    ) -> LayerwiseOutput:
        with self._planned(plan):
            output = self.base(input_ids, attention_mask=attention_mask, use_cache=False)
        return LayerwiseOutput(output.logits, torch.stack(plan.bits, dim=1))

    @contextmanager
    def _planned(self, plan: Plan) -> Iterator[None]:
        for layer in self.layers:
            layer.plan = plan
        try:
            yield
        finally:
            for layer in self.layers:
                layer.plan = None


def checked_precisions(asked: Sequence[int] | None, offered: Sequence[int]) -> tuple[int, ...]:
    """The precisions to use, ascending.

    Raises:
        RecipeError: One of them is not among those of the model, or there are none.

    >>> checked_precisions([4, 3], [3, 4, 5])
    (3, 4)
    """
    chosen = tuple(sorted(set(offered if asked is None else asked)))
    wrong = [bits for bits in chosen if bits not in offered]
    if wrong or not chosen:
        raise RecipeError(
            f"found --precisions {' '.join(map(str, asked or ()))}; this model supports "
            f"{list(offered)}; take some of those, or quantise again with quantize.py --precisions"
        )
    return chosen


def _mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask
