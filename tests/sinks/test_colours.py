import numpy as np
import pytest

from moetrace.sinks.colours import coloured


class TestColoured:
    def test_more_load_is_brighter(self) -> None:
        """The scale ascends from dark to bright, so that it reads the same without colours."""
        row = np.array([[0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0]])
        light = coloured(row)[0, ::32].astype(float) @ [0.2126, 0.7152, 0.0722]
        assert len(light) == 8
        assert np.all(np.diff(light) > 5)

    def test_the_same_load_is_the_same_colour_in_every_picture(self) -> None:
        """The scale is fixed: a picture of step 10 can be held against one of step 1000."""
        alone, beside = coloured(np.array([[1.0]])), coloured(np.array([[1.0, 50.0]]))
        assert alone[0, 0].tolist() == beside[0, 0].tolist() == [49, 150, 125]

    def test_what_is_unknown_is_grey(self) -> None:
        """NaN and infinity are not a load of 0."""
        picture = coloured(np.array([[np.nan, np.inf, 0.0]]))
        assert picture[0, ::32].tolist() == [[235] * 3, [235] * 3, [13, 16, 54]]

    @pytest.mark.parametrize("rows", [1, 8, 300, 1024])
    def test_every_row_is_drawn(self, rows: int) -> None:
        """A picture has whole cells, of at most 32 pixels."""
        height, width, channels = coloured(np.ones((rows, 3))).shape
        assert height == rows * max(1, min(32, 256 // rows))
        assert (width, channels) == (96, 3)

    def test_a_table_too_large_is_averaged(self) -> None:
        """Of 3000 experts three share a row; none is left out."""
        table = np.zeros((3000, 1))
        table[2999] = 3.0
        picture = coloured(table)
        assert picture.shape[0] == 1000
        assert picture[-1, 0].tolist() == coloured(np.array([[1.0]]))[0, 0].tolist()

    def test_is_an_image_array(self) -> None:
        """What image encoders take: unsigned bytes, height, width, three channels."""
        picture = coloured(np.ones((2, 2)))
        assert (picture.dtype, picture.ndim) == (np.uint8, 3)
