"""The report of a run as a page that renews itself, for this machine alone.

```
gate      which requests are answered: from this machine, to this address, with the key in the path
pages     the page as the run stands now, formed again only when the folder has changed
server    one thread a request, few of them, none for long
```

It runs in a process of its own, reads the run folder, and writes nothing. It listens on the
loopback address; a web page open in the same browser can neither read it nor guess its address.
"""

from moetrace.serve.pages import Pages
from moetrace.serve.server import Server, serve

__all__ = ["Pages", "Server", "serve"]
