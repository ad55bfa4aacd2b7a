"""The unit of a file is read, and a volume that no patient fits is refused before a voxel is."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_shape_offset

from prod9 import volumes
from prod9.errors import DataError
from tests.harness import Workspace, run
from tests.nifti_files import write_raw

SHAPE = (16, 16, 16)
DATA = np.random.default_rng(0).integers(1, 500, SHAPE).astype(np.int16)


def scan(
    path: Path, size: float | tuple[float, float, float], unit: int, data: np.ndarray = DATA, **fields: object
) -> Path:
    sizes = np.broadcast_to(size, 3)
    return write_raw(
        path, data, sform=np.diag([*sizes, 1.0]), qform=np.diag([*sizes, 1.0]), xyzt_units=unit, **fields
    )


def refusal(path: Path) -> str:
    for read in (volumes.read_header, volumes.read):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: expected")
    return str(caught.value)


@pytest.mark.parametrize(
    ("unit", "size"), [(0, 4.0), (2, 4.0), (3, 4000.0), (1, 0.004), (1 + 8, 0.004), (3 + 16, 4000.0)]
)
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (0, 0)])
def test_a18_spacing_and_affine_are_in_millimetres(
    tmp_path: Path, unit: int, size: float, codes: tuple[int, int]
) -> None:
    path = scan(tmp_path / "a.nii.gz", size, unit, qform_code=codes[0], sform_code=codes[1])
    header = volumes.read_header(path)
    np.testing.assert_allclose(header.spacing, 4.0, rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.diag(header.affine)), (4, 4, 4, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("unit", "size", "texts"),
    [
        (3, 4.0, ["0.064×0.064×0.064 mm", "micrometres"]),
        (1, 4.0, ["6.4e+04", "metres"]),
        (2, 4000.0, ["6.4e+04", "millimetres"]),
        (0, 225.0, ["3600×3600×3600 mm", "unit unknown"]),
        (2, 0.5, ["8×8×8 mm"]),
        (2, (1.0, 1.0, 63.0), ["1008 mm"]),
        (2, (63.0, 1.0, 1.0), ["1008×16×16 mm"]),
        (2, (4.0, 4.0, 0.004), ["64×64×0.064 mm"]),
        (2, 1e19, []),
        (2, 1e-30, []),
    ],
)
def test_a18_what_no_patient_fits_is_refused(
    tmp_path: Path, unit: int, size: float | tuple[float, float, float], texts: list[str]
) -> None:
    message = refusal(scan(tmp_path / "a.nii.gz", size, unit))
    for text in texts:
        assert text in message


def test_a18_the_limits_themselves_are_accepted(tmp_path: Path) -> None:
    for size in (10 / 16, 1000 / 16):
        assert volumes.read(scan(tmp_path / "a.nii", size, 2)).data.shape == SHAPE
    slab = np.ones((16, 16, 1), np.int16)
    assert volumes.read(scan(tmp_path / "slice.nii", 4.0, 2, slab)).data.shape == (16, 16, 1)


@given(st.tuples(*[st.floats(0.3, 60.0)] * 3), st.tuples(*[st.floats(0.05, 50.0)] * 3), st.integers(1, 10**6))
def test_a18_the_size_after_resampling_is_bounded(
    spacing: tuple[float, float, float], target: tuple[float, float, float], limit: int
) -> None:
    try:
        shape = volumes.resampled_shape(SHAPE, spacing, target, path=Path("a.nii"), max_voxels=limit)
    except DataError as error:
        message = str(error)
        assert message.startswith("a.nii: expected at most")
        assert math.prod(math.ceil(n * s / t) for n, s, t in zip(SHAPE, spacing, target, strict=True)) > limit
    else:
        assert math.prod(shape) <= limit
        real = compute_shape_offset(SHAPE, np.diag([*spacing, 1.0]), np.diag([*target, 1.0]))[0]
        assert np.all(real <= np.asarray(shape) + 1)


def test_a18_petabytes_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"a\.nii: expected at most .* after resampling to 0\.01×0\.01×0\.01 mm"
    ):
        volumes.resampled_shape(SHAPE, (60, 60, 60), (0.01, 0.01, 0.01), path=Path("a.nii"))
    assert volumes.resampled_shape(SHAPE, (1, 1, 2), (1, 2, 1), path=Path("a.nii")) == (16, 8, 32)


@pytest.mark.parametrize("unit", [3, 1])
def test_a18_commands_name_the_file(workspace: Workspace, tmp_path: Path, unit: int) -> None:
    path = scan(tmp_path / "odd.nii.gz", 4.0, unit)
    ran = run("prod9-train-autoencoder", "infer", path, "--model", workspace.run1, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "odd.nii.gz: expected a volume of 1 cm to 1 m" in " ".join(ran.err.split())
    assert not list((tmp_path / "out").glob("*.nii.gz"))
