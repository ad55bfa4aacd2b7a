"""A region on slices that are thicker than a token: the tokens in the middle of a slice were not drawn again."""

import numpy as np
import pytest

from prod9.pipelines.inpainting import touched_tokens


@pytest.mark.parametrize("axis", range(3))
def test_f01_every_token_within_a_thick_slice_is_drawn(axis: int) -> None:
    """Of a slice of 12 mm, tokens of 4 mm were found at its faces alone: two of the four that it spans."""
    spacing = np.roll((12.0, 1.0, 1.0), axis)
    region = np.zeros(np.roll((4, 16, 16), axis), dtype=bool)
    place = [slice(4, 8)] * 3
    place[axis] = slice(1, 2)
    region[tuple(place)] = True
    tokens = np.roll((12, 4, 4), axis)
    affine = np.diag([*spacing, 1.0])
    # Voxel 1 reaches from 6 to 18 mm, tokens from -0.5 mm on.
    touched = np.moveaxis(touched_tokens(region, affine, np.eye(4), 4, tokens), axis, 0)
    assert touched.any((1, 2)).nonzero()[0].tolist() == [1, 2, 3, 4]
