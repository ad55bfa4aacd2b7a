"""``prod9 evaluate control`` and ``prod9 evaluate patients`` from outside, on brains with bright lesions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prod9 import volumes
from prod9.data.splits import Split
from prod9.evaluation.anatomy.agreement import mutual_information, symmetric_dice
from tests.harness import run

SIDE = 24
LABELS = {"t1c": "T1ce", "t2f": "FLAIR"}
STEPS = ("--training-steps", 30, "--replicates", 50)


def radius(centre: np.ndarray, side: int = SIDE) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij")
    return np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)))


def lesion(case: int, *, side: int = SIDE) -> np.ndarray:
    """Return labels: oedema around a ring of enhancing tumour around a necrotic core."""
    rng = np.random.default_rng(case)
    away = radius(np.array([5.0, 0.0, 0.0]) + 2 * rng.standard_normal(3).clip(-1, 1), side)
    seg = np.zeros((side,) * 3, dtype=np.uint8)
    seg[away < 5], seg[away < 3.5], seg[away < 2] = 2, 3, 1
    return seg


def scan(case: int, word: str, seg: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return a brain in [0, 1]: T1ce shows the ring, FLAIR the whole tumour."""
    level = np.array([0.4, 0.2, 0.4, 0.9] if word == "t1c" else [0.4, 0.8, 0.9, 0.8])[seg]
    noise = 0.02 * np.random.default_rng([case, len(word), seed]).standard_normal(seg.shape)
    return np.where(radius(np.zeros(3), seg.shape[0]) < 11, (level + noise).clip(0.05, 1), 0).astype(
        np.float32
    )


def write_patients(root: Path, count: int, *, first: int = 0, names="BraTS-GLI", apart: bool = False) -> Path:
    """Write patients; with ``apart``, each modality has the tumour of another patient."""
    for k in range(first, first + count):
        case = f"{names}-{k:05d}-000"
        (root / case).mkdir(parents=True)
        for j, word in enumerate(LABELS):
            seg = lesion(k + 50 * j if apart else k)
            if apart and j:
                seg = seg[::-1]
            volumes.write(root / case / f"{case}-{word}.nii.gz", scan(k, word, seg), np.eye(4))
        volumes.write(root / case / f"{case}-seg.nii.gz", lesion(k), np.eye(4), dtype=np.uint8)
    return root


def write_steered(root: Path, count: int, *, shown: bool, side: int = SIDE) -> Path:
    """Write volumes as ``prod9 generate control`` names them; unless ``shown``, without what was asked for."""
    root.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        source, seg = f"BraTS-GLI-{200 + k:05d}-000", lesion(200 + k, side=side)
        volumes.write(root / f"{source}_seg.nii.gz", seg, np.eye(4), dtype=np.uint8)
        for word, label in LABELS.items():
            data = scan(200 + k, word, seg if shown else 0 * seg, seed=1)
            volumes.write(root / f"{source}_{label}_0000.nii.gz", data, np.eye(4))
    return root


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("real"), 12)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("split") / "split.json"
    patients = tuple(f"BraTS-GLI-{k:05d}" for k in range(12))
    Split(patients[:8], (), patients[8:]).save(file)
    return file


def evaluate(*args: object, code: int = 0):
    ran = run("prod9", "evaluate", *args)
    assert ran.code == code, ran.err
    return ran


def scores_in(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["scores"]


def test_classes_that_are_shown_and_that_are_not(real: Path, split: Path, tmp_path: Path) -> None:
    found = {}
    for shown in (True, False):
        made = write_steered(tmp_path / f"steered{shown}", 3, shown=shown)
        ran = evaluate("control", real, made, "--split", split, *STEPS, "-o", tmp_path / str(shown))
        rows = scores_in(tmp_path / str(shown))
        found[shown] = {(r["metric"], r["modality"], r["region"]): r for r in rows}
    for word in ("steered", "enhancing", "tumour_core", "Written:"):
        assert word in ran.out
    ring = "dice_steered", "T1ce", "enhancing"
    assert found[True][ring]["value"] > 0.4
    assert found[False][ring]["value"] < 0.2
    assert found[True][ring]["floor"] == found[True]["dice_real", "T1ce", "enhancing"]["value"]
    row = found[True]["dice_steered", "all", "whole_tumour"]
    assert (row["num_generated"], row["patients_generated"]) == (6, 3)
    assert row["low"] <= row["value"] <= row["high"]
    assert found[True]["dice_real", "all", "whole_tumour"]["patients_real"] == 4
    result = json.loads((tmp_path / "True" / "evaluation.json").read_text())
    assert len(result["cases"]) == (3 + 4) * 2 * 3


def test_steered_folders_that_cannot_be_used(real: Path, split: Path, tmp_path: Path) -> None:
    made = write_steered(tmp_path / "steered", 2, shown=True)
    ran = evaluate("control", real, made, *STEPS, "-o", tmp_path / "out", code=2)
    assert "--split FILE" in ran.err
    next(made.glob("*_seg.nii.gz")).unlink()
    ran = evaluate("control", real, made, "--split", split, *STEPS, "-o", tmp_path / "out", code=1)
    assert "expected the segmentation that steered it beside it" in ran.err
    mixed = write_steered(tmp_path / "mixed", 2, shown=True)
    write_steered(mixed, 1, shown=True, side=26)
    ran = evaluate("control", real, mixed, "--split", split, *STEPS, "-o", tmp_path / "out", code=1)
    assert "expected a volume of (26, 26, 26) voxels as the others, got (24, 24, 24)" in ran.err


def test_patients_that_agree_and_that_do_not(real: Path, split: Path, tmp_path: Path) -> None:
    values = {}
    for apart in (False, True):
        made = write_patients(tmp_path / f"made{apart}", 3, first=300, names="BraTS-SYN", apart=apart)
        options = ("--modality", "T1ce", "--modality", "FLAIR", "--split", split)
        ran = evaluate("patients", real, made, *options, *STEPS, "-o", tmp_path / str(apart))
        rows = scores_in(tmp_path / str(apart))
        values[apart] = {(r["metric"], r["region"]): r for r in rows}
    for word in ("agreement of modalities", "T1ce + FLAIR", "tumour_agreement"):
        assert word in ran.out
    together, apart = (values[a]["tumour_agreement", "T1ce + FLAIR"] for a in (False, True))
    assert together["value"] == pytest.approx(together["floor"], abs=0.25)
    assert apart["value"] < 0.5 * together["value"]
    information = [values[a]["mutual_information", "all"] for a in (False, True)]
    assert information[0]["value"] > information[1]["value"]
    assert information[0]["floor"] == information[1]["floor"]
    assert together["patients_real"] == 4
    ran = evaluate("patients", real, real, "--modality", "T1ce", *STEPS, "-o", tmp_path / "one", code=2)
    assert "expected two or more to compare, got T1ce" in ran.err


def test_mutual_information_of_determined_and_independent_volumes() -> None:
    a = 0.1 + 0.9 * torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(0))
    b = 0.1 + 0.9 * torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(1))
    assert mutual_information(a, a) == pytest.approx(1.0)
    assert mutual_information(a, 1.1 - a) > 0.9, "which tissue is brighter does not count"
    assert mutual_information(a, b) < 0.03
    assert mutual_information(a, b) == pytest.approx(mutual_information(b, a))
    halves = torch.where(torch.arange(24) < 12, 0.2, 0.8).expand(24, 24, 24)
    mixed = torch.where(torch.arange(24)[:, None] < 12, halves, 1.0 - halves)
    assert mutual_information(halves, mixed) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(mutual_information(torch.zeros(4, 4, 4), a[:4, :4, :4]))


def test_overlap_does_not_depend_on_the_order() -> None:
    a, b = torch.zeros(4, 1, 2, 2, 2, dtype=torch.bool), torch.zeros(4, 1, 2, 2, 2, dtype=torch.bool)
    a[0, :, 0], b[0, :, :, 0] = True, True
    a[1], b[2] = True, True
    expected = torch.tensor([0.5, 0.0, 0.0, torch.nan], dtype=torch.float64)
    for found in (symmetric_dice(a, b), symmetric_dice(b, a)):
        torch.testing.assert_close(found, expected, equal_nan=True)
