"""What is wrong with a layer, said once when it begins and once when it is over.

```
rules       thresholds, and how long something has to last
alert       one alert, and the line that a console shows of it
reading     a figure held against a threshold
conditions  the readings of one window of one layer
judge       what begins and what is over, window after window
```

Nothing here imports torch. What each alert means stands in ``docs/alerts.md``.
"""

from moetrace.alerts.alert import KINDS, Alert
from moetrace.alerts.judge import AlertJudge
from moetrace.alerts.rules import AlertRules

__all__ = ["KINDS", "Alert", "AlertJudge", "AlertRules"]
