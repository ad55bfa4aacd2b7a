"""How lesion masks compare with those of training patients: volume, pieces, place, and copies.

Every distance stands beside its floor: the same distance between training patients, divided at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
from scipy.stats import wasserstein_distance

from prod9.data.lesions import Lesion, LesionFile
from prod9.errors import DataError
from prod9.system.progress import Progress

Array = np.ndarray
COPY = 0.9
"""Dice from which a mask is a copy of a training mask, both in the box of their brains."""
MEASURES = {
    "volume": "volume: mean difference of the logarithms (0.1 is 10%)",
    "pieces": "pieces of 0.1 ml and more: mean difference",
    "place": "centre in the brain's box: energy distance",
}
_SIDE = 32
_SMALLEST_ML = 0.1
_FEWEST = 4


@dataclass(frozen=True, eq=False)
class Described:
    """One mask. ml: its volume. pieces: connected parts. place: centre in the box of the brain, 0 to 1, RAS.

    shape: bool ``[32 32 32]``, the mask in that box.
    """

    name: str
    patient: str
    ml: float
    pieces: int
    place: Array
    shape: Array


@dataclass(frozen=True)
class Score:
    """One distance. floor: median of training patients among each other. high: 95th percentile of the same."""

    measure: str
    value: float
    floor: float
    high: float

    @property
    def ratio(self) -> float:
        """``value`` over ``floor``."""
        return self.value / max(self.floor, 1e-9)


@dataclass(frozen=True)
class MaskScores:
    """What :func:`compare_masks` found.

    Attributes:
        num_masks: masks with a lesion.
        num_training: training masks with a lesion.
        empty: names of masks without one.
        matched: masks on each side of a floor.
        scores: one for each of ``MEASURES``.
        nearest: per mask, the training mask that overlaps most and its Dice.
    """

    num_masks: int
    num_training: int
    empty: tuple[str, ...]
    matched: int
    scores: tuple[Score, ...]
    nearest: dict[str, tuple[str, float]]

    @property
    def copies(self) -> dict[str, tuple[str, float]]:
        """The masks that are copies."""
        return {name: found for name, found in self.nearest.items() if found[1] >= COPY}


def describe(name: str, patient: str, lesion: Lesion) -> Described | None:
    """Measure one mask; None for an empty one."""
    if not lesion.labels.any():
        return None
    boxed = lesion.cropped()
    whole = boxed.labels > 0
    if not whole.any():
        raise DataError(
            f"{name}: expected a lesion in the brain, got all of it outside; check that they belong together."
        )
    pieces = np.zeros(whole.shape, np.int32)
    ndi.label(whole, np.ones((3, 3, 3)), output=pieces)
    voxel_ml = float(np.prod(lesion.spacing)) / 1000
    sizes = np.bincount(pieces.ravel())[1:] * voxel_ml
    centre = (np.asarray(ndi.center_of_mass(whole)) + 0.5) / whole.shape
    steps = [
        np.minimum((np.arange(_SIDE) + 0.5) / _SIDE * side, side - 1).astype(int) for side in whole.shape
    ]
    return Described(
        name, patient, lesion.ml, max(1, int((sizes >= _SMALLEST_ML).sum())), centre, whole[np.ix_(*steps)]
    )


def compare_masks(
    masks: Sequence[LesionFile],
    training: Sequence[LesionFile],
    *,
    replicates: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> MaskScores:
    """Compare ``masks`` with the segmentations of training patients.

    Args:
        masks: what was made.
        training: with their scans, to know the brain.
        replicates: random divisions of the training patients that a floor is the median of.
        seed: of those.
        progress: called with the files (done, total).

    Raises:
        DataError: for fewer than 4 masks with a lesion on either side, and for files that cannot be used.
    """
    total = len(masks) + len(training)
    described: list[Described | None] = []
    for done, file in enumerate([*masks, *training], start=1):
        described.append(describe(str(file.path), file.patient, file.load()))
        if progress is not None:
            progress(done, total)
    made, known = (
        [one for one in part if one is not None]
        for part in (described[: len(masks)], described[len(masks) :])
    )
    for what, part in (("masks", made), ("training masks", known)):
        if len(part) < _FEWEST:
            raise DataError(f"{what}: expected at least {_FEWEST} with a lesion, got {len(part)}; give more.")
    rng = np.random.default_rng(seed)
    values = _distances(made, known)
    halves = [_halves(known, len(made), rng) for _ in range(replicates)]
    floors = np.asarray([_distances(first, second) for first, second in halves])
    scores = [
        Score(name, value, float(np.median(floor)), float(np.percentile(floor, 95)))
        for name, value, floor in zip(MEASURES, values, floors.T, strict=True)
    ]
    empty = tuple(str(file.path) for file, one in zip(masks, described, strict=False) if one is None)
    return MaskScores(len(made), len(known), empty, len(halves[0][0]), tuple(scores), nearest(made, known))


def _halves(
    known: Sequence[Described], size: int, rng: np.random.Generator
) -> tuple[list[Described], list[Described]]:
    """Return two sets of different patients, the first about as large as ``size`` if half of them allow it."""
    patients = rng.permutation(sorted({one.patient for one in known}))
    first = set(patients[: max(1, min(size, len(patients) // 2))])
    return [one for one in known if one.patient in first], [one for one in known if one.patient not in first]


def _distances(first: Sequence[Described], second: Sequence[Described]) -> list[float]:
    """Return one distance for each of ``MEASURES``."""
    volumes, pieces = (
        [[float(value(one)) for one in part] for part in (first, second)]
        for value in (lambda one: np.log(one.ml), lambda one: one.pieces)
    )
    places = [np.stack([one.place for one in part]) for part in (first, second)]
    return [wasserstein_distance(*volumes), wasserstein_distance(*pieces), _energy(*places)]


def _energy(first: Array, second: Array) -> float:
    """Return the energy distance of two sets of points ``[N 3]``: 0 for equal distributions.

    G. J. Székely and M. L. Rizzo, "Energy statistics", Journal of Statistical Planning and Inference 143 (8), 2013.
    """

    def mean(a: Array, b: Array) -> float:
        return float(np.linalg.norm(a[:, None] - b[None], axis=-1).mean())

    return float(np.sqrt(max(0.0, 2 * mean(first, second) - mean(first, first) - mean(second, second))))


def nearest(made: Sequence[Described], known: Sequence[Described]) -> dict[str, tuple[str, float]]:
    """Return for each mask the name of the known mask, or mirror image of one, that overlaps most, and the Dice."""
    there = np.stack([one.shape.ravel() for one in known]).astype(np.float32)
    sizes, found = there.sum(1), {}
    for one in made:
        # A mirrored copy is a copy as well.
        copies = [shape.ravel().astype(np.float32) for shape in (one.shape, one.shape[::-1])]
        dice = np.max([2 * (there @ copy) / np.maximum(sizes + copy.sum(), 1) for copy in copies], axis=0)
        place = int(dice.argmax())
        found[one.name] = (known[place].name, round(float(dice[place]), 4))
    return found
