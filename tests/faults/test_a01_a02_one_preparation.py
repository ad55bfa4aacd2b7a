"""A volume is prepared in one way, from its raw voxels, and the way back undoes exactly that."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prod9 import volumes
from prod9.data.cases import Case
from prod9.data.intensity import IntensityScaling
from prod9.data.simulated.cohort import simulate_cohort
from prod9.data.transforms import Augmentation, TransformBuilder
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement
from prod9.pipelines.reconstruction import ReconstructionPipeline
from prod9.types import AutoencoderOutput
from tests.faults.heads import as_file, centred, head, radius
from tests.pipelines.test_inpainting import build as build_inpainting

WHOLE = IntensityScaling("percentile", 0.0, 100.0)
ROBUST = IntensityScaling("percentile", 0.0, 99.5)
SPACINGS = [None, (3.75, 3.75, 3.75), (5.0, 4.0, 4.4), (2.6, 2.6, 2.6)]


class _Identity(nn.Module):
    """Stands in for the inference wrapper of a perfect autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = SimpleNamespace(downsampling_factor=4)

    def forward(self, x: torch.Tensor) -> AutoencoderOutput:
        latent = torch.zeros(1, 3, *(side // 4 for side in x.shape[2:]))
        return AutoencoderOutput(reconstruction=x, latent=latent, z_mu=latent, tokens=latent[:, 0].long())


def grid_for(spacing: tuple[float, float, float] | None) -> tuple[int, int, int]:
    h, w, d = (int(np.ceil(160 / mm / 4)) * 4 for mm in (spacing or (4.0, 4.0, 4.0)))
    return h, w, d


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a1_a_perfect_model_gives_the_intensities_back(spacing: tuple[float, float, float] | None) -> None:
    shape, affine = centred((4.0, 4.0, 4.0))
    raw = head(shape, affine, low=500.0)
    placed = GridPlacement(spacing=spacing, grid=grid_for(spacing), intensity=WHOLE).place(
        {"T1": as_file(raw, affine)}
    )
    back = placed.restore(placed.images["T1"])
    inside = radius(shape, affine) < 0.9
    np.testing.assert_allclose(back[inside], raw[inside], rtol=0.01)
    whole = raw > 0
    assert back[whole].mean() == pytest.approx(raw[whole].mean(), rel=0.01)
    assert not back[~whole].any()


@pytest.mark.parametrize("name", ["t1n", "t1c", "t2w", "t2f"])
def test_a1_brains_come_back_as_bright_as_they_were(brains: Path, name: str) -> None:
    file = volumes.read(next(brains.rglob(f"*-{name}.nii.gz")))
    placed = GridPlacement(spacing=(3.75, 3.75, 3.75), grid=(48, 64, 48), intensity=ROBUST).place(
        {name: file}
    )
    back = placed.restore(placed.images[name])
    raw = np.minimum(file.data, placed.high)
    assert back[placed.head].mean() == pytest.approx(raw[placed.head].mean(), rel=0.01)


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("brains") / "cohort"
    simulate_cohort(root, num_subjects=1, spacing_mm=4.0, seed=5)
    return root


def test_a2_unit_intensities_do_not_depend_on_the_spacing(brains: Path) -> None:
    case = next(path for path in brains.iterdir() if path.is_dir())
    files = {name: volumes.read(case / f"{case.name}-{name}.nii.gz") for name in ("t1n", "t1c", "t2w", "t2f")}
    own = GridPlacement(spacing=None, grid=(48, 64, 48), intensity=ROBUST).place(files)
    for spacing in ((3.75, 3.75, 3.75), (3.0, 3.0, 3.0), (4.2, 4.2, 4.2)):
        other = GridPlacement(spacing=spacing, grid=(64, 80, 64), intensity=ROBUST).place(files)
        for name in files:
            # Means: interpolation averages noise, which moves the median of a skewed histogram by itself.
            means = [placed.images[name][placed.inside].mean() for placed in (own, other)]
            assert means[1] == pytest.approx(means[0], rel=0.02), (name, spacing)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (3.0, 3.0, 4.5), (4.0, 4.0, 4.0), (4.5, 4.5, 4.5)])
def test_a2_medians_do_not_depend_on_the_voxels_of_the_file(spacing: tuple[float, float, float]) -> None:
    where = GridPlacement(spacing=(3.75, 3.75, 3.75), grid=(48, 52, 40), intensity=ROBUST)
    medians = []
    for voxels in ((3.75, 3.75, 3.75), spacing):
        shape, affine = centred(voxels)
        placed = where.place({"T1": as_file(head(shape, affine), affine)})
        medians.append(np.median(placed.images["T1"][placed.inside]))
    assert medians[1] == pytest.approx(medians[0], rel=0.02)


def test_a2_resampled_sources_keep_their_own_bounds() -> None:
    coarse, fine = centred((4.0, 4.0, 4.0)), centred((2.0, 2.0, 2.0))
    files = {
        "T1": as_file(head(*coarse), coarse[1]),
        "T2": as_file(head(*fine, low=50.0, high=90.0), fine[1], "T2.nii"),
    }
    where = GridPlacement(spacing=None, grid=(40, 48, 36), intensity=WHOLE)
    placed = where.place(files, resample=True)
    both = placed.images["T1"][placed.inside], placed.images["T2"][placed.inside]
    assert np.abs(both[0] - both[1]).mean() < 0.02
    with pytest.raises(DataError, match=r"T2\.nii.*--resample"):
        where.place(files)


@settings(max_examples=25, deadline=None)
@given(
    spacing=st.tuples(*[st.sampled_from([3.0, 4.0, 5.0])] * 3),
    target=st.sampled_from([None, (3.75, 3.75, 3.75), (5.0, 5.0, 5.0)]),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    background=st.sampled_from([0.0, -4.2, -1024.0, 7.0]),
    dtype=st.sampled_from([np.int16, np.uint8, np.float32, np.float64]),
)
def test_a1_round_trip_of_any_file(
    tmp_path_factory: pytest.TempPathFactory,
    spacing: tuple[float, ...],
    target: tuple[float, float, float] | None,
    order: list[int],
    flips: tuple[bool, ...],
    background: float,
    dtype: type,
) -> None:
    """For any spacing, orientation, data type, slope and background: equal inside of the head within 1%."""
    shape, affine = centred(spacing)
    raw, inside = head(shape, affine, low=500.0), radius(shape, affine) < 0.9
    raw = np.where(raw > 0, raw, background)
    permute = np.zeros((4, 4))
    permute[3, 3] = 1
    for new, old in enumerate(order):
        permute[old, new] = -1 if flips[old] else 1
        permute[old, 3] += (shape[old] - 1) if flips[old] else 0
    turn = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    stored, inside = (volume[turn].transpose(order) for volume in (raw, inside))
    path = tmp_path_factory.mktemp("volume") / "volume.nii.gz"
    image = nib.Nifti1Image(np.asarray(stored, dtype=np.float64), affine @ permute)
    image.set_data_dtype(dtype)  # nibabel finds slope and intercept for whole numbers
    nib.save(image, path)

    pipeline = ReconstructionPipeline(
        autoencoder=_Identity(), spacing=target, grid=(16, 16, 16), intensity=WHOLE
    )
    result = pipeline.reconstruct(path)
    file = volumes.read(path)
    step = (file.data.max() - file.data.min()) / 255 if dtype is np.uint8 else 0.0
    np.testing.assert_allclose(result.data[inside], file.data[inside], rtol=0.01, atol=step)
    outside = ~IntensityScaling("percentile", 0.0, 100.0).head(file.data)
    np.testing.assert_array_equal(result.data[outside], file.data[outside])
    assert outside.mean() > 0.3
    assert result.psnr > 60


def test_a2_files_on_the_grid_of_the_model_are_not_resampled(tmp_path: Path) -> None:
    """What the demo's packaged models saw is what they see: a closed form, voxel by voxel."""
    simulate_cohort(tmp_path / "cohort", num_subjects=1, spacing_mm=3.75, seed=1)
    case = next(path for path in (tmp_path / "cohort").iterdir() if path.is_dir())
    paths = {
        name: case / f"{case.name}-{suffix}.nii.gz" for name, suffix in (("T1", "t1n"), ("FLAIR", "t2f"))
    }
    off = dict.fromkeys(("flip_prob", "bias_field_prob", "gamma_prob", "scale_prob", "affine_prob"), 0.0)
    builder = TransformBuilder(
        spacing=(3.75, 3.75, 3.75),
        grid=(48, 64, 48),
        crop_size=None,
        intensity=ROBUST,
        augment=Augmentation(**off),
    )
    scan = Case("a", "a", images=paths, seg=None, layout="brats2023", label_scheme="brats2023")
    result = builder.build_preprocessing(list(paths)).place(scan).images
    raws = {name: nib.as_closest_canonical(nib.load(path)).get_fdata() for name, path in paths.items()}
    union = np.argwhere(np.any([raw != 0 for raw in raws.values()], axis=0))
    corner, sides = union.min(0), np.ptp(union, axis=0) + 1
    before = (np.array([48, 64, 48]) - sides) // 2
    place = tuple(slice(b, b + s) for b, s in zip(before, sides, strict=True))
    box = tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))
    for name, raw in raws.items():
        expected = np.zeros((48, 64, 48))
        low, high = np.percentile(raw[raw != 0], (0.0, 99.5))
        expected[place] = np.where(raw != 0, np.clip((raw - low) / (high - low), 0, 1), 0)[box]
        np.testing.assert_allclose(result[name], expected, atol=1e-6)


@pytest.mark.parametrize("spacing", [None, (3.75, 3.75, 3.75), (5.0, 5.0, 5.0)])
@pytest.mark.parametrize("background", [0.0, -4.2])
def test_a1_a_perfect_decoder_paints_as_bright_as_its_surroundings(
    spacing: tuple[float, float, float] | None, background: float
) -> None:
    """Inpainting: a constant head is drawn anew as it was, in the middle and at the border of the head."""
    shape, affine = centred((4.0, 4.0, 4.0))
    r = radius(shape, affine)
    texture = 600 + 20 * np.cos(np.arange(shape[0]) / 4)[:, None, None]
    source = as_file(np.where(r < 1, texture, background), affine)
    region = np.zeros(shape, np.float32)
    region[10:18, 14:22, 14:22] = 1
    region[2:12, 20:25, 15:20] = 1  # reaches beyond the head
    where = GridPlacement(spacing=spacing, grid=(48, 56, 48), intensity=WHOLE)
    pipeline = build_inpainting(blend=0.0)
    pipeline.generator.placement, pipeline.generator.grid = where, where.grid
    pipeline.generator.token_grid = (24, 28, 24)
    truth = where.place({"T1": source}).images["T1"]
    pipeline.generator.decode_tokens = lambda _: truth  # type: ignore[method-assign]
    (drawn,) = pipeline.inpaint(source, as_file(region, affine, "region.nii.gz"), "T1")
    inside = (region != 0) & (r < 0.9)
    assert drawn.data[inside].mean() == pytest.approx(source.data[inside].mean(), rel=0.01)
    np.testing.assert_allclose(drawn.data[inside], source.data[inside], rtol=0.03)
    outside = (region != 0) & (r > 1.1)
    np.testing.assert_allclose(drawn.data[outside], background)
