"""What is wrong with a tracing, and what to do about it.

```
finding     a finding, the state of a site, a diagnosis; no torch
text        a diagnosis in lines
windows     what the counts of closed windows say; the same for a training and for a run on disk
silence     sites that counted nothing, told apart
health      what the tracer's own state says
near_misses modules that look like routers and are not traced
structure   what the model itself says: modules replaced, hooks gone, forwards replaced
trial       one forward of the model that leaves no trace
witness     the hooks of a trial on one site
decision    what its router decided
receipt     what its experts received
holders     which modules of a block hold its experts
comparison  the two side by side
tracing     all of it together, for `Tracer.doctor`
```
"""

from moetrace.diagnosis.finding import Diagnosis, Finding, SiteState

__all__ = ["Diagnosis", "Finding", "SiteState"]
