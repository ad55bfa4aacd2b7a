"""NaN never ranks and never passes: in features, sources, thresholds and results."""

import json
import math

import pytest
import torch

from prod9.errors import DataError
from prod9.evaluation.audit.volumes import AuditSets, run_audit
from prod9.evaluation.baselines import fit_copy
from prod9.evaluation.sets.entries import BadFiles
from prod9.evaluation.sets.rows import describe_set
from prod9.evaluation.sets.volume_sets import find_volumes
from prod9.json_files import without_nan
from prod9.measures.metrics import frechet_distance, principal_frechet
from tests.evaluation.audit_cohort import head, write_heads
from tests.evaluation.test_rows import ENTRIES, Counting


class Broken:
    """An embedding or extractor that is no number for one volume."""

    name, mirrors, scales = "broken", ((),), ()

    def __init__(self, wrong):
        self.wrong = wrong
        self.seen = 0

    def __call__(self, x, *, mirrored=False):
        self.seen += 1
        generator = torch.Generator().manual_seed(self.seen)
        row = torch.nn.functional.normalize(torch.randn(1, 8, generator=generator), dim=1)
        return row * (math.nan if self.seen == self.wrong else 1.0)

    def planes(self, x):
        return tuple(torch.zeros(1, 2, 3) for _ in range(3))


def test_r23_a_volume_without_a_distance_does_not_pass_an_audit(tmp_path):
    folders = [
        write_heads(tmp_path / name, [head(first + k) for k in range(count)])
        for name, first, count in (("train", 0, 5), ("heldout", 100, 9), ("made", 1000, 3))
    ]
    sets = AuditSets(*(find_volumes(folder) for folder in folders))
    for wrong in (2, 7, 15):  # of each set
        common = {"false_alarms": 0.1, "max_share": 0.5}
        with pytest.raises(DataError, match="expected finite features, got NaN"):
            run_audit(sets, [Broken(wrong)], bad=BadFiles(skip=False), **common)
    result = run_audit(sets, [Broken(15)], bad=BadFiles(skip=True), **common)
    assert not result.passed
    assert len(result.sets.generated) == 2


def test_r23_a_volume_without_features_is_named():
    with pytest.raises(DataError, match="expected finite features, got NaN"):
        describe_set(ENTRIES[:4], Counting(), [Broken(3)], BadFiles(skip=False))
    bad = BadFiles(skip=True)
    assert len(describe_set(ENTRIES[:4], Counting(), [Broken(3)], bad)) == 3
    assert len(bad.skipped) == 1


def test_r23_distances_of_what_is_not_finite_are_no_numbers():
    a = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for wrong in (math.nan, math.inf):
        b = a.clone()
        b[2, 3] = wrong
        assert frechet_distance(a, b).isnan()
        assert principal_frechet(b, a, directions=2).isnan()


def test_r23_a_source_without_a_score_is_not_the_best():
    target = torch.rand(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    good = target.clone()
    worse = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) + 0.1
    empty = torch.full_like(target, math.nan)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        sources = torch.cat([(empty, good, worse)[k] for k in order], dim=1)
        assert order[fit_copy(sources, target).source] == 1


def test_r23_results_hold_null_for_what_is_no_number():
    plain = without_nan({"a": math.nan, "b": [1.0, math.inf, {"c": -math.inf}], "d": "x", "e": None})
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "a": None,
        "b": [1.0, None, {"c": None}],
        "d": "x",
        "e": None,
    }
