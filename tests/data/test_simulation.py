"""The simulated cohort: the folder it writes, what can go wrong with it, and that its patients differ."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage as ndi

from prod9 import volumes
from prod9.data.covariates import CovariateCoder
from prod9.data.layouts.find import MODALITIES, find_cases
from prod9.data.simulated import cohort as simulation
from prod9.data.simulated import template
from prod9.data.simulated.cohort import SimulatedCohort, has_tumour, simulate_cohort
from prod9.errors import ConfigError, DataError, MissingDependencyError

COARSE = 8.0


def contents(root: Path) -> dict[str, np.ndarray]:
    return {path.name: volumes.read(path).data for path in sorted(root.glob("*/*.nii.gz"))}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> SimulatedCohort:
    return simulate_cohort(tmp_path_factory.mktemp("cohort"), num_subjects=6, spacing_mm=6.0, seed=3)


# ---- the folder ----


def test_it_is_read_as_brats_2023(cohort: SimulatedCohort) -> None:
    cases = find_cases(cohort.root, require_seg=True)
    assert [case.case_id for case in cases] == [f"BraTS-GLI-{k:05d}-000" for k in range(6)]
    assert {case.label_scheme for case in cases} == {"brats2023"}
    assert len({case.patient_id for case in cases}) == 6


def test_scans_of_a_case_lie_on_one_grid(cohort: SimulatedCohort) -> None:
    for case in find_cases(cohort.root, require_seg=True):
        files = [volumes.read(path) for path in (*case.images.values(), case.seg) if path]
        header = files[0].header
        assert header.orientation == "LPS"
        np.testing.assert_allclose(header.spacing, 6.0, rtol=1e-6)
        for file in files:
            np.testing.assert_allclose(file.header.affine, header.affine)
            assert file.header.shape == header.shape
        assert {file.header.dtype.name for file in files[:-1]} == {"int16"}


def test_only_the_brain_is_above_zero_and_the_scan_holds_all_of_it(cohort: SimulatedCohort) -> None:
    for case in find_cases(cohort.root, require_seg=True):
        brains = [volumes.read(case.images[name]).data > 0 for name in MODALITIES]
        assert all((brain == brains[0]).all() for brain in brains)
        assert 800 < brains[0].sum() * 6**3 / 1000 < 2400  # ml
        for axis in range(3):
            assert not brains[0].take([0, -1], axis).any()
        assert not volumes.read(case.seg).data[~brains[0]].any()


def test_left_is_where_the_affine_says(cohort: SimulatedCohort) -> None:
    """The middle of the brain is near the template's, so that the affine is no accident."""
    case = find_cases(cohort.root)[0]
    file = volumes.read(case.images["T1"])
    middle = (file.header.affine @ (*np.argwhere(file.data > 0).mean(0), 1))[:3]
    np.testing.assert_allclose(middle, (0, -18, 5), atol=15)


def test_manifest_and_card(cohort: SimulatedCohort) -> None:
    manifest = json.loads((cohort.root / "manifest.json").read_text())
    assert (manifest["seed"], manifest["spacing_mm"], manifest["version"]) == (3, 6.0, simulation.VERSION)
    assert manifest["figures"] == cohort.figures
    assert [subject["index"] for subject in manifest["subjects"]] == list(range(6))
    coder = CovariateCoder(numbers={"tumour_ml": (0, 400), "ventricle_ml": (0, 200)}, categories={})
    known = coder.read(cohort.root / "patients.csv")
    assert set(known) == {subject.case_id for subject in cohort.subjects}
    first = cohort.subjects[0]
    assert abs(known[first.case_id][1, 1].item() - (first.ventricle_ml / 100 - 1)) < 1e-4
    card = (cohort.root / "CARD.md").read_text()
    assert "SYNTHETIC" in card
    assert str(cohort.figures["grey_dice_median"]) in card
    notice = " ".join(simulation.MNI_NOTICE.split())
    for text in (card, (Path(__file__).parents[2] / "NOTICE").read_text()):
        assert notice in " ".join(text.split())


def test_the_record_is_what_the_files_hold(cohort: SimulatedCohort) -> None:
    for subject, case in zip(cohort.subjects, find_cases(cohort.root, require_seg=True), strict=True):
        seg = volumes.read(case.seg).data
        assert subject.tumour_ml == pytest.approx((seg > 0).sum() * 6**3 / 1000, abs=0.01)
        assert (subject.tumour_ml > 0) == has_tumour(subject.index, seed=3)
        assert set(np.unique(seg)) <= {0, 1, 2, 3}


# ---- what the scans look like ----


def mean_where(data: np.ndarray, where: np.ndarray) -> float:
    return float(data[where].mean())


def test_contrasts(cohort: SimulatedCohort) -> None:
    """Fluid is dark on T1 and FLAIR and bright on T2; oedema lights up on FLAIR, the rim on T1ce."""
    for case in find_cases(cohort.root, require_seg=True):
        seg = volumes.read(case.seg).data
        scans = {name: volumes.read(path).data for name, path in case.images.items()}
        brain = (scans["T1"] > 0) & (seg == 0)
        scans = {name: data / np.median(data[brain]) for name, data in scans.items()}
        fluid = brain & (scans["T2"] > np.percentile(scans["T2"][brain], 97))
        assert mean_where(scans["T1"], fluid) < 0.75
        assert mean_where(scans["T2"], fluid) > 1.4
        assert mean_where(scans["FLAIR"], fluid) < 1.0
        if (seg == 2).sum() > 20:
            assert mean_where(scans["FLAIR"], seg == 2) > 1.25
            # Brighter than the white matter it replaces (on T2 the darkest 40%); cortex may be as bright.
            assert mean_where(scans["T2"], seg == 2) > 1.2 * np.percentile(scans["T2"][brain], 20)
            assert mean_where(scans["T1"], seg == 2) < np.percentile(scans["T1"][brain], 80)  # white matter
        if (seg == 3).sum() > 8:
            assert mean_where(scans["T1ce"], seg == 3) > mean_where(scans["T1"], seg == 3) + 0.2


def test_contrast_agent_shows_beyond_the_tumour(cohort: SimulatedCohort) -> None:
    """Dura and sinuses take it up: the surface of the brain is brighter against its inside than without."""
    gains = []
    for case in find_cases(cohort.root, require_seg=True):
        scans = {name: volumes.read(case.images[name]).data for name in ("T1", "T1ce")}
        healthy = (scans["T1"] > 0) & (volumes.read(case.seg).data == 0)
        surface = healthy & ~ndi.binary_erosion(scans["T1"] > 0)
        inside = healthy & ~surface
        plain, agent = (scan[surface].mean() / np.median(scan[inside]) for scan in scans.values())
        gains.append(agent - plain)
    assert min(gains) > 0
    assert np.mean(gains) > 0.1


# ---- determinism, going on, and refusals ----


def test_a_subject_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    few = simulate_cohort(tmp_path / "few", num_subjects=1, spacing_mm=COARSE, seed=5)
    many = simulate_cohort(tmp_path / "many", num_subjects=2, spacing_mm=COARSE, seed=5)
    other = simulate_cohort(tmp_path / "other", num_subjects=1, spacing_mm=COARSE, seed=6)
    assert few.subjects == many.subjects[:1]
    first, again, different = (contents(cohort.root) for cohort in (few, many, other))
    for name, data in first.items():
        np.testing.assert_array_equal(data, again[name])
    assert any((data != different[name]).any() for name, data in first.items())


def test_processes_give_the_same(tmp_path: Path) -> None:
    alone = simulate_cohort(tmp_path / "one", num_subjects=2, spacing_mm=COARSE)
    pooled = simulate_cohort(tmp_path / "two", num_subjects=2, spacing_mm=COARSE, num_workers=2)
    assert alone.subjects == pooled.subjects
    for name, data in contents(alone.root).items():
        np.testing.assert_array_equal(data, contents(pooled.root)[name])


def test_an_interrupted_cohort_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = simulation.simulate_subject

    def stop_after_one(root: Path, index: int, **settings: float) -> object:
        if made:
            (root / f"BraTS-GLI-{index:05d}-000").mkdir()
            (root / f"BraTS-GLI-{index:05d}-000" / ".tmp-1234-x.nii.gz").touch()
            raise KeyboardInterrupt
        made.append(index)
        return original(root, index, **settings)

    monkeypatch.setattr(simulation, "simulate_subject", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        simulate_cohort(tmp_path, num_subjects=3, spacing_mm=COARSE)
    monkeypatch.setattr(simulation, "simulate_subject", original)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-00000-*/*")}
    assert len(kept) == 6

    seen: list[tuple[int, int]] = []
    cohort = simulate_cohort(
        tmp_path, num_subjects=1, spacing_mm=COARSE, progress=lambda *counts: seen.append(counts)
    )
    # The half-made second subject is completed although one was asked for: half a case is no BraTS folder.
    assert seen == [(1, 2), (2, 2)]
    assert len(cohort.subjects) == len(find_cases(tmp_path, require_seg=True)) == 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("damage", ["missing scan", "damaged record"])
def test_incomplete_subjects_are_made_again(tmp_path: Path, damage: str) -> None:
    before = simulate_cohort(tmp_path, num_subjects=1, spacing_mm=COARSE)
    case = tmp_path / "BraTS-GLI-00000-000"
    if damage == "missing scan":
        (case / f"{case.name}-t1c.nii.gz").unlink()
    else:
        (case / simulation.RECORD).write_text("{")
    assert simulate_cohort(tmp_path, num_subjects=1, spacing_mm=COARSE) == before
    assert len(contents(tmp_path)) == 5


@pytest.mark.parametrize("change", [{"seed": 1}, {"spacing_mm": 7.0}])
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, float]) -> None:
    simulate_cohort(tmp_path, num_subjects=1, spacing_mm=COARSE)
    with pytest.raises(ConfigError, match="other settings"):
        simulate_cohort(tmp_path, **{"num_subjects": 1, "spacing_mm": COARSE, **change})


def test_real_data_is_not_mixed_with_simulated(tmp_path: Path) -> None:
    (tmp_path / "BraTS2021_00000").mkdir()
    (tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz").touch()
    with pytest.raises(ConfigError, match="not simulated here"):
        simulate_cohort(tmp_path, num_subjects=1, spacing_mm=COARSE)


@pytest.mark.parametrize(
    "wrong", [{"num_subjects": 0}, {"num_workers": 0}, {"spacing_mm": 0.5}, {"spacing_mm": float("nan")}]
)
def test_sizes_without_sense(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"expected|at least"):
        simulate_cohort(tmp_path / "new", **{"num_subjects": 1, **wrong})
    assert not (tmp_path / "new").exists()


def test_without_nilearn_the_command_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template.importlib.util, "find_spec", lambda name: None)
    template.load_template.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install 'nilearn>=0\.11'"):
        simulate_cohort(tmp_path, num_subjects=1, spacing_mm=COARSE)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written to"):
        simulate_cohort(tmp_path / "new", num_subjects=1)


# ---- diversity ----


def test_patients_differ(tmp_path: Path) -> None:
    figures = simulate_cohort(tmp_path, num_subjects=16, spacing_mm=6.0).figures
    assert figures["grey_dice_median"] is not None
    assert figures["grey_dice_median"] <= 0.75
    assert figures["ventricle_variation"] is not None
    assert figures["ventricle_variation"] >= 0.3
    assert figures["tumour_share"] is not None
    assert 0.6 <= figures["tumour_share"] < 1


@pytest.mark.parametrize("seed", range(20))
def test_every_cohort_has_its_share_of_tumours(seed: int) -> None:
    for size in (8, 10, 40, 160):
        share = np.mean([has_tumour(k, seed=seed) for k in range(size)])
        assert 0.6 <= share <= 0.9
    for start in range(0, 160, 10):
        assert not all(has_tumour(k, seed=seed) for k in range(start, start + 10))


def test_contrast_differs_from_scan_to_scan(cohort: SimulatedCohort) -> None:
    brightness = []
    for case in find_cases(cohort.root):
        data = nib.load(case.images["T1"]).get_fdata()
        brightness.append(np.median(data[data > 0]))
    assert np.std(brightness) / np.mean(brightness) > 0.1


@pytest.mark.slow
def test_patients_differ_at_the_spacing_of_the_demo(tmp_path: Path) -> None:
    figures = simulate_cohort(tmp_path, num_subjects=12, spacing_mm=3.0, seed=1).figures
    assert figures["grey_dice_median"] is not None
    assert figures["grey_dice_median"] <= 0.75
    assert figures["ventricle_variation"] is not None
    assert figures["ventricle_variation"] >= 0.3
