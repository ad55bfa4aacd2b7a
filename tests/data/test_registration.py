"""Preprocessing of a clinic's scans: simulated patients moved by known transforms, and every step's failure."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.cli.app import app
from prod9.cli.shared import run
from prod9.data.registration.geometry import Placed, apply, axis_aligned, overlap, resample
from prod9.data.registration.record import CaseRecord
from prod9.data.registration.rigid import register
from prod9.data.simulated.phantom import Phantom, make_phantom
from prod9.volumes import read, write
from tests.data.skulls import errors_mm

MM = 4.0
CASE = "BraTS-GLI-00000-000"


def rigid(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    """Return a rotation about x, then y, then z (degrees), and a shift in mm."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(angles)):
        first, second = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, 3] = shift
    return matrix


MOVES = {
    "T1ce": rigid((3, -5, 8), (12, -9, 6)),
    "T1": rigid((-6, 9, 4), (-8, 15, 5)),
    "FLAIR": rigid((10, 2, -7), (9, 4, -18)),
}
NAMES = {"T1ce": "t1c", "T1": "t1n", "FLAIR": "t2f"}
AXES = {"T1ce": "LPS", "T1": "PIR", "FLAIR": "SAL"}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(spacing_mm=MM, with_tumour=True, rng=np.random.default_rng(1))


def save(path: Path, data: np.ndarray, affine: np.ndarray, axes: str) -> None:
    image = nib.Nifti1Image(data, affine)
    ornt = nib.orientations
    turned = image.as_reoriented(ornt.ornt_transform(ornt.io_orientation(affine), ornt.axcodes2ornt(axes)))
    nib.save(turned, path)


@pytest.fixture(scope="module")
def clinic(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient whose scans lie where they please, with a segmentation on the voxels of T1ce."""
    root = tmp_path_factory.mktemp("clinic")
    (root / CASE).mkdir()
    for name, move in MOVES.items():
        save(
            root / CASE / f"{CASE}-{NAMES[name]}.nii.gz",
            phantom.scans[name],
            move @ phantom.affine,
            AXES[name],
        )
    seg = phantom.seg.astype(np.uint8)
    save(root / CASE / f"{CASE}-seg.nii.gz", seg, MOVES["T1ce"] @ phantom.affine, AXES["T1ce"])
    return root


def preprocess(root: Path, out: Path, *more: str) -> int:
    return run(app, ["data", "preprocess", str(root), str(out), "--spacing", str(MM), *more])


@pytest.fixture(scope="module")
def made(clinic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    assert preprocess(clinic, out, "--no-strip") == 0
    return out


def test_known_moves_are_recovered_within_a_millimetre_and_a_degree(made: Path, phantom: Phantom) -> None:
    record = CaseRecord.read(made / CASE)
    assert record.reference == "T1ce"
    points = apply(phantom.affine, np.argwhere(phantom.scans["T1"] > 0)[::37].astype(float))
    for name in ("T1", "FLAIR"):
        found = np.asarray(record.scans[name].to_reference)
        error = np.linalg.inv(MOVES["T1ce"]) @ found @ MOVES[name]
        angle = np.rad2deg(np.arccos(np.clip((np.trace(error[:3, :3]) - 1) / 2, -1, 1)))
        assert angle < 1, name
        assert np.linalg.norm(apply(error, points) - points, axis=1).mean() < 1, name
        assert record.scans[name].overlap > 0.85


def test_results_lie_on_each_other_and_on_the_atlas(made: Path, phantom: Phantom) -> None:
    heads = {name: read(made / CASE / f"{CASE}-{NAMES[name]}.nii.gz") for name in MOVES}
    first = heads["T1ce"]
    assert first.header.shape == phantom.seg.shape
    np.testing.assert_allclose(
        first.header.affine, phantom.affine, atol=1e-4
    )  # the grid of simulated cohorts
    for other in heads.values():
        top = float(other.data.max())
        assert overlap(first.data > 0.05 * first.data.max(), other.data > 0.05 * top) > 0.85
    seg = read(made / CASE / f"{CASE}-seg.nii.gz").data
    assert set(np.unique(seg)) <= {0, 1, 2, 3}
    assert seg.astype(bool).sum() == pytest.approx(phantom.seg.astype(bool).sum(), rel=0.1)
    page = (made / "preprocess.html").read_text()
    assert CASE in page
    assert "data:image/png;base64," in page


def test_transform_files_say_what_the_record_says(made: Path) -> None:
    import SimpleITK as sitk  # noqa: N813

    record = CaseRecord.read(made / CASE)
    transform = sitk.ReadTransform(str(made / CASE / f"{CASE}-T1-to-atlas.tfm"))
    point = np.asarray([11.0, -23.0, 31.0])  # mm of the atlas
    lps = np.asarray(transform.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    np.testing.assert_allclose(apply(record.scans["T1"].matrix, lps[None])[0], point, atol=1e-9)


def test_results_come_back_to_the_scan(made: Path, clinic: Path, tmp_path: Path) -> None:
    target = tmp_path / "back.nii.gz"
    original = read(clinic / CASE / f"{CASE}-seg.nii.gz")
    line = ["data", "to-native", str(made / CASE / f"{CASE}-seg.nii.gz"), "--case", str(made / CASE)]
    assert run(app, [*line, "--output", str(target)]) == 0
    back = read(target)
    assert back.header.shape == original.header.shape
    assert back.header.dtype == np.uint8
    np.testing.assert_allclose(back.header.affine, original.header.affine, atol=1e-5)
    both = (back.data > 0).sum() + (original.data > 0).sum()
    assert 2 * ((back.data > 0) & (original.data > 0)).sum() / both > 0.8  # twice nearest, at 4 mm
    assert run(app, [*line, "--output", str(target)]) == 1  # it is there
    assert run(app, [*line, "--output", str(tmp_path / "x.nii.gz"), "--scan", "T2"]) == 2
    scan = tmp_path / "flair.nii.gz"
    line[2] = str(made / CASE / f"{CASE}-t2f.nii.gz")
    assert run(app, [*line, "--output", str(scan), "--scan", "FLAIR"]) == 0
    source = read(clinic / CASE / f"{CASE}-t2f.nii.gz")
    inside = source.data > 0.3 * source.data.max()
    assert np.corrcoef(read(scan).data[inside], source.data[inside])[0, 1] > 0.9


def test_a_result_of_elsewhere_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = np.eye(4)
    far[:3, 3] = 900
    write(tmp_path / "far.nii.gz", np.ones((20, 20, 20)), far)
    line = [
        "data",
        "to-native",
        str(tmp_path / "far.nii.gz"),
        "--output",
        str(tmp_path / "y.nii.gz"),
        "--case",
    ]
    assert run(app, [*line, str(made / CASE)]) == 1
    assert "lies beside the scan" in capsys.readouterr().err
    assert run(app, [*line, str(tmp_path)]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "y.nii.gz").exists()


def test_what_is_done_is_kept_and_other_settings_are_refused(
    made: Path, clinic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    before = (made / CASE / "preprocess.json").stat().st_mtime_ns
    assert preprocess(clinic, made, "--no-strip", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == [CASE]
    assert (made / CASE / "preprocess.json").stat().st_mtime_ns == before
    assert preprocess(clinic, made, "--no-strip", "--reference-scan", "T1") == 2
    assert "choose another folder" in capsys.readouterr().err


STRIPPER = """
import sys, nibabel as nib, numpy as np
scan = nib.load(sys.argv[1])
mask = scan.get_fdata() > 0.05 * scan.get_fdata().max()
if len(sys.argv) > 3: sys.exit("no weights")
nib.save(nib.Nifti1Image(mask.astype(np.uint8), scan.affine), sys.argv[2])
"""


def test_stripping_by_a_program_and_its_failure(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, program = tmp_path / "small", tmp_path / "strip.py"
    program.write_text(STRIPPER)
    (small / CASE).mkdir(parents=True)
    (small / CASE / f"{CASE}-t1c.nii.gz").symlink_to(clinic / CASE / f"{CASE}-t1c.nii.gz")
    command = f"{sys.executable} {program} {{in}} {{mask}}"
    assert preprocess(small, tmp_path / "bad", "--strip-with", command + " fail") == 1
    assert "exit code 1 (no weights)" in capsys.readouterr().err
    assert not (tmp_path / "bad" / CASE).exists()  # never a copy of the input
    assert "no weights" in (tmp_path / "bad" / "preprocess.html").read_text()
    assert preprocess(small, tmp_path / "good", "--strip-with", command) == 0
    scan, mask = (read(tmp_path / "good" / CASE / f"{CASE}-{end}.nii.gz") for end in ("t1c", "brain_mask"))
    np.testing.assert_array_equal(scan.data > 0, mask.data > 0)


def test_without_a_way_to_strip_it_says_which_there_are(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(clinic, tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(word in said for word in ("no weights", "--strip-with", "--brain-mask", "--no-strip"))
    assert preprocess(clinic, tmp_path / "out", "--no-strip", "--brain-mask", "x.nii.gz") == 2
    assert preprocess(clinic, tmp_path / "out", "--strip-with", "true {in}") == 2
    assert preprocess(clinic, tmp_path / "out", "--strip-with", "no-such-program {in} {mask}") == 2
    assert not (tmp_path / "out").exists()


def test_dicom_is_refused_by_name(clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IM0001.dcm").touch()
    assert preprocess(tmp_path / "in", tmp_path / "out", "--no-strip") == 1
    assert "DICOM" in capsys.readouterr().err
    assert preprocess(clinic, clinic / "out", "--no-strip") == 2
    assert "never written to" in capsys.readouterr().err


def test_scans_of_different_things_fail(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rod is no head: nothing is written for the case, and the message names the file."""
    (tmp_path / "in" / CASE).mkdir(parents=True)
    (tmp_path / "in" / CASE / f"{CASE}-t1c.nii.gz").symlink_to(clinic / CASE / f"{CASE}-t1c.nii.gz")
    rod = np.zeros((40, 40, 40), np.float32)
    rod[18:22, 18:22] = np.random.default_rng(0).random((4, 4, 40)) + 1
    write(tmp_path / "in" / CASE / f"{CASE}-t2f.nii.gz", rod, np.diag([4.0, 4.0, 4.0, 1.0]))
    assert preprocess(tmp_path / "in", tmp_path / "out", "--no-strip") == 1
    assert "t2f.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "out" / CASE).exists()


def test_masks_are_on_the_reference_and_as_large_as_a_brain(
    clinic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "in"
    (small / CASE).mkdir(parents=True)
    (small / CASE / f"{CASE}-t1c.nii.gz").symlink_to(clinic / CASE / f"{CASE}-t1c.nii.gz")
    scan = read(clinic / CASE / f"{CASE}-t1c.nii.gz")
    mask = tmp_path / f"{CASE}_m.nii.gz"
    write(mask, np.zeros_like(scan.data), scan.header, dtype=np.uint8)
    pattern = str(tmp_path / "{case}_m.nii.gz")
    assert preprocess(small, tmp_path / "out", "--brain-mask", pattern) == 1
    assert "expected a brain of" in capsys.readouterr().err
    write(mask, scan.data > 0, scan.header, dtype=np.uint8)
    assert preprocess(small, tmp_path / "out", "--brain-mask", pattern) == 0
    assert CaseRecord.read(tmp_path / "out" / CASE).brain_ml == pytest.approx(
        (scan.data > 0).sum() * MM**3 / 1000, rel=0.03
    )


def test_resampling_by_whole_voxels_is_exact_and_grids_cover() -> None:
    rng = np.random.default_rng(0)
    source = Placed(rng.random((7, 8, 9)), np.diag([2.0, 2.0, 2.0, 1.0]))
    shift = rigid((0, 0, 0), (2, 0, -4))
    moved = resample(source, (5, 6, 5), source.affine, shift, order=1)
    np.testing.assert_allclose(moved[:, :, 2:], source.data[1:6, :6, 0:3], atol=1e-6)
    turned = rigid((30, 0, 20), (5, 5, 5)) @ source.affine
    shape, affine = axis_aligned((7, 8, 9), turned, 2.0)
    corners = apply(np.linalg.inv(affine) @ turned, np.argwhere(np.ones((7, 8, 9))).astype(float))
    assert (corners >= -0.5).all()
    assert (corners <= np.asarray(shape) - 0.5).all()


def test_registration_is_the_same_each_time(phantom: Phantom) -> None:
    fixed = Placed(phantom.scans["T1"], phantom.affine)
    moving = Placed(phantom.scans["FLAIR"], MOVES["T1"] @ phantom.affine)
    first, second = (register(fixed, moving, working_mm=8.0).matrix for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_heads_with_their_skull_are_registered_too() -> None:
    between, on_atlas = errors_mm(0, 5.0)
    assert between < 1.5
    assert on_atlas < 2.5


def test_scans_that_lie_on_each_other_stay(phantom: Phantom) -> None:
    """On voxels as coarse as these a search ends a part of a voxel beside the place, with less in common."""
    volumes = {name: Placed(phantom.scans[name], phantom.affine) for name in ("T1ce", "T1", "T2")}
    for name in ("T1", "T2"):
        found = register(volumes["T1ce"], volumes[name], working_mm=MM)
        assert found.information >= found.before
        assert np.abs(found.matrix - np.eye(4))[:3, 3].max() < 1.0
