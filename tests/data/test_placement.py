"""Placement: onto the grid exactly as in training, and back into the file's own voxels."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9 import volumes
from prod9.data.placement import GridPlacer, PlacedCase, cut, paste
from prod9.data.transforms import Augmentation, IntensityScaling, TransformBuilder
from prod9.errors import DataError

PERCENTILES = IntensityScaling(mode="percentile", lower=0.5, upper=99.5)
NONE = Augmentation(flip_prob=0.0, bias_field_prob=0.0, gamma_prob=0.0, scale_prob=0.0, affine_prob=0.0)
AFFINE = np.array([[0.0, -2.0, 0.0, 20.0], [0.0, 0.0, 3.0, -10.0], [2.5, 0.0, 0.0, 5.0], [0, 0, 0, 1.0]])
"""Axes in another order than RAS, one of them flipped, and voxels of three lengths."""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    paths = {}
    for name, (low, high) in {"T1": (4, 13), "T2": (5, 15)}.items():
        data = np.zeros((16, 19, 22), np.int16)
        data[low:high, 3 : low + 11, 6:17] = rng.integers(1, 900, (high - low, low + 8, 11))
        paths[name] = tmp_path / f"{name}.nii.gz"
        volumes.write(paths[name], data, AFFINE, dtype=np.int16)
    return paths


def place(files: dict[str, Path], intensity: IntensityScaling = PERCENTILES, **kwargs: object) -> PlacedCase:
    placer = GridPlacer(intensity=intensity, **{"spacing": None, "grid": (20, 20, 24), **kwargs})
    return placer.place({name: volumes.read(path) for name, path in files.items()})


@pytest.mark.parametrize("spacing", [None, (2.0, 3.0, 2.0), (4.0, 4.0, 4.0)])
# A head beyond the grid is cut; odd and even sides, since halves round differently.
@pytest.mark.parametrize("grid", [(20, 20, 24), (7, 8, 9), (8, 7, 10)])
@pytest.mark.parametrize("mode", ["percentile", "range"])
def test_placed_exactly_as_in_training(
    files: dict[str, Path], spacing: tuple[float, float, float] | None, grid: tuple[int, int, int], mode: str
) -> None:
    intensity = PERCENTILES if mode == "percentile" else IntensityScaling(mode="range", lower=0, upper=800)
    builder = TransformBuilder(spacing=spacing, grid=grid, crop_size=None, intensity=intensity, augment=NONE)
    paths = {name: str(path) for name, path in files.items()}
    trained_on = builder.build_preprocessing(list(files))({**paths, "label_scheme": "brats2023"})
    placed = place(files, intensity, spacing=spacing, grid=grid)
    for name in files:
        np.testing.assert_allclose(placed.images[name], trained_on[name].numpy()[0], atol=1e-6)
        np.testing.assert_allclose(placed.affine, trained_on[name].affine.numpy(), atol=1e-6)


def test_there_and_back_is_exact_without_resampling(files: dict[str, Path]) -> None:
    placed = place(files)
    for name, path in files.items():
        raw = volumes.read(path).data
        assert np.array_equal(placed.to_file(placed.to_grid(raw)), raw), "the head fits the grid"
        low, high = placed.scales[name]
        back = placed.to_file(placed.images[name]) * (high - low) + low
        inside = (raw > low) & (raw < high)
        np.testing.assert_allclose(back[inside], raw[inside], rtol=1e-5)
        assert back.shape == raw.shape


def test_a_mask_keeps_its_values_and_a_smooth_volume_its_place(tmp_path: Path) -> None:
    data = np.zeros((24, 24, 24), np.float32)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    data[3:-3, 3:-3, 3:-3] = (2 + x + 0.5 * y - 0.3 * z)[3:-3, 3:-3, 3:-3]
    path = tmp_path / "smooth.nii.gz"
    volumes.write(path, data, np.diag([1.0, 1.0, 1.0, 1.0]))
    placed = place({"T1": path}, spacing=(1.5, 1.5, 1.5), grid=(16, 16, 16))
    seg = np.zeros(data.shape)
    seg[8:14, 8:14, 8:14] = 3
    assert set(np.unique(placed.to_grid(seg, "nearest"))) == {0.0, 3.0}
    core = np.s_[6:-6, 6:-6, 6:-6]
    np.testing.assert_allclose(placed.to_file(placed.to_grid(data))[core], data[core], atol=0.02)


def test_files_that_cannot_be_placed_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    volumes.write(other, volumes.read(files["T1"]).data[:-1], AFFINE)
    with pytest.raises(DataError, match=r"other\.nii\.gz: expected the voxel grid of .*T1\.nii\.gz"):
        place({**files, "FLAIR": other})
    for name, value, message in (("empty", 0, "background only"), ("flat", 7, "different intensities")):
        path = tmp_path / f"{name}.nii.gz"
        data = np.zeros((16, 19, 22), np.float32)
        data[4:8, 4:8, 4:8] = value
        volumes.write(path, data, AFFINE)
        with pytest.raises(DataError, match=message):
            place({"T1": path})


def test_geometry_agrees_with_nibabel(files: dict[str, Path]) -> None:
    placed = place(files)
    image = nib.load(files["T1"])
    voxel = np.argwhere(np.asarray(image.dataobj) > 0)[37]
    world = image.affine @ [*voxel, 1.0]
    on_grid = np.rint(np.linalg.inv(placed.affine) @ world)[:3].astype(int)
    low, high = placed.scales["T1"]
    expected = np.clip((image.dataobj[tuple(voxel)] - low) / (high - low), 0, 1)
    assert placed.images["T1"][tuple(on_grid)] == pytest.approx(expected, abs=1e-5)


def test_windows_may_stick_out_or_miss() -> None:
    whole = np.arange(1.0, 28.0).reshape(3, 3, 3)
    assert np.array_equal(
        paste(cut(whole, (-1, 0, 1), (5, 3, 2)), (-1, 0, 1), (3, 3, 3))[..., 1:], whole[..., 1:]
    )
    assert not cut(whole, (7, 0, 0), (2, 3, 3)).any()
    assert not cut(whole, (-9, 0, 0), (2, 3, 3)).any()
