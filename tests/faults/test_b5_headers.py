"""Headers with impossible fields: one error per file that names it, and the check of the others goes on."""

import gzip
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest

from prod9 import volumes
from prod9.errors import DataError
from tests.fixtures import write_brats_tree
from tests.harness import Workspace, run
from tests.nifti_files import write_raw

NAN, INF = float("nan"), float("inf")
SHAPE = (6, 7, 8)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "intercept NaN": {"scl_slope": 1, "scl_inter": NAN},
    "intercept inf": {"scl_slope": 2, "scl_inter": INF},
    "slope inf": {"scl_slope": INF},
    "offset 0": {"vox_offset": 0},
    "offset inf": {"vox_offset": INF},
    "offset -inf": {"vox_offset": -INF},
    "offset NaN": {"vox_offset": NAN},
    "offset 1e38": {"vox_offset": 1e38},
    "offset beyond the file": {"vox_offset": 100_000},
    "offset negative": {"vox_offset": -352},
    "offset in the header": {"vox_offset": 340},
    "offset of half a byte": {"vox_offset": 352.5},
    "s-form of 1e19 beside 1": {"srow_x": (1e19, 0, 0, 0)},
    "s-form NaN": {"srow_y": (NAN, 3, 0, 0)},
    "s-form inf": {"srow_z": (0, 0, 3, INF)},
    "s-form flat": {"srow_x": (0, 3, 0, 0)},
    "s-form code 77": {"sform_code": 77},
    "q-form code -1": {"qform_code": -1},
    "quaternion too long": {"sform_code": 0, "qform_code": 1, "quatern_b": 3},
    "quaternion NaN": {"sform_code": 0, "qform_code": 1, "quatern_c": NAN},
    "no axes": {"dim": (0, 6, 7, 8, 1, 1, 1, 1)},
    "nine axes": {"dim": (9, 6, 7, 8, 1, 1, 1, 1)},
    "negative axes": {"dim": (-3, 6, 7, 8, 1, 1, 1, 1)},
    "data code 999": {"datatype": 999},
    "a pair's header": {"magic": b"ni1"},
    "Analyze": {"magic": b""},
}


def bad_file(path: Path, fields: dict[str, Any]) -> Path:
    data = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
    return write_raw(path, data, sform=AFFINE, qform=AFFINE, **{"xyzt_units": 2, **fields})


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_b5_one_error_names_the_file(
    tmp_path: Path,
    name: str,
    suffix: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = bad_file(tmp_path / f"a{suffix}", IMPOSSIBLE[name])
    for read in (volumes.read_header, volumes.read):
        if name == "offset beyond the file" and read is volumes.read_header and suffix == ".nii.gz":
            continue  # how long the content is shows when it is read
        with pytest.raises(DataError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert message.count(path.name) == 1
        assert message.count("copy or download") <= 1
        assert "expected" in message
    assert capfd.readouterr() == ("", "")
    assert not caplog.records, "nibabel's own warnings name no file"


def test_b5_a_check_goes_on_with_one_finding_per_file(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 6)
    names = ["intercept NaN", "offset inf", "offset 0", "offset 1e38", "s-form of 1e19 beside 1"]
    for name, case in zip(names, sorted((tmp_path / "cohort").iterdir()), strict=False):
        path = case / f"{case.name}-t2w.nii.gz"
        data = np.asarray(nib.load(path).dataobj)
        write_raw(path, data, sform=np.diag([4.0, 4, 4, 1]), xyzt_units=2, **IMPOSSIBLE[name])
    for more in ((), ("--deep",)):
        ran = run("prod9", "data", "check", tmp_path / "cohort", "--json", *more)
        assert ran.code == 1
        assert "Traceback" not in ran.err
        errors = [finding for finding in ran.json["findings"] if finding["level"] == "error"]
        unreadable = [finding for finding in errors if finding["code"] == "unreadable"] or errors
        assert len(unreadable) == len(names), [finding["message"] for finding in errors]
        assert sorted(finding["case"] for finding in unreadable) == sorted(
            case.name for case in sorted((tmp_path / "cohort").iterdir())[: len(names)]
        )


def test_b5_files_that_only_look_odd_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for fields in (
        {"scl_slope": 0, "scl_inter": NAN},
        {"scl_slope": NAN, "scl_inter": NAN},
        {"pixdim": (0, 3, 3, 3, NAN, 0, 0, 0)},
        {"pixdim": (NAN, -3, 3, 3, 0, 0, 0, 0), "sform_code": 0, "qform_code": 1},
        {"bitpix": 3, "regular": b"x", "cal_max": NAN},
        {"xyzt_units": 255 - 255 % 8 + 2},
    ):
        path = bad_file(tmp_path / "a.nii.gz", fields)
        assert volumes.read(path).data.max() > 400
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.nii", b"\x1f\x8b\x08\x00rest", "rename it to end in .nii.gz"),
        ("a.nii.gz", struct.pack("<i", 348) + bytes(400), "rename it to end in .nii"),
        ("a.nii.gz", b"/annex/objects/MD5E-s1--0.nii.gz\n", "git annex get"),
        ("a.nii", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.mgz", b"x", "mri_convert"),
        ("a.MGH", b"x", "mri_convert"),
        ("a.nrrd", b"x", "SimpleITK"),
        ("a.mha", b"x", "SimpleITK"),
        ("a.mhd", b"x", "SimpleITK"),
        ("a.img", b"x", "SimpleITK"),
        ("a.dcm", b"x", "dcm2niix"),
        ("a.nii.bz2", b"x", "unpacks"),
    ],
)
def test_d_other_files_are_told_what_reads_them(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        volumes.read(tmp_path / name)
    assert text in str(caught.value)
    assert ("dcm2niix" in str(caught.value)) == name.endswith(".dcm")


def test_d_a_link_without_target_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to("../.git/annex/objects/MD5E-s1--0.nii.gz")
    for read in (volumes.read_header, volumes.read):
        with pytest.raises(DataError, match=r"a\.nii\.gz: .* link whose target is missing .*datalad get"):
            read(tmp_path / "a.nii.gz")


def test_d_a_device_and_a_folder_are_no_volume(tmp_path: Path) -> None:
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    (tmp_path / "folder.nii.gz").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match="expected a NIfTI file, got a"):
            volumes.read(path)


# ---- how much is read ----

BOMB = """
import resource, sys
from pathlib import Path
from prod9 import volumes
from prod9.errors import DataError
from prod9.system import machine
if sys.argv[2] == "limit":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (90 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
else:
    volumes.memory = lambda: machine.Memory(8 << 30, 150 << 20)
try:
    volumes.read(sys.argv[1])
except DataError as error:
    print(error)
"""


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and tells memory as Linux does")


@pytest.mark.parametrize("how", [pytest.param("limit", marks=ON_LINUX), "container"])
def test_r24_a_file_that_grows_beyond_the_memory_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "bomb.nii.gz"
    write_raw(path, np.zeros((300, 300, 300), np.uint8), sform=AFFINE)
    assert path.stat().st_size < 200_000
    ran = subprocess.run(
        [sys.executable, "-c", BOMB, str(path), how], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{path}: expected a")
    assert "memory" in ran.stdout
    if how == "container":
        assert "into the 0.1 GiB of memory that are free, got 300×300×300 voxels" in ran.stdout


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_r24_a_header_cannot_claim_more_than_its_file_can_hold(tmp_path: Path, suffix: str) -> None:
    path = bad_file(tmp_path / f"a{suffix}", {"dim": (3, 320, 320, 320, 1, 1, 1, 1)})
    with pytest.raises(DataError, match=r"the file ends early: its \d+ bytes cannot hold them"):
        volumes.read_header(path)


def test_r24_a_volume_takes_its_own_memory_and_one_piece(tmp_path: Path) -> None:
    import tracemalloc

    path = write_raw(tmp_path / "a.nii.gz", np.zeros((160, 160, 160), np.float64), sform=AFFINE)
    tracemalloc.start()
    try:
        data = volumes.read(path).data
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes + (40 << 20), f"{peak >> 20} MiB for {data.nbytes >> 20}"


# ---- any bytes ----

NUMBERS = [
    *(struct.pack("<f", x) for x in (NAN, INF, -INF, 1e38, -1e38, 1e-40, 0.0, 1e19, 352.0, -1.0, 7.5)),
    *(struct.pack("<h", x) for x in (0, -1, 1, 2, 3, 4, 7, 8, 16, 64, 348, 512, 540, 1280, 32767, -32768)),
]
FIELDS = [
    0,
    40,
    42,
    44,
    46,
    48,
    70,
    72,
    76,
    80,
    84,
    88,
    108,
    112,
    116,
    123,
    252,
    254,
    256,
    268,
    280,
    284,
    296,
    344,
]
"""Where those of version 1 begin; in version 2 they fall into the middle of others, which is as good."""


def damaged(rng: np.random.Generator, content: bytes, end: int) -> bytes:
    """Return ``content`` with one to three fields or random bytes before ``end`` replaced, and sometimes cut."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        value = NUMBERS[rng.integers(len(NUMBERS))] if rng.random() < 0.7 else rng.bytes(rng.integers(1, 9))
        offset = FIELDS[rng.integers(len(FIELDS))] if rng.random() < 0.6 else int(rng.integers(end))
        changed[offset : offset + len(value)] = value
    return bytes(changed[: rng.integers(700)] if rng.random() < 0.1 else changed)


def read_and_write(path: Path) -> bool:
    """Return whether the file was read; then it comes back as it is. Otherwise the error must name it."""
    try:
        file = volumes.read(path, allow_non_finite=True)
    except DataError as error:
        message = str(error)
        assert message.startswith(f"{path}: "), message
        assert len(message) < 700, message
        return False
    assert len(file.header.orientation) == 3
    out = path.with_name("out.nii")
    volumes.write(out, file.data, file.header)
    again = volumes.read(out, allow_non_finite=True)
    np.testing.assert_array_equal(again.header.affine, file.header.affine)
    np.testing.assert_array_equal(again.data, file.data)
    return True


@pytest.mark.parametrize("version", [1, 2])
def test_r14_any_header_is_read_or_refused_by_name(tmp_path: Path, version: Literal[1, 2]) -> None:
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    good = write_raw(tmp_path / "good.nii", data, version=version, sform=AFFINE, qform=AFFINE).read_bytes()
    rng, before = np.random.default_rng(version), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plain, packed = tmp_path / "fuzzed.nii", tmp_path / "fuzzed.nii.gz"
    accepted = 0
    for number in range(2000):
        content = damaged(rng, good, 348 if version == 1 else 540)
        if number % 4:
            plain.write_bytes(content)
            accepted += read_and_write(plain)
        else:
            content = gzip.compress(content, 1)
            packed.write_bytes(damaged(rng, content, len(content)) if number % 8 else content)
            accepted += read_and_write(packed)
    assert 200 < accepted < 1800
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "1 GiB, in units of 1 KiB"


# ---- files that can be read and are doubtful ----


def test_d_a_check_warns_of_single_slices_and_of_files_without_orientation(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 4)
    cases = sorted((tmp_path / "cohort").iterdir())
    for path in cases[0].glob("*.nii.gz"):
        data = np.asarray(nib.load(path).dataobj)
        write_raw(path, data[:, :, 7:8], sform=np.diag([4.0, 4, 4, 1]), xyzt_units=2)
    for path in cases[1].glob("*.nii.gz"):
        image = nib.load(path)
        write_raw(path, np.asarray(image.dataobj), sform=image.affine, xyzt_units=2, sform_code=0)
    ran = run("prod9", "data", "check", tmp_path / "cohort", "--json")
    found = {finding["code"]: finding for finding in ran.json["findings"] if finding["level"] == "warning"}
    assert found["slice"]["case"] == cases[0].name
    assert "16×18×1 voxels are a single slice" in found["slice"]["message"]
    assert "codes are 0" in found["orientation"]["message"]
    assert "4 more" in found["orientation"]["message"]


def test_d_commands_warn_of_single_slices(workspace: Workspace, tmp_path: Path) -> None:
    case = sorted(workspace.cohort.iterdir())[0]
    data = np.asarray(nib.load(case / f"{case.name}-t1n.nii.gz").dataobj)[:, :, 7:8]
    path = write_raw(
        tmp_path / "slice.nii.gz", data, sform=np.diag([4.0, 4, 4, 1]), sform_code=0, xyzt_units=2
    )
    ran = run("prod9-train-autoencoder", "infer", path, "--model", workspace.run1, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    for text in ("slice.nii.gz: 16×18×1 voxels are a single slice", "does not say how its axes lie"):
        assert text in " ".join(ran.err.split())
