"""A table of experts as pixels: what is black, what is brightest, and how large it gets."""

import subprocess
import sys

import numpy as np
import pytest

from moetrace.index_picture import save_usage_picture, usage_picture


class TestUsagePicture:
    def test_a_million_experts_are_1024_by_1024_pixels(self):
        """S2-12, S2-17: with 1024 keys a side every expert is a pixel, row by row."""
        counts = np.zeros(1 << 20, np.int64)
        counts[3 * 1024 + 7] = 9
        picture = usage_picture(counts, columns=1024)
        assert (picture.shape, picture.dtype) == ((1024, 1024), np.uint8)
        assert np.argwhere(picture).tolist() == [[3, 7]]
        assert picture[3, 7] == 255

    def test_black_was_never_drawn(self):
        """One draw beside a million is dark, and not black."""
        picture = usage_picture(np.array([0, 1, 10**9, 5]), columns=2)
        assert picture[0, 0] == 0
        assert picture[0, 1] >= 1

    def test_larger_tables_are_averaged(self):
        """Neighbours share a pixel, with their mean; a last group may be smaller."""
        counts = np.array([1, 1, 4, 1, 1, 4])
        picture = usage_picture(counts, columns=3, most=2)
        assert picture.shape == (2, 2)
        assert picture[:, 1].tolist() == [255, 255]
        assert picture[0, 0] == round(np.log1p(1) / np.log1p(4) * 255)

    def test_a_table_without_product_keys(self):
        """Without columns it is as near to a square as it gets, filled up with black."""
        assert usage_picture(np.ones(5, np.int64)).tolist() == [[255, 255, 255], [255, 255, 0]]

    def test_nothing_drawn_is_black(self):
        """A table without a draw is a black picture, without a warning."""
        assert not usage_picture(np.zeros(4, np.int64), columns=2).any()

    @pytest.mark.parametrize(
        ("counts", "settings", "reason"),
        [
            (np.ones(6), {"columns": 4}, "no grid of 4 columns"),
            (np.ones((2, 2)), {}, r"expected \(E,\)"),
            (np.ones(4), {"most": 0}, "a pixel or more"),
        ],
    )
    def test_what_is_no_table(self, counts, settings, reason):
        """What cannot be drawn is refused with what was found."""
        with pytest.raises(ValueError, match=reason):
            usage_picture(counts, **settings)


class TestSavedPicture:
    def test_a_png_has_one_pixel_per_expert(self, tmp_path):
        """The file is a PNG of exactly the picture's size, made without pyplot or a display."""
        image = pytest.importorskip("matplotlib.image")
        save_usage_picture(tmp_path / "usage.png", np.arange(64), columns=8)
        assert (tmp_path / "usage.png").read_bytes()[:4] == b"\x89PNG"
        assert image.imread(tmp_path / "usage.png").shape[:2] == (8, 8)

    def test_pyplot_is_not_imported(self):
        """Nothing opens a window: pyplot stays out of the process."""
        pytest.importorskip("matplotlib")
        code = (
            "import sys, io, numpy as np\n"
            "from moetrace import index_picture\n"
            "import tempfile, os\n"
            "path = os.path.join(tempfile.mkdtemp(), 'a.png')\n"
            "index_picture.save_usage_picture(path, np.arange(16), columns=4)\n"
            "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
