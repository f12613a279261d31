"""Live totals over all ranks, where somebody asked for them (``reduce="live"``).

Beside `moetrace.rank`, the only package of moetrace that talks to ``torch.distributed``. The writer
hands it what is in the run folder already, so that a rank that is late, stopped or dead costs
live curves and nothing else; the merge on reading is the truth.
"""

from moetrace.reduction.agreement import Layer, Offer
from moetrace.reduction.live import LiveReduction

__all__ = ["Layer", "LiveReduction", "Offer"]
