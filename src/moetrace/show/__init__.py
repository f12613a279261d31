"""A run on the terminal, as text or as one JSON document.

```
facts     what was recorded: model, routers, processes, windows, health, faults
window    the metrics of one window, layer by layer
doctor    what is wrong with a run, and what to do
columns   rows of text in columns that fit the terminal
```

Names in a run are a stranger's text: all of it is made `printable` before it is printed.
"""

from moetrace.show.doctor import diagnose_run, show_diagnosis
from moetrace.show.facts import facts, show_facts
from moetrace.show.window import show_table, window_at, window_record

__all__ = [
    "diagnose_run",
    "facts",
    "show_diagnosis",
    "show_facts",
    "show_table",
    "window_at",
    "window_record",
]
