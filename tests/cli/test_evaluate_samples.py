"""``prod9 evaluate samples`` from outside: calibrated samples, and every kind of folder it has to refuse."""

import json
from pathlib import Path

import numpy as np
import pytest

from prod9 import volumes
from prod9.data.splits import Split
from prod9.evaluation.report.page import Sources, write_report
from tests.evaluation.report.folders import write_run
from tests.harness import run

SIDE = 16
COUNT = 6


def smooth(case: int, word: str) -> np.ndarray:
    """Return what can be known of a scan: 0 outside of a ball, 200 to 1000 inside."""
    x = np.linspace(-1, 1, SIDE)
    a, b, c = np.meshgrid(x, x, x, indexing="ij")
    level = 600 + 300 * np.sin(3 * a + case) * np.cos(2 * b) + (50 if word == "t2f" else 0) * c
    return np.where(a**2 + b**2 + c**2 < 0.9, level, 0.0)


def unsure(case: int, word: str, seed: int) -> np.ndarray:
    """Return a scan with an error whose size differs from voxel to voxel."""
    noise = np.random.default_rng([case, len(word), ord(word[1]), seed]).standard_normal((SIDE,) * 3)
    base = smooth(case, word)
    size = 5 + 80 * (np.indices(base.shape)[0] / SIDE) ** 2
    return np.where(base > 0, np.maximum(base + size * noise, 1.0), 0.0)


def write_case(root: Path, case: int, word: str, *, samples: int = 0, affine=None, gain: float = 1.0) -> Path:
    name = f"BraTS-GLI-{case:05d}-000"
    (root / name).mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    if not samples:
        volumes.write(root / name / f"{name}-{word}.nii.gz", unsure(case, word, 0), affine)
        seg = np.zeros((SIDE,) * 3)
        seg[6:9, 6:9, 6:9] = 3
        volumes.write(root / name / f"{name}-seg.nii.gz", seg, affine, dtype=np.uint8)
        return root
    drawn = [gain * unsure(case, word, 1 + k) for k in range(samples)]
    for k, data in enumerate(drawn):
        volumes.write(root / name / f"{name}-{word}_{k:04d}.nii.gz", data, affine)
    volumes.write(root / name / f"{name}-{word}.nii.gz", np.mean(drawn, axis=0), affine)
    volumes.write(root / name / f"{name}-{word}_uncertainty.nii.gz", np.std(drawn, axis=0), affine)
    return root


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    for case in range(5):
        for word in ("t1n", "t2f"):
            write_case(root, case, word)
    return root


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sampled")
    for case in range(4):
        for word in ("t1n", "t2f"):
            write_case(root, case, word, samples=COUNT, gain=3.0)
    return root


def evaluate(*args: object, code: int = 0):
    ran = run("prod9", "evaluate", "samples", *args)
    assert ran.code == code, ran.err
    return ran


def test_calibrated_samples_in_tables_json_and_report(real: Path, sampled: Path, tmp_path: Path) -> None:
    out = write_run(tmp_path, data=real) / "evaluation"
    ran = evaluate(real, sampled, "-o", out)
    for word in ("samples in the brain: 48 of 4 patients", "coverage_90", "calibrated", "FLAIR", "Written:"):
        assert word in ran.out
    result = json.loads((out / "evaluation.json").read_text())
    assert result["settings"]["num_samples"] == COUNT
    assert result["left_out"] == [], "the mean and the uncertainty beside the samples are no samples"
    scores = {(r["metric"], r["modality"], r["region"]): r for r in result["scores"]}
    for level in (50, 80, 90, 95):
        row = scores[f"coverage_{level}", "all", "brain"]
        assert row["value"] == pytest.approx(level / 100, abs=0.03)
        assert row["floor"] == level / 100
        assert row["low"] <= row["value"] <= row["high"]
    spread = scores["spread_correlation", "FLAIR", "brain"]
    assert spread["value"] == pytest.approx(spread["floor"], abs=0.05)
    assert spread["value"] > 0.25
    assert (spread["num_generated"], spread["num_real"], spread["patients_real"]) == (4 * COUNT, 4, 4)
    assert scores["spread_ratio", "T1", "brain"]["value"] == pytest.approx(1.0, abs=0.05)
    assert scores["crps", "all", "brain"]["value"] == pytest.approx(
        scores["crps", "all", "brain"]["floor"], rel=0.1
    )
    # A sample has the error of the truth and its own, the mean of N a N-th of the latter.
    gap = scores["psnr_mean", "all", "brain"]["value"] - scores["psnr_samples", "all", "brain"]["value"]
    assert gap == pytest.approx(10 * np.log10(2 / (1 + 1 / COUNT)), abs=0.2)
    assert scores["spectrum_ratio", "all", "brain"]["value"] < 0.5
    assert scores["psnr_mean", "all", "tumour"]["num_real"] == 8
    curves = {(curve["name"], curve["modality"]): curve["points"] for curve in result["curves"]}
    for point in [*curves["calibration", "T1"], *curves["calibration_ranks", "all"]]:
        assert point["coverage"] == pytest.approx(point["nominal"], abs=0.04)
        assert point["low"] <= point["coverage"] <= point["high"]
    text = write_report(out.parent, tmp_path / "report.html", Sources()).read_text(encoding="utf-8")
    for words in ("intervals by their nominal level", "between ordered samples", "model whose samples"):
        assert words in text


def test_without_the_fit_brightness_counts(real: Path, sampled: Path, tmp_path: Path) -> None:
    evaluate(real, sampled, "--no-fit", "--modality", "T1", "--replicates", 0, "-o", tmp_path)
    result = json.loads((tmp_path / "evaluation.json").read_text())
    scores = {r["metric"]: r["value"] for r in result["scores"] if r["region"] == "brain"}
    assert scores["psnr_mean"] < 15.0
    assert scores["coverage_90"] < 0.5
    assert {r["modality"] for r in result["scores"]} == {"all"}


def test_test_patients_alone(real: Path, sampled: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    patients = [f"BraTS-GLI-{k:05d}" for k in range(5)]
    Split(tuple(patients[:2]), (), tuple(patients[2:])).save(file)
    evaluate(real, sampled, "--split", file, "--replicates", 0, "-o", tmp_path)
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["patients"] == {"real": 2}
    assert {row["case"] for row in result["cases"]} == {"BraTS-GLI-00002-000", "BraTS-GLI-00003-000"}


def test_one_sample(real: Path, tmp_path: Path) -> None:
    made = write_case(tmp_path / "made", 0, "t1n", samples=1)
    ran = evaluate(real, made, "-o", tmp_path, code=1)
    assert "expected two samples or more of BraTS-GLI-00000-000 T1, got one" in ran.err
    assert "--num-samples" in ran.err
    for path in made.rglob("*_0000.nii.gz"):
        path.unlink()
    ran = evaluate(real, made, "-o", tmp_path, code=1)
    assert "expected several samples of each case" in ran.err


def test_unequal_numbers(real: Path, tmp_path: Path) -> None:
    made = write_case(tmp_path / "made", 0, "t1n", samples=3)
    write_case(made, 1, "t1n", samples=2)
    ran = evaluate(real, made, "-o", tmp_path, code=1)
    assert "expected 3 samples as of BraTS-GLI-00000-000, got 2 of BraTS-GLI-00001-000" in ran.err


def test_missing_truths(real: Path, tmp_path: Path) -> None:
    made = write_case(tmp_path / "made", 0, "t1n", samples=2)
    write_case(made, 77, "t1n", samples=2)
    ran = evaluate(real, made, "-o", tmp_path, code=1)
    assert "expected a real T1 volume of BraTS-GLI-00077-000 to compare with, got none" in ran.err
    assert "--skip-bad" in ran.err
    ran = evaluate(real, made, "--skip-bad", "--replicates", 0, "-o", tmp_path)
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["patients"] == {"real": 1}
    assert "BraTS-GLI-00077" in result["skipped"][0]["file"]


def test_other_grids(real: Path, tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[0, 3] = 0.5
    made = write_case(tmp_path / "made", 0, "t1n", samples=2, affine=moved)
    ran = evaluate(real, made, "-o", tmp_path, code=1)
    assert "expected the voxel grid of" in ran.err
    assert "--resample" in ran.err
    evaluate(real, made, "--resample", "--replicates", 0, "-o", tmp_path)


def test_damaged_files(real: Path, tmp_path: Path) -> None:
    made = write_case(tmp_path / "made", 0, "t1n", samples=2)
    bad = next(made.rglob("*_0001.nii.gz"))
    bad.write_bytes(bad.read_bytes()[:-40])
    ran = evaluate(real, made, "-o", tmp_path, code=1)
    assert bad.name in ran.err
    ran = evaluate(real, made, "--skip-bad", "-o", tmp_path, code=1)
    assert "at least one readable case" in ran.err
