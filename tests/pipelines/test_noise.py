"""The noise of scans, added to volumes that have less."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prod9.measures.noise import noise_level
from prod9.pipelines.noise import ScanNoise, draw_level

HEAD = np.zeros((28, 28, 28), bool)
HEAD[3:25, 3:25, 3:25] = True
LEVELS = {"T1": [0.02, 0.03, 0.04]}


def head_with(level: float) -> np.ndarray:
    drawn = np.random.default_rng(5).normal(0.5, level, HEAD.shape) if level else np.full(HEAD.shape, 0.5)
    return np.where(HEAD, drawn, 0.004).astype(np.float32)  # decoders leave a haze


def measured(volume: np.ndarray) -> float:
    return noise_level(torch.from_numpy(volume), torch.from_numpy(HEAD)).item()


@given(own=st.floats(0.0, 0.03), level=st.floats(0.0, 0.06))
def test_the_result_has_the_level_or_its_own_where_that_is_higher(own: float, level: float) -> None:
    made = ScanNoise(levels=LEVELS, noise=level).sharpen(head_with(own), "T1", seed=1)
    assert measured(made) == pytest.approx(max(own, level), rel=0.15, abs=1e-6)
    assert made.dtype == np.float32
    assert np.array_equal(made > 0, HEAD)


def test_levels_are_drawn_from_those_of_scans() -> None:
    noise = ScanNoise(levels=LEVELS)
    found = [measured(noise.sharpen(head_with(0.0), "T1", seed=seed)) for seed in range(30)]
    assert 0.018 < min(found) < 0.025 < 0.035 < max(found) < 0.042
    assert np.array_equal(*(noise.sharpen(head_with(0.0), "T1", seed=3) for _ in range(2)))
    assert [draw_level(LEVELS["T1"], share) for share in (0, 0.25, 1)] == pytest.approx([0.02, 0.025, 0.04])
    assert noise.settings == {"noise": "scans"}
    assert ScanNoise(levels={}, noise=0.1).settings == {"noise": 0.1}


def test_without_known_levels_or_at_0_nothing_changes_inside() -> None:
    soft = head_with(0.01)
    for made in (
        ScanNoise(levels=LEVELS).sharpen(soft, "PET", seed=0),
        ScanNoise(levels=LEVELS, noise=0.0).sharpen(soft, "T1", seed=0),
    ):
        assert np.array_equal(made, np.where(HEAD, soft, 0))
