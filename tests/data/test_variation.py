"""Masks made from given ones: in the brain, of the same labels, nested alike, and no copies."""

import numpy as np
import pytest
import scipy.ndimage as ndi

from prod9.data.lesions import Lesion
from prod9.data.variation import vary
from prod9.errors import DataError

SIDE = 40


def lesion(radius: float = 5.0, place: tuple[int, int, int] = (14, 20, 22)) -> Lesion:
    """A round brain with a lesion of three shells, off the middle."""
    axes = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1).astype(float)
    brain = ((axes - 19.5) ** 2).sum(-1) < 17**2
    distance = np.sqrt(((axes - place) ** 2).sum(-1))
    labels = np.select([distance < radius / 3, distance < radius / 2, distance < radius], [1, 3, 2], 0)
    return Lesion(labels.astype(np.uint8), brain, np.diag([4.0, 4.0, 4.0, 1.0]))


def test_what_comes_out_is_a_lesion_in_the_brain_and_no_copy() -> None:
    given = lesion()
    sides, volumes = [], []
    for seed in range(12):
        labels, done = vary(given, np.random.default_rng(seed))
        assert not labels[~given.brain].any()
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        whole, before = labels > 0, given.labels > 0
        assert 2 * (whole & before).sum() / (whole.sum() + before.sum()) < 0.9
        # A smooth change keeps the shells: what touches the background is oedema, except where the brain cuts it.
        rim = whole & ~ndi.binary_erosion(whole) & ndi.binary_erosion(given.brain)
        assert (labels[rim] == 2).mean() > 0.95
        assert done.volume_ml == pytest.approx(whole.sum() * 0.064)
        assert whole.sum() == pytest.approx(before.sum() * done.scale**3, rel=0.4)
        sides.append(ndi.center_of_mass(whole)[0] < 19.5)
        volumes.append(done.volume_ml)
    assert 0 < sum(sides) < 12  # on either side
    assert np.std(volumes) / np.mean(volumes) > 0.2


def test_equal_seeds_give_equal_masks_and_others_do_not() -> None:
    given = lesion()
    first, again, other = (vary(given, np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_cannot_be_varied_is_refused() -> None:
    given = lesion()
    with pytest.raises(DataError, match="empty"):
        vary(Lesion(np.zeros_like(given.labels), given.brain, given.affine), np.random.default_rng(0))
    with pytest.raises(DataError, match="within the brain"):
        vary(Lesion(given.labels, ~given.brain, given.affine), np.random.default_rng(0))


def test_the_box_of_the_brain_keeps_places() -> None:
    given = lesion()
    small = given.cropped()
    assert small.brain.any(axis=(1, 2)).all()
    for one in (given, small):
        centre = one.affine[:3] @ [*ndi.center_of_mass(one.labels > 0), 1]
        np.testing.assert_allclose(centre, [56, 80, 88], atol=1e-6)
