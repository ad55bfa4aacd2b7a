"""The parts of a simulated patient: template, deformation, tissue, tumour."""

import numpy as np
import pytest

from prod9.data.simulated.anatomy import Grid, Tissue, deform, sample, sample_tissue
from prod9.data.simulated.glioma import ENHANCING, NECROSIS, OEDEMA, Glioma, Shares
from prod9.data.simulated.phantom import grey_matter, make_phantom
from prod9.data.simulated.template import load_template


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid(6.0)


@pytest.fixture(scope="module")
def position(grid: Grid) -> np.ndarray:
    return deform(grid, np.random.default_rng(1))


@pytest.fixture(scope="module")
def tissue(grid: Grid, position: np.ndarray) -> Tissue:
    return sample_tissue(grid, position, np.random.default_rng(2))


@pytest.mark.parametrize(
    ("place", "name", "low", "high"),
    [
        ((26, -10, 34), "white", 0.9, 1.0),  # corona radiata
        ((12, 10, 10), "grey", 0.6, 1.0),  # head of the caudate
        ((0, -18, 5), "mask", 0.9, 1.0),
        ((0, 90, 5), "mask", 0.0, 0.0),
        ((0, -30, -85), "mask", 0.0, 0.01),  # below where the template ends in the brain stem
        ((8, -2, 19), "ventricles", 0.5, 9.0),  # body of the lateral ventricle
        ((26, -10, 34), "ventricles", -99.0, -5.0),
        ((30, 40, 62), "depth", -40.0, 0.0),
    ],
)
def test_the_template_is_where_anatomy_says(
    place: tuple[int, ...], name: str, low: float, high: float
) -> None:
    template = load_template()
    value = sample(template, getattr(template, name), np.array(place, dtype=np.float32)[:, None])
    assert low <= value[0] <= high


def test_noise_is_smooth_and_standard(grid: Grid) -> None:
    noise = grid.smooth_noise(40, np.random.default_rng(0))
    assert noise.shape == grid.shape
    assert noise.mean() == pytest.approx(0, abs=1e-4)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(noise, axis=0)).max() < 0.8


def test_the_grid_does_not_move_with_the_spacing() -> None:
    for spacing in (3.0, 4.0, 6.0):
        grid = Grid(spacing)
        middle = grid.affine @ (*[(n - 1) / 2 for n in grid.shape], 1)
        np.testing.assert_allclose(middle[:3], (0, -18, 5))


def test_tissue_adds_up(tissue: Tissue) -> None:
    np.testing.assert_allclose(tissue.white + tissue.grey + tissue.fluid, 1, atol=1e-5)
    assert tissue.white.size == tissue.mask.sum()
    for share in (tissue.white, tissue.grey, tissue.fluid, tissue.ventricles):
        assert share.dtype == np.float32
        assert 0 <= share.min() <= share.max() <= 1 + 1e-6


def test_a_glioma_pushes_outward_and_folds_nothing(grid: Grid, position: np.ndarray) -> None:
    glioma = Glioma.draw(position, np.random.default_rng(0))
    pushed = glioma.displace(position)

    def distance(points: np.ndarray) -> np.ndarray:
        return np.sqrt(((points - glioma.centre[:, None, None, None]) ** 2).sum(0)).ravel()

    before, after = distance(position), distance(pushed)
    assert (after <= before + 1e-3).all()  # each voxel shows what was nearer the centre
    assert (before - after).max() > 1
    order = np.argsort(before)
    assert (np.diff(after[order]) > -1e-2).all()
    far = before > 4 * glioma.radius
    np.testing.assert_allclose(after[far], before[far], atol=0.05)


@pytest.mark.parametrize("necrosis", [0.6, 1.5])
def test_compartments(grid: Grid, position: np.ndarray, tissue: Tissue, necrosis: float) -> None:
    drawn = Glioma.draw(position, np.random.default_rng(3))
    glioma = Glioma(drawn.centre, radius=18.0, reach=2.0, necrosis=necrosis, push=0.2)
    shares = glioma.shares(grid, tissue, np.random.default_rng(0))
    total = shares.necrosis + shares.enhancing + shares.oedema
    assert min(share.min() for share in (shares.necrosis, shares.enhancing, shares.oedema)) >= 0
    assert total.max() <= 1 + 1e-5
    labels = shares.labels()
    assert (labels == NECROSIS).any()
    assert (labels == OEDEMA).any()
    assert (labels == ENHANCING).any() == (necrosis < 1)  # above 1 nothing enhances
    assert tissue.white[labels == OEDEMA].mean() > tissue.white.mean()  # oedema keeps to white matter


def test_labels_take_what_fills_most_of_a_voxel() -> None:
    shares = Shares(
        necrosis=np.array([0.0, 0.6, 0.3, 0.1, 0.2]),
        enhancing=np.array([0.0, 0.3, 0.4, 0.1, 0.1]),
        oedema=np.array([0.4, 0.1, 0.3, 0.6, 0.1]),
    )
    assert shares.labels().tolist() == [0, NECROSIS, ENHANCING, OEDEMA, 0]


@pytest.mark.parametrize("with_tumour", [False, True])
def test_grey_matter_is_that_of_the_patient(with_tumour: bool) -> None:
    def recipe() -> dict:
        return {"spacing_mm": 8.0, "with_tumour": with_tumour, "rng": np.random.default_rng(7)}

    phantom = make_phantom(**recipe())
    np.testing.assert_array_equal(phantom.grey, grey_matter(**recipe()))
    assert phantom.seg.any() == with_tumour
    assert (phantom.tumour_ml > 0) == with_tumour
