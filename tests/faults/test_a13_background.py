"""What lies around the head is found whatever its value, in one place for every command."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prod9.data.checking.report import check_dataset
from prod9.data.intensity import IntensityScaling, find_background
from prod9.data.simulated.cohort import simulate_cohort
from prod9.errors import DataError
from prod9.pipelines.placement import GridPlacement
from prod9.volumes import read, write
from tests.faults.heads import as_file, centred, head

ROBUST = IntensityScaling("percentile", 0.0, 99.5)
SHAPE, AFFINE = centred((5.0, 5.0, 5.0))
RAW = head(SHAPE, AFFINE)
HEAD = RAW > 0
NOISE = np.random.default_rng(0)


@settings(max_examples=50, deadline=None)
@given(
    value=st.floats(-2000, 2000, width=32), jitter=st.sampled_from([0.0, 1e-7]), scale=st.floats(0.01, 100)
)
def test_a13_any_value_around_the_head_is_background(value: float, jitter: float, scale: float) -> None:
    raw = np.where(HEAD, RAW * np.float32(scale), np.float32(value))
    raw = (raw * (1 + jitter * NOISE.uniform(-1, 1, SHAPE))).astype(np.float32)
    found = ROBUST.head(raw)
    agree = found == HEAD
    # A voxel of the head may have the very value of the background.
    assert agree[~HEAD].all()
    assert agree[HEAD].mean() > 0.97


@pytest.mark.parametrize("background", [0.0, -4.2, -0.731, 12.0])
def test_a13_the_unit_intensities_do_not_depend_on_the_background(background: float) -> None:
    """A z-scored head is the head itself: scaling and background cancel out."""
    where = GridPlacement(spacing=(4.0, 4.0, 4.0), grid=(48, 48, 48), intensity=ROBUST)
    plain = where.place({"T1": as_file(RAW, AFFINE)})
    scored = np.where(HEAD, (RAW - RAW[HEAD].mean()) / RAW[HEAD].std(), background)
    placed = where.place({"T1": as_file(scored, AFFINE)})
    np.testing.assert_array_equal(placed.inside, plain.inside)
    np.testing.assert_allclose(placed.images["T1"], plain.images["T1"], atol=1e-4)


def test_a13_padding_around_the_background_is_background_too() -> None:
    scored = np.where(HEAD, RAW / 100, -4.2)
    padded = np.pad(scored, 4)
    found = find_background(padded.astype(np.float32))
    assert set(np.round(found.values, 3)) == {0.0, -4.2}
    np.testing.assert_array_equal(
        found.covers(padded.astype(np.float32)), np.pad(~HEAD, 4, constant_values=True)
    )


def test_a13_noise_and_tissue_are_no_background() -> None:
    """Unstripped scans keep the rule of exact zeros; so do heads that fill their box."""
    noisy = np.where(HEAD, RAW, NOISE.rayleigh(3.0, SHAPE).round()).astype(np.float32)
    assert find_background(noisy).values == (0.0,)
    patch = RAW[12:18, 14:20, 10:16]
    assert find_background(patch).values == (0.0,)
    assert ROBUST.head(patch).all()


def test_a13_water_is_no_background() -> None:
    """In a CT the air is around -1000 with noise, and every 40th voxel of soft tissue is exactly 0."""
    air = NOISE.normal(-1000, 15, SHAPE)
    scan = np.where(HEAD, NOISE.normal(5, 15, SHAPE), air).round().astype(np.float32)
    assert ((scan == 0) & HEAD).sum() > 100
    assert find_background(scan).values == ()
    assert ROBUST.head(scan).all()
    unit = ROBUST.scale(scan, "scan").to_unit(scan)
    assert unit[HEAD].min() > 0.9
    padded = np.where(HEAD, scan, -1024).astype(np.float32)
    np.testing.assert_array_equal(ROBUST.head(padded), HEAD)
    few = np.where(HEAD, RAW, NOISE.rayleigh(3.0, SHAPE).round()).astype(np.float32)
    few[0, 0, 0] = -1  # an undershoot of resampling
    assert find_background(few).values == (0.0,)


@pytest.mark.parametrize("fill", [0.0, 5.0])
def test_a13_volumes_without_a_head_are_refused(fill: float) -> None:
    where = GridPlacement(spacing=None, grid=(32, 40, 32), intensity=ROBUST)
    with pytest.raises(DataError, match=r"scan\.nii\.gz: expected"):
        where.place({"T1": as_file(np.full(SHAPE, fill), AFFINE, "scan.nii.gz")})


def test_a13_what_is_restored_has_the_background_of_the_file() -> None:
    scored = np.where(HEAD, RAW / 100 - 5, -4.2).astype(np.float32)
    for spacing in (None, (3.75, 3.75, 3.75)):
        placed = GridPlacement(spacing=spacing, grid=(64, 64, 64), intensity=ROBUST).place(
            {"T1": as_file(scored, AFFINE)}
        )
        back = placed.restore(placed.images["T1"])
        assert (back[~placed.head] == np.float32(-4.2)).all()
        assert not placed.restore(placed.images["T1"], difference=True)[~placed.head].any()


def test_a13_it_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    where = GridPlacement(spacing=None, grid=(32, 40, 32), intensity=ROBUST)
    scored = np.where(HEAD, RAW / 100, -4.2)
    with caplog.at_level(logging.WARNING, logger="prod9"):
        for name in ("a.nii.gz", "b.nii.gz"):
            where.place({"T1": as_file(scored, AFFINE, name), "T2": as_file(scored, AFFINE, f"t2_{name}")})
    assert len(caplog.records) == 1
    assert "a.nii.gz: the background is -4.2" in caplog.text


def test_a13_the_deep_check_names_it_once_and_advises_nothing(tmp_path: Path) -> None:
    simulate_cohort(tmp_path / "cohort", num_subjects=2, spacing_mm=8.0, seed=2)
    for path in (tmp_path / "cohort").rglob("*.nii.gz"):
        if not path.name.endswith("seg.nii.gz"):
            file = read(path)
            write(path, np.where(file.data != 0, file.data / 100 - 3, -4.2), file.header.affine)
    report = check_dataset(tmp_path / "cohort", deep=True)
    notes = [finding for finding in report.findings if finding.code == "background"]
    assert [finding.level for finding in notes] == ["note"]
    assert "8 of 8 volumes" in notes[0].message
    assert "-4.2" in notes[0].message
    assert all(0.1 < stats.foreground < 0.8 for case in report.voxels for stats in case.images.values())
