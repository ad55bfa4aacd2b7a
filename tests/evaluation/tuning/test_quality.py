"""The verdict on sets whose place is known: scans are as good as scans, damage is worse, copies lack variety."""

import math
from pathlib import Path

import pytest
import torch

from prod9.evaluation.judges.features import RandomFeatures
from prod9.evaluation.sets.entries import BadFiles, Entry
from prod9.evaluation.sets.rows import describe_set
from prod9.evaluation.tuning.quality import judge, pair_of
from tests.evaluation.conftest import toy_brains

EXTRACTOR = RandomFeatures(seed=0)


class FromMemory:
    def __init__(self, volumes):
        self.volumes = volumes

    def read(self, entry):
        return self.volumes[int(entry.case_id)][None]


def rows_of(volumes):
    entries = [Entry(str(k), f"p{k}", "T1", Path(str(k))) for k in range(len(volumes))]
    return describe_set(entries, FromMemory(volumes), [EXTRACTOR], BadFiles(skip=False))


def verdict(generated, scans):
    return judge(pair_of(rows_of(generated), rows_of(scans), seed=0, replicates=0), EXTRACTOR.name)


@pytest.fixture(scope="module")
def brains():
    volumes = toy_brains(48, seed=0)[0][::2]  # of one class
    return volumes[:24], volumes[24:]


def test_other_scans_score_1_and_noise_scores_worse(brains):
    scans, others = brains
    noise = 0.2 * torch.randn(others.shape, generator=torch.Generator().manual_seed(0))
    honest, noisy = verdict(others, scans), verdict((others + noise * (others > 0)).clamp(0, 1), scans)
    assert 1.0 <= honest.loss < 1.6
    assert honest.diversity == pytest.approx(1.0, abs=0.25)
    assert noisy.loss > 2 * honest.loss
    assert honest.loss == pytest.approx(math.prod(honest.multiples.values()) ** (1 / 4))
    assert set(honest.scores) >= {"kid", "radiomic_distance", "spectrum_distance_db", "ms_ssim_pairs"}


def test_copies_of_one_scan_have_no_diversity(brains):
    scans, others = brains
    copies = others[:1].expand(24, -1, -1, -1, -1) + 1e-4 * torch.rand(24, 1, 1, 1, 1)
    found = verdict(copies.clamp(0, 1), scans)
    assert found.diversity < 0.1
    # MS-SSIM of copies is 1 up to rounding, so the diversity may be exactly 0, which no ratio can express.
    expected = 1 / found.diversity if found.diversity > 0 else math.inf
    assert found.multiples["diversity"] == pytest.approx(expected)
