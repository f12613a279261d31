"""What is wrong with a layer, said once when it begins and once when it is over.

```
rules       thresholds, and how long something has to last
alert       one alert, and the line that a console shows of it
```
"""

from moetrace.alerts.alert import KINDS, Alert
from moetrace.alerts.rules import AlertRules

__all__ = ["KINDS", "Alert", "AlertRules"]
