"""``python -m moetrace``."""

import sys

from moetrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
