"""What moetrace counts on every architecture: ``python -m tests.coverage_certificate``.

Writes ``docs/coverage.md``; with ``--only`` the page goes to standard output instead, with
``--json`` the rows do, with the types and shapes that were seen.
"""

import argparse
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from tests.coverage.certificate import TOLERANCE, certify
from tests.coverage.page import render, summary
from tests.coverage.scan import scan

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"


def main() -> int:
    """Run the certificate; the exit status is 0 whatever it finds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.coverage_certificate", description=__doc__
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="one folder; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="rows as JSON, with what was seen")
    arguments = parser.parse_args()
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    suspects = scan()
    wanted = [item for item in suspects if not arguments.only or item.folder in arguments.only]
    if unknown := set(arguments.only or ()) - {item.folder for item in suspects}:
        parser.error(f"found no {', '.join(sorted(unknown))} among the suspects")
    rows = certify(wanted, progress=_say)
    if arguments.json:
        json.dump([row.to_dict() for row in rows], sys.stdout, indent=1)
    names = ("transformers", "torch", "moetrace")
    versions = {name: version(name) for name in names} | {"tolerance": f"{TOLERANCE:g}"}
    page = render(rows, wanted, versions)
    if arguments.only and not arguments.json:
        sys.stdout.write(page)
    elif not arguments.only:
        PAGE.write_text(page, encoding="utf-8")
    _say(summary(rows))
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
