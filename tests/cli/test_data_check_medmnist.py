"""``prod9 data check`` and ``info`` on MedMNIST3D files."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_data_check import _PROBE
from tests.fixtures import write_medmnist3d
from tests.harness import run


def rewrite(path: Path, **changes: Any) -> None:
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez_compressed(path, **(content | changes))


def images(path: Path, part: str) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays[f"{part}_images"]


def check(path: Path, *more: object) -> tuple[int, dict[str, Any], dict[str, list[str]]]:
    before = sorted((p, p.stat().st_mtime_ns) for p in path.parent.rglob("*"))
    ran = run("prod9", "data", "check", path, "--json", *more)
    assert sorted((p, p.stat().st_mtime_ns) for p in path.parent.rglob("*")) == before, (
        "a check writes nothing"
    )
    messages: dict[str, list[str]] = {"error": [], "warning": [], "note": []}
    for finding in ran.json["findings"]:
        messages[finding["level"]].append(finding["message"])
    return ran.code, ran.json, messages


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_medmnist3d(tmp_path / "data", (22, 11, 11))


def test_counts_and_classes_from_the_headers_alone(file: Path) -> None:
    code, facts, messages = check(file)
    assert (code, messages["error"], messages["warning"]) == (0, [], [])
    assert facts["parts"] == {"train": 22, "val": 11, "test": 11}
    assert facts["classes"]["train"]["liver"] == 2
    assert facts["classes"]["test"]["pancreas"] == 1
    assert (facts["shapes"], facts["types"], facts["deep"]) == ({"28×28×28": 44}, {"uint8": 44}, False)
    assert facts["published"] is None


def test_a_deep_check_and_its_page(file: Path, tmp_path: Path) -> None:
    code, facts, messages = check(file, "--deep")
    assert (code, messages["error"], facts["published"]) == (0, [], False)
    assert "not the published file" in messages["note"][0]
    assert facts["intensities"]["organmnist3d"]["p100"] > 200
    ran = run("prod9", "data", "check", file, "--html", tmp_path / "out" / "page.html")
    assert ran.code == 0, ran.err
    assert "liver 2" in ran.out
    text = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 44
    assert "<svg" in text


def test_it_imports_no_torch(file: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PROBE, str(file)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.split()[-1]) < 1.0


def test_the_same_sample_twice(file: Path) -> None:
    train, test = images(file, "train").copy(), images(file, "test").copy()
    train[5], test[3] = train[2], train[2]
    rewrite(file, train_images=train, test_images=test)
    assert check(file)[0] == 0, "headers cannot tell"
    code, _, messages = check(file, "--deep")
    assert code == 1
    (leak,), (double,) = messages["error"], messages["warning"]
    for text in (
        str(file),
        "organmnist3d-test-00003",
        "organmnist3d-train-00002",
        "scores on test",
        "without it",
    ):
        assert text in leak
    assert "organmnist3d-train-00005, got that of organmnist3d-train-00002" in double


def test_samples_of_one_intensity_are_counted(file: Path) -> None:
    val = images(file, "val").copy()
    val[:4] = 0
    rewrite(file, val_images=val)
    code, _, messages = check(file, "--deep")
    assert code == 0
    assert "4 of 11 val samples are of one intensity" in messages["warning"][0]
    assert len(messages["warning"]) == 1, "they are not told as doubles of each other too"


def test_a_flipped_bit_is_found_by_the_checksum(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("test_images.npy")
    raw = bytearray(file.read_bytes())
    raw[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 4
    file.write_bytes(bytes(raw))
    assert check(file)[0] == 0, "headers cannot tell"
    code, _, messages = check(file, "--deep")
    assert code == 1
    for text in (str(file), "test_images is damaged", "download it again"):
        assert text in messages["error"][0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"train_labels": np.full((22, 1), 11, np.uint8)},
            "expected labels 0 to 10 for organmnist3d, got 11",
        ),
        (
            {"val_images": np.zeros((0, 28, 28, 28), np.uint8), "val_labels": np.zeros((0, 1))},
            "samples in val",
        ),
        ({"test_images": np.zeros((11, 28, 28), np.uint8)}, "expected test_images uint8 [N 28 28 28]"),
    ],
)
def test_what_training_would_stop_at(file: Path, change: dict[str, Any], text: str) -> None:
    rewrite(file, **change)
    code, _, messages = check(file)
    assert code == 1
    assert str(file) in messages["error"][0]
    assert text in messages["error"][0]


def test_shapes_and_absent_classes_are_told(tmp_path: Path) -> None:
    path = write_medmnist3d(tmp_path, (2, 1, 2), name="adrenalmnist3d", num_classes=2)
    code, facts, messages = check(path)
    assert code == 0
    assert "binary shapes" in messages["note"][0]
    assert "no val sample is of hyperplasia" in messages["warning"][0]
    assert facts["names"] == {"adrenalmnist3d": 5}


def test_names_and_options_that_do_not_fit(file: Path, tmp_path: Path) -> None:
    for args, code, text in (
        ((file.parent,), 2, "organmnist3d.npz"),
        ((file, "--layout", "bids"), 2, "--layout"),
        ((tmp_path / "brain.npz",), 1, "expected organmnist3d, nodulemnist3d"),
        ((tmp_path / "vesselmnist3d.npz",), 1, "nothing there"),
    ):
        ran = run("prod9", "data", "check", *args)
        assert ran.code == code, ran.err
        assert text in ran.err


def test_the_fingerprint(file: Path, tmp_path: Path) -> None:
    ran = run("prod9", "data", "info", file, "--output", tmp_path / "fp.json")
    assert ran.code == 0, ran.err
    assert "Suggested: data.grid [32, 32, 32]" in ran.out
    content = json.loads((tmp_path / "fp.json").read_text())
    assert (content["name"], content["size"], content["grid"]) == ("organmnist3d", 28, [32, 32, 32])
    assert content["root"] == str(file.parent)
