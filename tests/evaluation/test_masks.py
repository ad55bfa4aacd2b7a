"""Scores of masks: closed forms, floors near 1 for training masks themselves, and copies by name."""

from pathlib import Path

import numpy as np
import pytest

from prod9.data.lesions import Lesion, LesionFile
from prod9.evaluation.masks import compare_masks, describe
from prod9.volumes import write
from tests.harness import run

SIDE, MM = 24, 6.0


def mask(rng: np.random.Generator, *, places: int = 1, radius: float = 3.0, shift: float = 0.0) -> np.ndarray:
    axes = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1)
    whole = np.zeros((SIDE,) * 3, bool)
    for _ in range(places):
        centre = rng.uniform(7, 17, 3) + np.array([shift, 0, 0])
        whole |= ((axes - centre) ** 2).sum(-1) < (radius * rng.uniform(0.7, 1.3)) ** 2
    return whole.astype(np.uint8)


def folder(path: Path, count: int, seed: int, **how: float) -> Path:
    """Write masks, each with a scan of a box-shaped head beside it."""
    rng = np.random.default_rng(seed)
    scan = np.zeros((SIDE,) * 3, np.float32)
    scan[1:-1, 1:-1, 1:-1] = rng.random((SIDE - 2,) * 3) + 1
    for k in range(count):
        case = path / f"BraTS-GLI-{k:05d}-000"
        case.mkdir(parents=True)
        affine = np.diag([MM, MM, MM, 1.0])
        write(case / f"{case.name}-seg.nii.gz", mask(rng, **how), affine, dtype=np.uint8)
        write(case / f"{case.name}-t1n.nii.gz", scan, affine)
    return path


def files(path: Path) -> list[LesionFile]:
    return [LesionFile.of(one) for one in sorted(path.rglob("*-seg.nii.gz"))]


def test_one_mask_is_measured_by_hand() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:6, 4:6, 4:6], labels[12:14, 4:6, 4:6] = 1, 3
    labels[19, 19, 19] = 2  # a speck of 0.064 ml
    found = describe("x", "p", Lesion(labels, np.ones((20, 20, 20), bool), np.diag([4.0, 4.0, 4.0, 1.0])))
    assert found is not None
    assert found.ml == pytest.approx(25 * 0.064)
    assert found.pieces == 2
    centre = (16 * 3.5 + 8 * 12.5 + 19) / 25
    assert found.place[0] == pytest.approx((centre + 0.5) / 20)
    assert describe("x", "p", Lesion(0 * labels, labels == 0, np.eye(4))) is None


def test_masks_of_one_kind_reach_the_floor_and_others_do_not(tmp_path: Path) -> None:
    training = files(folder(tmp_path / "training", 40, 0))
    like = compare_masks(files(folder(tmp_path / "like", 20, 1)), training, replicates=50)
    assert like.matched == 20
    assert all(score.ratio < 2.5 for score in like.scores)
    assert not like.copies
    volume, _, place = compare_masks(
        files(folder(tmp_path / "large", 20, 2, radius=5.0)), training, replicates=50
    ).scores
    assert volume.value == pytest.approx(3 * np.log(5 / 3), rel=0.3)
    assert volume.ratio > 4
    _, pieces, place = compare_masks(
        files(folder(tmp_path / "other", 20, 3, places=3, shift=4.0, radius=2.0)), training, replicates=50
    ).scores
    assert pieces.value > 0.8
    assert place.value > place.high


def test_the_command_names_copies(tmp_path: Path) -> None:
    training = folder(tmp_path / "training", 8, 0)
    made = folder(tmp_path / "made", 4, 5)
    ran = run("prod9", "evaluate", "masks", made, "--training", training, "--replicates", 20, "--json")
    assert ran.code == 0, ran.err
    assert [score["measure"] for score in ran.json["scores"]] == ["volume", "pieces", "place"]
    source = training / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-seg.nii.gz"
    copy = made / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-seg.nii.gz"
    copy.write_bytes(source.read_bytes())
    ran = run("prod9", "evaluate", "masks", made, "--training", training, "--replicates", 20)
    assert ran.code == 1
    assert f"got a copy of {source}" in ran.err
    few = run("prod9", "evaluate", "masks", folder(tmp_path / "few", 2, 7), "--training", training)
    assert few.code == 1
    assert "at least 4" in few.err
