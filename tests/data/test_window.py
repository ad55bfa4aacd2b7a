"""The window of a grid in a file's volume: what is cut out lies back where it was."""

import numpy as np
import pytest

from prod9.data.window import Frame, Window


def frame(shape: tuple[int, ...]) -> Frame:
    return Frame(shape, np.eye(4), shape, np.eye(4), resampled=False)


@pytest.mark.parametrize(
    ("start", "sides"),
    [((1, 2, 3), (3, 3, 3)), ((-2, -1, -3), (9, 8, 14)), ((-2, 4, 0), (4, 9, 7)), ((6, 0, 0), (3, 2, 2))],
)
def test_window_and_back(start: tuple[int, ...], sides: tuple[int, ...]) -> None:
    whole = np.random.default_rng(0).random((5, 6, 7))
    window = Window(frame(whole.shape), start, sides)
    cut = window.cut(whole)
    assert cut.shape == sides
    back = window.paste(cut)
    inside = back != 0
    np.testing.assert_array_equal(back[inside], whole[inside])
    assert cut.sum() == pytest.approx(back.sum())


@pytest.mark.parametrize("side", range(1, 9))
@pytest.mark.parametrize("extent", range(1, 9))
def test_the_box_is_in_the_middle(extent: int, side: int) -> None:
    box = [slice(4, 4 + extent)] * 3
    window = Window.around(frame((20, 20, 20)), box, (side, side, side))
    middle = window.start[0] + side / 2
    assert abs(middle - (4 + extent / 2)) <= 0.5


def test_a_larger_box_gets_whole_multiples() -> None:
    window = Window.around(
        frame((30, 30, 30)), [slice(3, 20), slice(3, 8), slice(0, 30)], (8, 8, 8), multiple_of=4
    )
    assert window.sides == (20, 8, 32)
    np.testing.assert_array_equal(window.affine[:3, 3], window.start)
