"""``python -m tests.chaos``: all that names a row of the fault matrix, and the long versions.

Writes ``RELIABILITY.json``: a line per row with tries, failures and seconds, or why there is none.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.long_versions import LONG

SIZES = {"kills": 1000, "forks": 1000, "states": 10_000, "fuzz": 600, "exits": 100, "soak": 10**6}
"""How often, or how many steps; of ``fuzz`` the seconds."""


def main() -> int:
    """Run it all; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="size (%(default)s); 0: none")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="where tests are looked for")
    parser.add_argument("--out", type=Path, default=Path("RELIABILITY.json"))
    parser.add_argument(
        "--renew", action="store_true", help="keep what the file says of rows that this run leaves"
    )
    options = parser.parse_args()
    ledger = Ledger()
    if options.tests:
        pytest.main(["-q", "-p", "no:cacheprovider", *options.tests], plugins=[ledger])
    sizes = {name: getattr(options, name) for name in SIZES}
    for name, size in sizes.items():
        if size:
            rows, check = LONG[name]
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                tries, failures, note = check(size, Path(folder))
            seconds = time.monotonic() - start
            ledger.add(rows, tries=tries, failures=failures, seconds=seconds, note=note)
            sys.stdout.write(
                f"{name}: {tries} tries, {failures} failures, {seconds:.0f} s. {note}\n"
            )
    commit = _commit()
    lines = [{**line, "commit": commit} for line in ledger.to_json()]
    if options.renew:
        known = {line["id"]: line for line in json.loads(options.out.read_text())["rows"]}
        lines = [line if line["tries"] else known[line["id"]] for line in lines]
    record = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("moetrace", "torch", "numpy", "orjson")},
        },
        "sizes": sizes,
        "tests": options.tests,
        "rows": lines,
    }
    text = json.dumps(record, indent=1)
    # one line per row, so that a difference shows as one
    head, _, _ = text.partition('"rows"')
    body = ",\n".join(f"  {json.dumps(line)}" for line in lines)
    options.out.write_text(f'{head}"rows": [\n{body}\n ]\n}}\n')
    failed = [line["id"] for line in lines if line["failures"]]
    tried = sum(bool(line["tries"]) for line in lines)
    sys.stdout.write(f"{tried} of {len(lines)} rows tried; failed: {failed or 'none'}\n")
    return 1 if failed else 0


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()[:12]


if __name__ == "__main__":
    sys.exit(main())
