"""Pictures of each layer's expert usage as files, beside the detailed logs."""

import logging
from pathlib import Path

from moetrace.sinks.charts import Charts
from moetrace.sinks.names import tracker_name
from moetrace.snapshot import Snapshot

__all__ = ["HeatmapFiles"]

_log = logging.getLogger("moetrace")


class HeatmapFiles:
    """Writes ``{layer}_heatmap_step_{N}.png``: a row per expert, a column per window so far.

    In a layer's name every character that some file system refuses is spelled as its number.
    Without Pillow there are none, which is said once.

    Args:
        folder: Where to.
        every: Optimizer steps between pictures.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._folder = folder
        self._charts: Charts | None = Charts(per_layer=True, heatmap_every=every)

    def write(self, snapshot: Snapshot) -> None:
        """Remember a training window; write the pictures where they are due with it."""
        if self._charts is None or not self._charts.note(snapshot):
            return
        try:
            from PIL import Image
        except ImportError:
            self._charts = None
            _log.warning("heat maps are not written as files: pip install pillow")
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        pictures = self._charts.images(snapshot)
        for stats in snapshot:
            picture = pictures.get(tracker_name(f"moe/{stats.layer}/usage_heatmap"))
            if picture is not None:
                layer = tracker_name(stats.layer).replace("/", "-2f-")
                name = f"{layer}_heatmap_step_{snapshot.last_step}.png"
                Image.fromarray(picture).save(self._folder / name)
