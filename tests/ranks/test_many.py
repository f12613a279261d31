"""A run of many ranks is read in little memory: a few of them at a time."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "many_ranks.py"


class TestManyRanks:
    def test_the_small_form_of_the_benchmark(self):
        """F13: 192 ranks of 0.2 MB a window: summing them up reads no array again, and adding one
        window holds 64 of them at a time.
        """
        shape = ["--ranks", "192", "--layers", "2", "--experts", "4096", "--windows", "1"]
        done = subprocess.run(
            [sys.executable, BENCHMARK, *shape],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        told = json.loads(done.stdout)
        all_at_once = 192 * 2 * 4096 * 8 * 3 / 2**20
        assert all_at_once == 36.0
        assert told["summary_peak_mib"] < 110
        assert told["peak_mib"] - told["summary_peak_mib"] < all_at_once / 1.5
