"""Rules held against a run, for a pipeline that has to stop when a training went wrong.

```
rule        one rule: a figure, a comparison, where it holds; read from text and from a file
figures     the names that a rule may say
judgement   what became of a rule over all windows of a run
text        the judgements in words
```

The page is `docs/check.md`.
"""

from moetrace.check.judgement import Judgement, Sighting, check_run
from moetrace.check.rule import Rule, parse_rule, read_rules
from moetrace.check.text import show_check

__all__ = [
    "Judgement",
    "Rule",
    "Sighting",
    "check_run",
    "parse_rule",
    "read_rules",
    "show_check",
]
