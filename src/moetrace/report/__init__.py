"""A run as one self-contained HTML page.

```
page        puts the page together; the only file that knows HTML
verdict     what is wrong, where, since when, in sentences
advice      what to try about it
finding     one such sentence, and which is the most urgent
alarms      the alerts of the run as spans of steps
facts       what the run folder says about itself
payload     what the page holds of the run's counts, within its size
windows     the windows of a phase as tables
probes      router weights and gradients over the windows
tables      tables of experts that are looked up by index
packing     tables as text that a browser turns back into the same numbers (decode.js)
names       a stranger's text made fit for a page
```

`page.html`, `page.css` and the scripts are plain files without a build step. They read no network:
what they need stands in the page, and the page's Content-Security-Policy allows nothing else.
"""

from moetrace.report.page import render, write_report

__all__ = ["render", "write_report"]
