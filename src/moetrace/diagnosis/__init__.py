"""What is wrong with a tracing, and what to do about it.

```
finding     a finding, the state of a site, a diagnosis; no torch
text        a diagnosis in lines
windows     what the counts of closed windows say; the same for a training and for a run on disk
silence     sites that counted nothing, told apart
structure   what the model itself says: modules replaced, hooks gone, forwards replaced
trial       one forward of the model that leaves no trace
witness     what the router decided in it and what the experts received
comparison  the two side by side
tracing     all of it together, for `Tracer.doctor`
```
"""

from moetrace.diagnosis.finding import Diagnosis, Finding, SiteState

__all__ = ["Diagnosis", "Finding", "SiteState"]
