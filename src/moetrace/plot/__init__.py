"""Pictures of a run for papers and notes, as PNG or SVG.

```
picture        one picture: a run, a kind, a file
kinds          the kinds, by name
choice         what of a run is shown
drawing        colours, type, names, and how a figure becomes a file
load, usage_plots, sub_keys, weights, gradients, surfaces    the kinds
usage          how the experts of a layer were used
```

matplotlib is imported where a picture is drawn, and pyplot never. The page is `docs/plot.md`.
"""

from moetrace.plot.choice import Choice
from moetrace.plot.kinds import KINDS, Kind
from moetrace.plot.picture import write_plot

__all__ = ["KINDS", "Choice", "Kind", "write_plot"]
