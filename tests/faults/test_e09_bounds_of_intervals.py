"""Intervals end where a score ends: with few patients, Student's factor leads beyond it."""

from pathlib import Path

import torch

from prod9.evaluation.covariates import CovariateSettings, _correlation, _Read
from prod9.evaluation.set_scores import _compare_diversity
from prod9.evaluation.sets.entries import Entry
from prod9.evaluation.sets.intervals import crossed_interval
from prod9.evaluation.sets.pair import Resampling, SetPair
from prod9.evaluation.sets.patients import REGIONS, PatientSet
from prod9.evaluation.sets.rows import SetRows
from prod9.evaluation.utility import UtilitySettings, _scores


def entries(count: int) -> tuple[Entry, ...]:
    return tuple(Entry(f"P{k}", f"P{k}", "T1", Path(f"P{k}_t1.nii.gz")) for k in range(count))


def test_a_rank_correlation_is_at_most_1() -> None:
    truth = torch.arange(8.0)[:, None]
    found = truth[[1, 0, 2, 3, 4, 6, 5, 7]]
    settings = CovariateSettings(table="", replicates=200)
    value, interval, _ = _correlation(_Read("real", "T1", entries(8), truth, found), 0, settings)
    assert interval is not None
    assert 0.9 < value < interval[1] <= 1.0


def test_similarities_of_pairs_are_at_most_1() -> None:
    rows = SetRows(
        entries(6), {}, {}, {"T1": torch.tensor([0.99, 0.6, 0.95])}, {"T1": torch.tensor([0, 1, 2])}
    )
    interval = _compare_diversity(SetPair(rows, rows, Resampling(100))).interval
    assert interval is not None
    assert interval[1] == 1.0


def test_a_dice_is_at_most_1() -> None:
    overlaps = torch.tensor([[0.99, 0.6, 0.95]]).expand(3, 3)
    free = crossed_interval(overlaps, replicates=200, seed=0)
    assert free is not None
    assert free[1] > 1.0
    names = ("A", "B", "C")
    patients = PatientSet(torch.zeros(3, 1, 2, 2, 2), torch.zeros(3, len(REGIONS), 2, 2, 2), names, names)
    values = {name: overlaps[..., None].expand(3, 3, len(REGIONS)) for name in ("real", "synthetic", "both")}
    settings = UtilitySettings(replicates=200)
    rows = list(_scores(values, dict.fromkeys(values, patients), patients, settings))
    assert {row["high"] for row in rows if row["metric"] == "dice"} == {1.0}
