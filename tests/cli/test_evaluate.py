"""``prod9 evaluate`` from outside: tables, JSON, CSV, and every kind of folder it has to refuse."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from prod9 import volumes
from prod9.data.splits import Split
from tests.harness import run

SIDE = 12
NAMES = ("t1n", "t1c", "t2w", "t2f")


def head(seed: int, name: str = "t1n") -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, SIDE)
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(x, x, x, indexing="ij")))
    level = 300 + 100 * NAMES.index(name) * (radius < 0.4)
    return np.where(radius < 0.9, level + 40 * rng.random(radius.shape), 0.0)


def write_patients(
    root: Path, count: int, *, names=("t1n", "t2f"), first: int = 0, noise: float = 0.0
) -> Path:
    for k in range(first, first + count):
        case = f"BraTS-GLI-{k:05d}-000"
        (root / case).mkdir(parents=True)
        rng = np.random.default_rng(1000 + k)
        seg = np.zeros((SIDE,) * 3)
        seg[3:8, 3:8, 3:8], seg[4:7, 4:7, 4:7], seg[5, 5, 5] = 2, 3, 1
        for name in names:
            data = head(k, name) + 150 * (seg > 0)
            data = np.where(data > 0, data + noise * rng.standard_normal(data.shape), 0.0)
            volumes.write(root / case / f"{case}-{name}.nii.gz", data, np.eye(4), dtype=np.int16)
        volumes.write(root / case / f"{case}-seg.nii.gz", seg, np.eye(4), dtype=np.uint8)
    return root


def write_flat(root: Path, count: int, *, label: str = "T1", affine=None, side: int = SIDE) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        data = head(100 + k)[:side, :side, :side] / 500
        volumes.write(root / f"{label}_{k:04d}.nii.gz", data, np.eye(4) if affine is None else affine)
    return root


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["scores"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("real"), 10)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("made"), 8)


def evaluate(*args, code: int = 0):
    ran = run("prod9", "evaluate", *args)
    assert ran.code == code, ran.err
    return ran


def test_folders_of_different_layouts(real: Path, flat: Path, tmp_path: Path) -> None:
    ran = evaluate("images", real, flat, "-o", tmp_path, "--replicates", 20, "--json")
    result = json.loads(ran.out)
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert result["sets"]["generated"] == {
        "path": str(flat), "cases": 8, "volumes": 8, "modalities": ["T1"]
    }  # fmt: skip
    assert result["sets"]["real"]["modalities"] == ["T1"], "only what both have is compared"
    frechet = next(row for row in result["scores"] if row["metric"] == "frechet_3d")
    assert frechet["extractor"] == "random-0"
    assert frechet["dimensions"] == 112
    assert frechet["low"] <= frechet["value"] <= frechet["high"]
    assert frechet["floor"] > 0.0
    assert frechet["matched"] > 0.0
    assert (frechet["num_generated"], frechet["num_real"], frechet["reliable"]) == (8, 10, False)
    with (tmp_path / "scores.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["metric"] for row in table] == [row["metric"] for row in result["scores"]]
    assert "Too few volumes to rely on" in ran.err


def test_paired(real: Path, tmp_path: Path) -> None:
    made = write_patients(tmp_path / "made", 3, noise=20.0)
    ran = evaluate("images", real, made, "--paired", "-o", tmp_path / "out", "--replicates", 20)
    scores = {(r["metric"], r["region"]): r for r in rows(tmp_path / "out") if r["modality"] == "all"}
    for region in ("whole", "brain", "tumour", "healthy"):
        assert 10 < scores["psnr", region]["value"] < 40
        assert scores["psnr", region]["num_real"] == 6
    assert scores["psnr", "whole"]["value"] > scores["psnr", "brain"]["value"]
    assert scores["ms_ssim", "whole"]["note"] == "1 scales, window 11"
    assert {"psnr_brasyn", "ssim_brasyn", "mae", "ssim"} <= {metric for metric, _ in scores}
    with (tmp_path / "out" / "cases.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 3 * 2 * 4
    for word in ("paired", "brain", "psnr", "floor", "Written:"):
        assert word in ran.out
    again = evaluate("images", real, made, "--paired", "-o", tmp_path / "out", code=2)
    assert "exists already" in again.err
    assert "--overwrite" in again.err


def test_test_patients_alone(real: Path, flat: Path, tmp_path: Path) -> None:
    patients = [f"BraTS-GLI-{k:05d}" for k in range(10)]
    file = tmp_path / "split.json"
    Split(tuple(patients[:4]), (), tuple(patients[4:])).save(file)
    evaluate("images", real, flat, "--split", file, "-o", tmp_path / "out", "--replicates", 0)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["sets"]["real"]["cases"] == 6
    Split(tuple(patients), (), ()).save(file)
    ran = evaluate("images", real, flat, "--split", file, "-o", tmp_path / "none", code=1)
    assert "expected test patients" in ran.err
    assert "data.split.test" in ran.err


def test_the_inception_score_needs_a_classifier(real: Path, tmp_path: Path) -> None:
    made = write_patients(tmp_path / "made", 6, first=50)
    ran = evaluate("images", real, made, "--inception-score", "-o", tmp_path / "a", code=2)
    assert "expected a classifier trained on the same labels, got none" in ran.err
    options = ("-x", "classifier", "--classifier-steps", 4, "--inception-score", "--replicates", 0)
    evaluate("images", real, made, *options, "-o", tmp_path / "b")
    found = {row["metric"]: row for row in rows(tmp_path / "b") if row["modality"] == "all"}
    assert 1.0 < found["inception_score"]["value"] < 2.0
    assert "of 10 real volumes that it did not see" in found["inception_score"]["note"]
    right = 10 * found["classifier_accuracy"]["value"]
    assert right == pytest.approx(round(right), abs=1e-4), "of ten volumes"
    stored = tmp_path / "b" / "classifier.safetensors"
    options = ("--classifier", stored, "--inception-score", "--replicates", 0)
    evaluate("images", real, made, *options, "-o", tmp_path / "c")
    again = {row["metric"]: row for row in rows(tmp_path / "c") if row["modality"] == "all"}
    assert again["inception_score"]["value"] == pytest.approx(found["inception_score"]["value"])
    other = write_flat(tmp_path / "t2", 6, label="T2")
    reals = write_flat(tmp_path / "t2real", 6, label="T2")
    ran = evaluate("images", reals, other, *options, "-o", tmp_path / "d", code=2)
    assert "expected one trained on T2, got one of FLAIR, T1" in ran.err
    ran = evaluate("images", other, reals, "-x", "classifier", "-o", tmp_path / "e", code=2)
    assert "at least 2 modalities" in ran.err


def test_no_matching_cases(real: Path, flat: Path, tmp_path: Path) -> None:
    ran = evaluate("images", real, flat, "--paired", "-o", tmp_path, code=1)
    assert "none in common" in ran.err
    assert "BraTS-GLI-00000-000 FLAIR" in ran.err
    assert "T1_0000 T1" in ran.err
    ran = evaluate("images", real, write_flat(tmp_path / "t2", 2, label="T2"), "-o", tmp_path, code=1)
    assert "modalities, FLAIR, T1, got T2" in ran.err
    ran = evaluate("images", real, tmp_path / "empty", "-o", tmp_path, code=1)
    assert "expected a folder with cases, got nothing" in ran.err


def test_different_grids(real: Path, tmp_path: Path) -> None:
    coarse = write_flat(tmp_path / "coarse", 6, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    ran = evaluate("images", real, coarse, "-o", tmp_path / "a", code=1)
    assert "expected voxels of" in ran.err
    assert "--spacing" in ran.err
    mixed = write_flat(tmp_path / "mixed", 4)
    write_flat(tmp_path / "mixed", 1, side=10)
    ran = evaluate("images", real, mixed, "-o", tmp_path / "a", code=1)
    assert "expected generated volumes of one grid" in ran.err
    assert "--grid" in ran.err
    evaluate("images", real, mixed, "--grid", 12, 12, 12, "--replicates", 0, "-o", tmp_path / "a")


def test_different_grids_of_a_pair(real: Path, tmp_path: Path) -> None:
    case, moved = "BraTS-GLI-00000-000", np.eye(4)
    moved[0, 3] = 0.5
    (tmp_path / "made" / case).mkdir(parents=True)
    volumes.write(tmp_path / "made" / case / f"{case}-t1n.nii.gz", head(0), moved)
    ran = evaluate("images", real, tmp_path / "made", "--paired", "-o", tmp_path / "a", code=1)
    assert "expected the voxel grid of" in ran.err
    assert "--resample" in ran.err
    evaluate("images", real, tmp_path / "made", "--paired", "--resample", "-o", tmp_path / "a")
    frechet = next(row for row in rows(tmp_path / "a") if row["metric"] == "frechet_3d")
    assert frechet["value"] is None
    assert frechet["note"] == "needs at least 2 volumes of each set, got 1 generated and 10 real"


def test_unreadable_files(real: Path, tmp_path: Path) -> None:
    made = write_flat(tmp_path / "made", 7)
    (made / "T1_0001.nii.gz").write_bytes(b"")
    content = (made / "T1_0002.nii.gz").read_bytes()
    (made / "T1_0002.nii.gz").write_bytes(content[:-40])
    data = head(3) / 500
    data[6, 6, 6] = np.nan
    volumes.write(made / "T1_0003.nii.gz", data, np.eye(4))
    volumes.write(made / "T1_0004.nii.gz", np.zeros((SIDE,) * 3), np.eye(4), dtype=np.int16)
    ran = evaluate("images", real, made, "-o", tmp_path / "out", code=1)
    assert "T1_0001.nii.gz" in ran.err
    assert "--skip-bad" in ran.err
    assert not (tmp_path / "out" / "evaluation.json").exists()
    ran = evaluate("images", real, made, "--skip-bad", "-o", tmp_path / "out", "--replicates", 0)
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert sorted(Path(item["file"]).name for item in result["skipped"]) == [
        f"T1_{k:04d}.nii.gz" for k in (1, 2, 3, 4)
    ]
    assert result["sets"]["generated"]["volumes"] == 3
    assert ran.err.count("Skipped:") == 4


def test_extractors_that_cannot_be_had(real: Path, flat: Path, tmp_path: Path) -> None:
    for option, words in (
        ("inception", "expected random, autoencoder, classifier or file:PATH, got inception"),
        ("autoencoder", "expected --autoencoder"),
        (f"file:{tmp_path / 'none.pth'}", "which does not exist"),
    ):
        ran = evaluate("images", real, flat, "-x", option, "-o", tmp_path / "out", code=2)
        assert words in ran.err
    (tmp_path / "mine.pth").write_bytes(b"x")
    ran = evaluate(
        "images", real, flat, "-x", f"file:{tmp_path / 'mine.pth'}", "-o", tmp_path / "out", code=2
    )
    assert "say which they are" in ran.err


def test_utility(real: Path, tmp_path: Path) -> None:
    made = write_patients(tmp_path / "made", 4, first=80)
    options = ("--modality", "FLAIR", "--training-steps", 2, "--seeds", 2, "--replicates", 20)
    ran = evaluate("utility", real, made, *options, "-o", tmp_path / "out", code=2)
    assert "--split FILE" in ran.err
    assert "--heldout DIR" in ran.err
    ran = evaluate("utility", real, made, *options, "--heldout", real, "-o", tmp_path / "out", code=1)
    assert "expected other patients than" in ran.err
    ran = evaluate(
        "utility", real, made, *options, "--heldout", made, "--grid", 8, 8, 8, "-o", tmp_path, code=2
    )
    assert "expected volumes of 9 voxels or more" in ran.err
    file = tmp_path / "split.json"
    patients = [f"BraTS-GLI-{k:05d}" for k in range(10)]
    Split(tuple(patients[:6]), (), tuple(patients[6:])).save(file)
    ran = evaluate("utility", real, made, *options, "--split", file, "-o", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    dice = {(r["metric"], r["trained_on"], r["region"]): r for r in result["scores"]}
    assert dice["dice", "both", "enhancing"]["num_training"] == 10
    row = dice["dice", "synthetic", "whole_tumour"]
    assert (row["num_training"], row["num_heldout"], row["num_seeds"], row["reliable"]) == (4, 4, 2, False)
    assert 0.0 <= row["low"] <= row["value"] <= row["high"] <= 1.0
    assert ("dice_share", "real", "whole_tumour") not in dice
    assert len(result["cases"]) == 3 * 2 * 4 * 3
    assert "trained on" in ran.out


def test_a_heldout_folder_and_different_seeds(real: Path, tmp_path: Path) -> None:
    heldout = write_patients(tmp_path / "heldout", 2, first=30)
    options = ("--modality", "FLAIR", "--training-steps", 2, "--seeds", 1, "--heldout", heldout)
    for seed in (0, 1):
        evaluate("utility", real, real, *options, "--seed", seed, "-o", tmp_path / str(seed))
    values = [[row["value"] for row in rows(tmp_path / str(seed))] for seed in (0, 1)]
    assert values[0] != values[1]
