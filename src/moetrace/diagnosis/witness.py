"""The hooks of a trial on one site: its block, its router, its experts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from moetrace.diagnosis.decision import Decision
from moetrace.diagnosis.holders import holders_of
from moetrace.diagnosis.receipt import Receipt, hooks_on
from moetrace.readers import Reader, Site
from moetrace.readers.described import described

__all__ = ["Witness"]


class Witness:
    """Hooks of one trial on one site: its block, its router, its experts.

    Args:
        model: The model that is run.
        site: The site.
        router: The module that is hooked.
        reader: Reads its routing.

    Attributes:
        blocks_ran: Forwards of the block.
        routers_ran: Forwards of the router.
        read: Forwards that the reader could read.
        unread: Why not, of the last one that it could not.
        decision: What the router decided.
        receipts: What each holder of experts received.
        holders: The modules of the block that hold experts.
        tables: Experts whose weights are all there; E where the block holds none to count.
    """

    def __init__(self, model: nn.Module, site: Site, router: nn.Module, reader: Reader) -> None:
        self.site, self._router, self._reader = site, router, reader
        self.blocks_ran = self.routers_ran = self.read = 0
        self.unread = ""
        self.decision = Decision([0] * site.columns)
        block_path = site.path.rpartition(".")[0]
        self._block = model.get_submodule(block_path) if site.path else None
        self.holders = holders_of(self._block, router, site.columns)
        self.receipts = [Receipt() for _ in self.holders]
        self.tables = max((holder.experts for holder in self.holders), default=site.columns)

    @contextmanager
    def watching(self, mask_of: Any) -> Iterator[None]:
        """Hooks on the modules, gone when left.

        Args:
            mask_of: Returns the padding mask of the running forward, or None.
        """
        with ExitStack() as hooks:
            if self._block is not None:
                hooks.callback(self._block.register_forward_pre_hook(self._on_block).remove)

            def on_router(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                self._on_router(module, args, kwargs, output, mask_of())

            handle = self._router.register_forward_hook(on_router, with_kwargs=True)
            hooks.callback(handle.remove)
            for holder, receipt in zip(self.holders, self.receipts, strict=True):
                for hooked in hooks_on(holder, receipt):
                    hooks.callback(hooked.remove)
            yield

    def receipt(self) -> Receipt:
        """What says the most about what the experts received."""
        if isinstance(self._router, nn.Embedding):
            return Receipt("used", self.decision.counts, self.decision.counts)
        order = ("rows", "ids", "sizes")
        seen = [receipt for receipt in self.receipts if receipt.kind]
        if seen:
            return min(seen, key=lambda receipt: order.index(receipt.kind))
        if not self.receipts:
            return Receipt(why_not="no module of its block holds the experts")
        return self.receipts[0]

    def _on_block(self, module: nn.Module, args: Any) -> None:
        self.blocks_ran += 1

    def _on_router(
        self, module: nn.Module, args: Any, kwargs: Any, output: Any, mask_T: Tensor | None
    ) -> None:
        self.routers_ran += 1
        try:
            routing = self._reader.read(module, args, kwargs, output)
        except Exception as error:
            self.unread = f"its reader raised {type(error).__name__}: {error}"
            return
        if routing is None:
            self.unread = f"its reader reads nothing from an output of {described(output)}"
            return
        try:
            self.decision.add(routing, mask_T)
            self.read += 1
        except Exception as error:
            self.unread = f"its routing cannot be counted: {type(error).__name__}: {error}"
