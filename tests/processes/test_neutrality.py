"""Nothing of the process is changed by attach, by training, or by close."""

import json
from pathlib import Path

from tests.processes.nursery import Nursery
from tests.processes.test_exit import START

STATE = """
import atexit, gc, hashlib, locale, logging, random, signal, sys, threading, warnings
import numpy, torch

def hashed(data):
    return hashlib.sha256(repr(data).encode()).hexdigest()[:12]

def state():
    umask = os.umask(0o22)
    os.umask(umask)
    root = logging.getLogger()
    others = sorted(name for name in logging.root.manager.loggerDict if name != "moetrace")
    return {
        "signal handlers": [repr(signal.getsignal(n)) for n in signal.valid_signals()],
        "signal mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup fd": signal.set_wakeup_fd(-1),
        "itimer": signal.getitimer(signal.ITIMER_REAL),
        "excepthook": repr(sys.excepthook),
        "unraisablehook": repr(sys.unraisablehook),
        "displayhook": repr(sys.displayhook),
        "threading.excepthook": repr(threading.excepthook),
        "trace": repr((sys.gettrace(), threading.gettrace())),
        "profile": repr((sys.getprofile(), threading.getprofile())),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "digits": sys.get_int_max_str_digits(),
        "sys.path": list(sys.path),
        "meta path": len(sys.meta_path),
        "path hooks": len(sys.path_hooks),
        "root logger": repr((root.level, root.handlers, root.filters, logging.raiseExceptions)),
        "loggers": [repr((n, logging.getLogger(n).level, logging.getLogger(n).handlers,
                    logging.getLogger(n).propagate)) for n in others],
        "our logger": repr((logging.getLogger("moetrace").level,
                    logging.getLogger("moetrace").handlers)),
        "log factory": repr((logging.getLoggerClass(), logging.getLogRecordFactory())),
        "warnings": repr(warnings.filters) + repr(warnings.showwarning),
        "environment": hashed(sorted(os.environ.items())),
        "folder": os.getcwd(),
        "umask": umask,
        "niceness": os.nice(0),
        "locale": repr(locale.setlocale(locale.LC_ALL)),
        "random": hashed(random.getstate()),
        "numpy random": hashed([numpy.asarray(p).tolist() for p in numpy.random.get_state()[1:]]),
        "torch random": hashed(torch.get_rng_state().tolist()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": repr(torch.get_default_dtype()),
        "default device": repr(torch.get_default_device()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "gc": repr((gc.get_threshold(), gc.isenabled(), gc.callbacks, gc.get_debug())),
        "start method": __import__("multiprocessing").get_start_method(allow_none=True),
        "streams": repr((sys.stdout, sys.stderr, sys.stdin)),
        "float printing": repr(numpy.get_printoptions()),
        "float errors": repr(numpy.geterr()),
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                        if os.path.exists(f"/proc/self/fd/{fd}")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "hooks of torch": len(torch.nn.modules.module._global_forward_hooks),
        "hooks of the model": sum(len(m._forward_hooks) + len(m._forward_pre_hooks)
                        for m in traced.modules()),
    }
"""

PROGRAM = (
    START
    + STATE
    + """
import json
model()(torch.zeros(2, 4)).sum().backward()  # what torch starts by itself
with attach(model(), run + "-warm", every=1) as warm:
    pass  # modules that are imported late
before, exits = state(), atexit._ncallbacks()
tracer = attach(traced, run, every=2)
attached = state()
for step in range(5):
    tracer.on_step_begin()
    traced(torch.zeros(2, 4))
    tracer.on_step_end()
tracer.close()
after = state()
say(json.dumps([before, attached, after, atexit._ncallbacks() - exits]))
"""
)

OURS_WHILE_ATTACHED = {"files", "threads", "hooks of the model"}


class TestNeutrality:
    def test_nothing_of_the_process_is_changed(self, nursery: Nursery, tmp_path: Path) -> None:
        """D4, D18: 45 things of a process are the same before, during and after a tracer.

        But its own threads, files and hooks while it is attached. It adds no exit handler of its
        own: those of weakref and multiprocessing, which are there once, do it.
        """
        done = nursery.run(PROGRAM, run=str(tmp_path))
        assert (done.code, done.err) == (0, "")
        before, attached, after, exits = json.loads(done.out)
        assert len(before) >= 45
        assert {name for name in before if before[name] != after[name]} == set()
        changed = {name for name in before if before[name] != attached[name]}
        assert changed <= OURS_WHILE_ATTACHED
        assert exits == 0

    def test_the_comparison_sees_a_change(self, nursery: Nursery, tmp_path: Path) -> None:
        """A handler, a hook, a filter, a drawn random number would be seen."""
        for change, name in (
            ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "signal handlers"),
            ("sys.excepthook = print", "excepthook"),
            ("warnings.simplefilter('ignore')", "warnings"),
            ("torch.rand(1)", "torch random"),
            ("logging.basicConfig()", "root logger"),
            ("os.environ['X'] = 'y'", "environment"),
            ("torch.set_default_dtype(torch.float64)", "default dtype"),
        ):
            program = PROGRAM.replace("tracer.close()\n", f"tracer.close()\n{change}\n")
            done = nursery.run(program, run=str(tmp_path / name.replace(" ", "-")))
            before, _, after, _ = json.loads(done.out)
            assert {key for key in before if before[key] != after[key]} >= {name}
