"""Scores of pairs and of samples know the background whatever its value: a scan may be z-scored with it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prod9 import volumes
from prod9.evaluation.paired import regional_scores
from prod9.evaluation.samples.cases import Sampled, score_case
from prod9.evaluation.sets.volume_sets import BadFiles, Entry

SPACING = np.diag([2.0, 2.0, 2.0, 1.0])


def head_and_copies(count: int) -> list[np.ndarray]:
    """A head on a background of 0, and noisy copies of it."""
    rng = np.random.default_rng(0)
    inside = np.zeros((24, 24, 24), dtype=bool)
    inside[6:18, 6:18, 6:18] = True
    head = np.where(inside, rng.uniform(300, 900, inside.shape), 0)
    copies = [np.where(inside, head + rng.normal(0, 60, inside.shape), 0) for _ in range(count)]
    return [np.asarray(one, dtype=np.float32) for one in (head, *copies)]


def z_scored(raw: np.ndarray) -> np.ndarray:
    return ((raw - 400) / 95).astype(np.float32)


def test_pairs_have_the_same_scores_after_z_scoring() -> None:
    head, made = head_and_copies(1)
    seg = torch.zeros((1, 1, 24, 24, 24), dtype=torch.int64)
    seg[..., 8:12, 8:12, 8:12] = 1

    def scores(*pair: np.ndarray) -> dict[str, dict[str, float]]:
        return regional_scores(*(torch.from_numpy(one)[None, None] for one in pair), seg)

    plain, moved = scores(made, head), scores(z_scored(made), z_scored(head))
    for region, row in plain.items():
        assert moved[region] == pytest.approx(row, abs=1e-3), region
    assert plain["brain"]["psnr"] < plain["whole"]["psnr"] - 5


def test_samples_have_the_same_scores_after_z_scoring(tmp_path: Path) -> None:
    def scores(name: str, *raw: np.ndarray) -> dict[str, float]:
        entries = []
        for place, data in enumerate(raw):
            volumes.write(tmp_path / f"{name}_{place}.nii.gz", data, SPACING)
            entries.append(Entry("P1", "P1", "T1", tmp_path / f"{name}_{place}.nii.gz"))
        truth, *samples = entries
        found = score_case(Sampled(truth, samples), BadFiles(skip=False), fit=True, resample=False)
        assert found is not None
        return found.regions["brain"]

    head, *samples = head_and_copies(3)
    plain = scores("plain", head, *samples)
    moved = scores("moved", z_scored(head), *map(z_scored, samples))
    assert moved == pytest.approx(plain, abs=1e-3)
