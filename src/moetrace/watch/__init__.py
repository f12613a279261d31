"""A run on the terminal while it goes on: read from another process, drawn with rich.

```
loop       opens the run again and again and draws what is new
follower   the windows read so far; a refresh reads only those that came since
screen     one frame as lines: verdict, alerts, heatmap, curves
map        the heatmap as lines
cells      which layers fit, which experts share a cell, colours and letters
spark      a curve in one line
```

Nothing is added to the training: a frame is formed from the run folder alone, without torch.
"""

from moetrace.watch.follower import Follower, View
from moetrace.watch.loop import show_once, watch
from moetrace.watch.screen import screen, view_record

__all__ = ["Follower", "View", "screen", "show_once", "view_record", "watch"]
