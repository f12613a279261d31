"""Several runs over the same steps: what differs, where, since when, and beyond which noise.

```
spans       the smallest spans of steps that no window of any run crosses
noise       how much two runs differ by chance
comparison  the figures of all runs side by side
text        the comparison on the terminal and as JSON
page        the comparison as one HTML file
heatmaps    its heatmaps
pictures    tables as small pictures
curves      figures over the steps as drawings
```

The page is `docs/compare.md`.
"""

from moetrace.compare.comparison import Change, Comparison, Subject, compare_runs
from moetrace.compare.page import write_comparison
from moetrace.compare.text import comparison_record, show_comparison

__all__ = [
    "Change",
    "Comparison",
    "Subject",
    "compare_runs",
    "comparison_record",
    "show_comparison",
    "write_comparison",
]
