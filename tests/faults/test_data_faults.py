"""The faults that datasets have: each is built, shown to a command, named with its remedy, and nothing is written.

Numbers are those of the list of faults that the package promises to survive. ``data check`` reads headers,
``--deep`` the voxels; training must stop at the same files.
"""

import gzip
import json
import os
import shutil
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.fixtures import write_brats_tree
from tests.harness import Ran, run, write_configs

Fault = Callable[[Path], None]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Four patients that nothing is wrong with."""
    write_brats_tree(tmp_path / "cohort", 4)
    return tmp_path / "cohort"


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def check(root: Path, *more: object) -> tuple[Ran, dict[str, list[str]]]:
    """Check ``root`` and return how it ended and the messages by level; the folder must not change."""
    before = tree(root.parent)
    ran = run("prod9", "data", "check", root, "--json", *more)
    assert tree(root.parent) == before, "a check writes nothing"
    assert "Traceback" not in ran.err
    messages: dict[str, list[str]] = {"error": [], "warning": [], "note": []}
    for finding in ran.json["findings"] if ran.out else []:
        messages[finding["level"]].append(finding["message"])
    return ran, messages


def first(root: Path, token: str = "t1n") -> Path:
    return sorted(root.rglob(f"*-{token}.nii.gz"))[0]


def assert_one_error(ran: Ran, messages: dict[str, list[str]], *texts: object) -> None:
    assert ran.code == 1, ran.err
    assert len(messages["error"]) == 1, messages["error"]
    for text in texts:
        assert str(text) in messages["error"][0]


def test_nothing_is_wrong(cohort: Path) -> None:
    for more in ((), ("--deep",)):
        ran, messages = check(cohort, *more)
        assert ran.code == 0, messages
        assert not messages["error"]
        assert not messages["warning"]


# -- 1 to 12: one file is bad -----------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def _flip_a_bit(path: Path) -> None:
    raw = gzip.decompress(path.read_bytes())
    packed = bytearray(gzip.compress(raw, mtime=0))
    packed[-8] ^= 1
    path.write_bytes(bytes(packed))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _html(path: Path) -> None:
    path.write_text("<html>404 not found</html>", encoding="utf-8")


def _bomb(path: Path) -> None:
    """Megabytes more than the header promises, in a few kilobytes."""
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw + bytes(40 << 20)))


def _header(offset: int, layout: str, *values: float) -> Fault:
    """Overwrite fields of the header, and keep the voxels."""

    def fault(path: Path) -> None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(f"<{layout}", raw, offset, *values)
        path.write_bytes(gzip.compress(bytes(raw)))

    return fault


def _array(data: np.ndarray, affine: np.ndarray | None = None) -> Fault:
    def fault(path: Path) -> None:
        nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)

    return fault


def _non_finite(value: float) -> Fault:
    def fault(path: Path) -> None:
        image = nib.load(path)
        data = image.get_fdata(dtype=np.float32)
        data[3, 4, 5:7] = value
        nib.save(nib.Nifti1Image(data, image.affine), path)

    return fault


def _constant(value: int) -> Fault:
    def fault(path: Path) -> None:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.full(image.shape, value, dtype=np.int16), image.affine), path)

    return fault


_RGB = np.zeros((16, 18, 14), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
BY_HEADER: dict[str, tuple[Fault, str, str]] = {
    "1 truncated": (_truncate, "cut short or damaged", "download it again"),
    "3 empty": (_empty, "empty", "download it again"),
    "3 html": (_html, "expected a NIfTI file", "download it again"),
    "4 bomb": (_bomb, "got many more", "download it again"),
    "5 dims 32767": (_header(40, "4h", 3, 32767, 32767, 32767), "at most", "repair the header"),
    "6 negative side": (_header(42, "h", -16), "positive sides", "header is damaged"),
    "6 empty side": (_header(44, "h", 0), "positive sides", "header is damaged"),
    "7 unknown type": (_header(70, "h", 999), "data code 999", "download it again"),
    "7 complex": (_array(np.ones((16, 18, 14), dtype=np.complex64)), "got complex64", "convert it"),
    "7 colours": (_array(_RGB), "integer or real voxels", "convert it"),
    "8 flat": (_array(np.ones((16, 18), dtype=np.int16)), "got 2D", "not a slice"),
    "9 four axes": (_array(np.ones((16, 18, 14, 2), dtype=np.int16)), "got 4D", "dataset.json"),
    "12 singular": (_header(312, "4f", 0, 0, 0, 0), "invertible affine", "q-form or s-form"),
    "12 NaN in the affine": (_header(280, "f", float("nan")), "invertible affine", "q-form or s-form"),
}


@pytest.mark.parametrize("name", BY_HEADER)
def test_seen_in_the_header(cohort: Path, name: str) -> None:
    fault, expected, remedy = BY_HEADER[name]
    bad = first(cohort)
    fault(bad)
    ran, messages = check(cohort)
    assert_one_error(ran, messages, bad, expected, remedy)


def test_12_no_voxel_size(cohort: Path) -> None:
    bad = first(cohort)
    _header(80, "3f", 0, 0, 0)(bad)
    _header(252, "2h", 1, 0)(bad)  # q-form says how it lies, no s-form
    ran, messages = check(cohort)
    assert_one_error(ran, messages, bad, "voxel sizes above 0", "pixdim")


def test_9_a_fourth_axis_of_length_1_is_noted(cohort: Path) -> None:
    odd = first(cohort)
    image = nib.load(odd)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), odd)
    ran, messages = check(cohort)
    assert ran.code == 0
    assert any(
        str(odd) in message and "16×18×14×1 is read as 16×18×14" in message for message in messages["note"]
    )


BY_VOXELS: dict[str, tuple[Fault, str, str]] = {
    "2 bit flip": (_flip_a_bit, "cut short or damaged", "download it again"),
    "10 NaN": (_non_finite(np.nan), "got 2 NaN or infinite", "nan_to_num"),
    "10 infinite": (_non_finite(np.inf), "got 2 NaN or infinite", "nan_to_num"),
    "11 constant": (_constant(7), "got 7 throughout", "leave the case out"),
    "11 zeros": (_constant(0), "got 0 throughout", "leave the case out"),
}


@pytest.mark.parametrize("name", BY_VOXELS)
def test_seen_in_the_voxels(cohort: Path, name: str) -> None:
    fault, expected, remedy = BY_VOXELS[name]
    bad = first(cohort)
    fault(bad)
    assert check(cohort)[0].code == 0, "headers cannot tell"
    ran, messages = check(cohort, "--deep")
    assert_one_error(ran, messages, bad, expected, remedy)


def test_a_loader_process_names_the_file_too(tmp_path: Path) -> None:
    config, _ = write_configs(tmp_path)
    for bad in (tmp_path / "cohort").rglob("*-t2w.nii.gz"):
        _flip_a_bit(bad)
    ran = run(
        "prod9-train-autoencoder", "train", "--config", config, "--set", "data.cache=none",
        "--set", "data.num_workers=1",
    )  # fmt: skip
    assert ran.code == 1
    assert "-t2w.nii.gz: the compressed content is cut short or damaged" in ran.err
    assert ran.err.count("Error:") == 1
    for text in ("Traceback", "Caught", "worker process"):
        assert text not in ran.err


# -- 13 to 20: files and cases that do not go together ----------------------------------------------


def test_13_another_grid(cohort: Path) -> None:
    bad, reference = first(cohort, "t2w"), first(cohort)
    image = nib.load(bad)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), bad)
    ran, messages = check(cohort)
    assert_one_error(
        ran, messages, bad, reference, "15×18×14 voxels against 16×18×14", "prod9 data preprocess"
    )


def test_13_another_affine(cohort: Path) -> None:
    bad = first(cohort, "seg")
    image = nib.load(bad)
    moved = image.affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), bad)
    ran, messages = check(cohort)
    assert_one_error(ran, messages, bad, "affines that differ by up to 5", "prod9 data preprocess")


def test_14_a_missing_modality(cohort: Path) -> None:
    gone = first(cohort, "t1c")
    gone.unlink()
    ran, messages = check(cohort)
    assert_one_error(ran, messages, gone.parent, "T1ce is missing", "data.modalities")
    ran, _ = check(cohort, "--modality", "T1", "--modality", "T2")
    assert ran.code == 0, "nobody asked for it"


def test_14_a_modality_that_nobody_has(cohort: Path) -> None:
    for path in cohort.rglob("*-t2f.nii.gz"):
        path.unlink()
    ran, messages = check(cohort)
    assert ran.code == 0
    assert "no case has FLAIR; train with data.modalities: [T1, T1ce, T2]" in messages["warning"][0]


def test_15_thick_slices(cohort: Path) -> None:
    for path in first(cohort).parent.glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1.0, 1.0, 6.0, 1.0])), path)
    ran, messages = check(cohort)
    assert ran.code == 0
    assert ran.json["spacings_mm"] == {"4×4×4": 15, "1×1×6": 5}
    assert any("6.0 times" in message and str(first(cohort)) in message for message in messages["warning"])
    assert any("data.spacing to resample" in message for message in messages["warning"])


def test_17_labels_outside_the_scheme(cohort: Path) -> None:
    bad = first(cohort, "seg")
    image = nib.load(bad)
    data = np.asarray(image.dataobj).copy()
    data[0, 0, :3] = 4
    nib.save(nib.Nifti1Image(data, image.affine), bad)
    ran, messages = check(cohort, "--deep")
    assert_one_error(
        ran, messages, bad, "scheme brats2023, got 4 (3 voxels)", "brats2024", "data.label_scheme"
    )
    assert check(cohort, "--deep", "--label-scheme", "brats2024")[0].code == 0


def test_17_labels_that_are_nearly_whole(cohort: Path) -> None:
    path = first(cohort, "seg")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32) * 1.0000001, image.affine), path)
    assert check(cohort, "--deep")[0].code == 0


def test_18_two_files_for_one_modality(cohort: Path) -> None:
    again = first(cohort).with_name(first(cohort).name.removesuffix(".gz"))
    again.write_bytes(gzip.decompress(first(cohort).read_bytes()))
    ran, messages = check(cohort)
    assert_one_error(ran, messages, "one T1 file for case BraTS-GLI-00000-000", again.name, "remove one")


def test_18_the_same_scan_under_two_names(cohort: Path) -> None:
    copied, original = cohort / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t2w.nii.gz", first(cohort, "t2w")
    shutil.copy(original, copied)
    ran, messages = check(cohort)
    assert_one_error(ran, messages, copied, f"the content of {original}", "remove one")


def test_18_packed_differently(cohort: Path) -> None:
    copied, original = cohort / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t2w.nii.gz", first(cohort, "t2w")
    image = nib.load(original)
    nib.save(nib.Nifti1Image(image.get_fdata().astype(np.float64), image.affine), copied)
    assert check(cohort)[0].code == 0, "headers cannot tell"
    ran, messages = check(cohort, "--deep")
    assert_one_error(ran, messages, copied, f"the content of {original}")


def test_19_a_patient_on_two_sides(cohort: Path, tmp_path: Path) -> None:
    patients = [f"BraTS-GLI-{k:05d}" for k in range(4)]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": patients[:3], "val": patients[2:], "test": []}))
    ran, messages = check(cohort, "--split", split)
    assert_one_error(ran, messages, split, "BraTS-GLI-00002")
    config, _ = write_configs(tmp_path / "run")
    ran = run("prod9-train-autoencoder", "train", "--config", config, "--set", f"data.split.file={split}")
    assert ran.code == 1
    assert "BraTS-GLI-00002" in ran.err
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_19_time_points_of_a_list_on_two_sides(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 2, time_points=2)
    rows = ["case,split,T1"]
    for k, path in enumerate(sorted((tmp_path / "cohort").rglob("*-t1n.nii.gz"))):
        rows.append(f"{path.parent.name},{('train', 'val')[k % 2]},{path.relative_to(tmp_path)}")
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(rows))
    ran, messages = check(listed)
    assert ran.code == 1
    assert messages["error"] == [
        f"patient BraTS-GLI-0000{k} is in train and val; all cases of a patient belong to one."
        for k in range(2)
    ]


def test_20_one_patient(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 1)
    ran, messages = check(tmp_path / "cohort")
    assert ran.code == 0
    assert "1 patient cannot be divided" in messages["warning"][0]
    config, _ = write_configs(tmp_path / "run")
    ran = run(
        "prod9-train-autoencoder", "train", "--config", config, "--set", f"data.root={tmp_path / 'cohort'}"
    )
    assert ran.code == 1
    assert "data.split: expected at least 3 patients" in ran.err
    assert not list((tmp_path / "run").rglob("*.ckpt"))


# -- 16, 21, 22: the configuration ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ("data.crop_size=[32, 32, 32]", ("crop_size", "at most data.grid")),
        ("data.crop_size=[0, 8, 8]", ("data.crop_size", "at least 1")),
        ("sliding_window.roi_size=[0, 16, 16]", ("sliding_window.roi_size", "at least 1")),
        ("data.grid=[16, 18, 16]", ("data.grid", "[16, 20, 16]")),
    ],
)
def test_16_sides_that_do_not_fit(tmp_path: Path, change: str, texts: tuple[str, ...]) -> None:
    config, _ = write_configs(tmp_path)
    before = tree(tmp_path)
    window = ("--set", "sliding_window.strategy=sliding_window")
    ran = run("prod9-train-autoencoder", "train", "--config", config, *window, "--set", change)
    assert ran.code == 2, ran.err
    for text in texts:
        assert text in ran.err
    assert tree(tmp_path).keys() == before.keys()


def test_21_an_unset_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROD9_NOWHERE", raising=False)
    config, _ = write_configs(tmp_path)
    before = tree(tmp_path)
    ran = run("prod9-train-autoencoder", "train", "--config", config, "--set", "data.root=${PROD9_NOWHERE}")
    assert ran.code == 2
    # A value typed after --set is taken literally; in the file the variable is looked up.
    assert "data.root" in ran.err
    config.write_text(config.read_text().replace(f"{tmp_path}/cohort", "${PROD9_NOWHERE}"))
    ran = run("prod9-train-autoencoder", "train", "--config", config)
    assert ran.code == 2
    for text in ("data.root", "PROD9_NOWHERE", "export PROD9_NOWHERE="):
        assert text in ran.err
    assert tree(tmp_path).keys() == before.keys()


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bomb", _LAUGHS, "alias"),
        ("tag", "stage: !!python/object/apply:os.system ['touch marker']\n", "python/object"),
        ("twice", "stage: autoencoder\nstage: transformer\n", "stage"),
        (
            "typo",
            "stage: autoencoder\noutput_dir: x\ndata: {root: x}\ntraning: {}\n",
            "did you mean 'training'",
        ),
    ],
)
def test_22_hostile_and_mistyped_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / f"{name}.yaml"
    config.write_text(text)
    ran = run("prod9-train-autoencoder", "train", "--config", config)
    assert ran.code == 2, ran.err
    assert expected in ran.err
    assert str(config) in ran.err
    assert list(tmp_path.iterdir()) == [config], "nothing was run or written"


# -- 23 and 38: paths -------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_23_links_in_a_circle(cohort: Path) -> None:
    for k in range(8):
        (cohort / f"a{k}").mkdir()
        (cohort / f"a{k}" / "up").symlink_to(cohort, target_is_directory=True)
        (cohort / f"a{k}" / "next").symlink_to(cohort / f"a{(k + 1) % 8}", target_is_directory=True)
    ran, messages = check(cohort)
    assert ran.code == 0, messages
    assert ran.json["cases"] == 4


def test_23_a_list_that_leads_out(tmp_path: Path) -> None:
    root = tmp_path / "Task01"
    (root / "imagesTr").mkdir(parents=True)
    entry = {"image": "../../../../etc/passwd", "label": "./labelsTr/x.nii.gz"}
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": [entry]}))
    ran, _ = check(root)
    assert ran.code == 1
    for text in (root / "dataset.json", "expected files inside", "../../../../etc/passwd"):
        assert str(text) in ran.err


@pytest.mark.parametrize(
    "folder", ["with spaces", "Müller-Łódź", "日本語", "a.nii.gz", "[brackets] & 'quotes'"]
)
def test_38_names_of_folders(tmp_path: Path, folder: str) -> None:
    write_brats_tree(tmp_path / folder / "co hort", 3)
    ran, messages = check(tmp_path / folder / "co hort", "--deep")
    assert ran.code == 0, (ran.err, messages)
    assert ran.json["cases"] == 3


def test_38_names_of_files(cohort: Path) -> None:
    """Upper case, ``.nii`` beside ``.nii.gz``, and both spellings of an accent."""
    for number, path in enumerate(sorted(first(cohort).parent.glob("*.nii.gz"))):
        if number % 2:
            path.rename(path.with_name(path.name.upper()))
        else:
            path.with_name(path.name[:-3]).write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    own = cohort / "eigene"
    own.mkdir()
    for number, token in enumerate(("t1", "t1ce", "t2", "flair")):
        name = unicodedata.normalize(("NFC", "NFD")[number % 2], "Müller 1")
        shutil.copy(sorted(cohort.glob("*-00003-*/*.nii.gz"))[number], own / f"{name}_{token}.nii.gz")
    shutil.rmtree(cohort / "BraTS-GLI-00003-000")
    ran, messages = check(cohort, "--deep")
    assert ran.code == 0, messages
    assert ran.json["cases"] == 4


# -- 36: what was made from files that have changed -------------------------------------------------


def test_36_tokens_of_other_files_are_not_used(tmp_path: Path) -> None:
    stage1, stage2 = write_configs(tmp_path)
    assert run("prod9-train-autoencoder", "train", "--config", stage1, "--json").code == 0
    assert run("prod9-train-transformer", "train", "--config", stage2, "--json").code == 0
    manifest = tmp_path / "stage2" / "store" / "manifest.json"
    before = {item["key"] for item in json.loads(manifest.read_text())["items"]}
    changed = first(tmp_path / "cohort", "t2f")
    image = nib.load(changed)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), changed)
    ran = run(
        "prod9-train-transformer", "train", "--config", stage2, "--resume", "--set", "training.max_steps=5"
    )
    assert ran.code == 0, ran.err
    after = {item["key"] for item in json.loads(manifest.read_text())["items"]}
    assert len(after - before) in (4, 8), "one case anew, mirrored where it is trained on"
    assert len(before & after) > 0, "the others are kept"
