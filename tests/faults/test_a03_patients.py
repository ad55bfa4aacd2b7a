"""Patients are what statistics draw, divide and count."""

import json

import numpy as np
import pytest
import torch

from prod9.evaluation.set_scores import Resampling, score_sets
from prod9.evaluation.sets.distribution import frechet_ratio
from prod9.evaluation.sets.entries import Entry
from prod9.evaluation.sets.intervals import crossed_interval, mean_interval, real_floor, score_interval
from prod9.evaluation.sets.manifold import polynomial_kernel, squared_mmd
from prod9.evaluation.sets.members import Members, as_members, number_members
from prod9.evaluation.sets.rows import SetRows, pair_patients
from prod9.measures.metrics import frechet_distance
from tests.cli.test_evaluate import evaluate, write_flat, write_patients

KINDS = ("T1", "T1ce", "T2", "FLAIR")


def correlated(patients, *, seed, dimensions=8, per_patient=4, own=1.0, scan=0.4):
    """Features of volumes that share what their patient is like: rows, and the patient of each."""
    generator = torch.Generator().manual_seed(seed)
    people = own * torch.randn(patients, dimensions, generator=generator)
    numbers = torch.arange(patients).repeat_interleave(per_patient)
    rows = people[numbers] + scan * torch.randn(len(numbers), dimensions, generator=generator)
    return rows, numbers


def coverage(patients, counts, *, replicates=100, trials=400):
    hits = 0
    rng = np.random.default_rng(0)
    for trial in range(trials):
        sizes = counts(rng, patients)
        owners = np.repeat(np.arange(patients), sizes)
        values = rng.normal(size=patients)[owners] + 0.4 * rng.normal(size=len(owners))
        order = rng.permutation(len(owners))  # the order of files says nothing
        low, high = mean_interval(
            torch.from_numpy(values[order]),
            replicates=replicates,
            seed=trial,
            patients=torch.from_numpy(owners[order]),
        )
        hits += low <= 0.0 <= high
    return hits / trials


@pytest.mark.parametrize("patients", [3, 8, 16, 40])
def test_a3_intervals_of_a_mean_cover_what_they_say(patients):
    assert 0.90 <= coverage(patients, lambda rng, n: np.full(n, 4)) <= 0.98


def test_a3_so_they_do_with_uneven_numbers_of_volumes():
    assert 0.90 <= coverage(16, lambda rng, n: rng.integers(2, 7, n)) <= 0.98


def test_a3_one_patient_has_no_interval_and_two_have_one():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert mean_interval(values, replicates=50, seed=0, patients=torch.zeros(4, dtype=torch.int64)) is None
    low, high = mean_interval(values, replicates=50, seed=0, patients=torch.tensor([0, 0, 1, 1]))
    assert low < 2.5 < high
    only = as_members(torch.zeros(4, dtype=torch.int64))
    assert score_interval(lambda i, j: 0.0, only, 9, replicates=10, seed=0) is None
    assert crossed_interval(torch.rand(3, 4), replicates=10, seed=0, patients=only.patients) is None


def test_a3_nan_takes_no_part_and_leaves_no_patient_behind():
    values = torch.tensor([1.0, torch.nan, 3.0, torch.nan])
    owners = torch.tensor([0, 0, 1, 2])
    without = mean_interval(values[[0, 2]], replicates=50, seed=0, patients=owners[[0, 2]])
    assert mean_interval(values, replicates=50, seed=0, patients=owners) == without
    assert mean_interval(torch.full((4,), torch.nan), replicates=50, seed=0, patients=owners) is None


def test_a3_doubling_every_volume_of_every_patient_changes_no_interval():
    values, owners = torch.randn(12, generator=torch.Generator().manual_seed(1)), torch.arange(12)
    once = mean_interval(values, replicates=50, seed=3, patients=owners)
    twice = mean_interval(values.repeat(3), replicates=50, seed=3, patients=owners.repeat(3))
    assert twice == pytest.approx(once)
    rows = values.expand(2, 12)
    assert crossed_interval(
        rows.repeat(1, 3), replicates=50, seed=3, patients=owners.repeat(3)
    ) == pytest.approx(crossed_interval(rows, replicates=50, seed=3))


def set_rows(rows, owners, name, *, kinds=KINDS):
    entries = tuple(
        Entry(f"{name}{int(p)}", f"{name}{int(p)}", kinds[k % len(kinds)], None) for k, p in enumerate(owners)
    )
    shape = rows[:, None].expand(-1, 2, -1)
    parts = {"histogram": rows, "spectrum": rows, "radiomics-1": rows, "detail": rows, "x": rows}
    return SetRows(entries, parts, {"x": (shape, shape, shape)}, {})


def test_a3_floor_and_matched_agree_for_a_perfect_generator():
    made, there = [], []
    for seed in range(12):
        real = set_rows(*correlated(16, seed=2 * seed), "real")
        other = set_rows(*correlated(16, seed=2 * seed + 1), "made")
        scores = {
            (s.metric, s.modality): s
            for s in score_sets(other, real, ["x"], Resampling(replicates=0, seed=seed))
        }
        made.append([scores[m, "all"].floor.matched for m in ("frechet_3d", "kid", "kid_standardised")])
        there.append([scores[m, "all"].floor.value for m in ("frechet_3d", "kid", "kid_standardised")])
    made, there = torch.tensor(made), torch.tensor(there)
    assert made[:, 0].mean() == pytest.approx(there[:, 0].mean().item(), rel=0.15)
    for k in (1, 2):
        spread = (made[:, k].std() + there[:, k].std()).item() / 12**0.5
        assert abs(made[:, k].mean() - there[:, k].mean()) < 3 * spread
        assert abs(made[:, k].mean()) < 3 * spread  # unbiased: both are 0 on average


def test_a3_volumes_made_one_by_one_are_compared_with_one_volume_a_patient():
    _, owners = correlated(16, seed=0)
    real = Members(owners, torch.arange(64) % 4)
    seen = []

    def score(i, j):
        seen.append(i)
        return float(len(i))

    kinds = torch.arange(40) % 4
    alone = Members(torch.arange(100, 140), kinds)
    others = []

    def between(i, j):
        others.append(i)
        assert not set(owners[i].tolist()) & set(owners[j].tolist())
        return float(len(i))

    floor = real_floor(score, between, alone, real, fewest=2, seed=0)
    assert floor.sizes == (8, 8)
    for ours, theirs in zip(seen, others, strict=True):
        assert sorted(kinds[ours].tolist()) == sorted(real.kinds[theirs].tolist())
        assert len(owners[theirs].unique()) == len(theirs) == 8


def test_a3_the_kernel_distance_counts_each_patient_once():
    rows, owners = correlated(10, seed=3)
    other, others = correlated(12, seed=4)
    a, b = Members(owners, owners * 0), Members(others + 100, others * 0)

    def kid(x, y, one, two):
        own = polynomial_kernel(x, x), polynomial_kernel(y, y)
        return squared_mmd(*own, polynomial_kernel(x, y), members=(one, two))

    value = kid(rows, other, a, b)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert kid(rows[order], other, Members(a.patients[order], a.kinds[order]), b) == pytest.approx(value)
    # Copies of a patient's volumes add nothing.
    again = torch.cat([torch.arange(len(rows)), torch.arange(4).repeat(5)])
    uneven = Members(owners[again], owners[again] * 0)
    assert kid(rows[again], other, uneven, b) == pytest.approx(value)
    assert kid(rows, rows, a, a) == 0.0
    assert np.isnan(kid(rows[:4], other, a[torch.arange(4)], b))


def test_a3_pairs_are_of_different_patients_and_each_patient_is_in_one_twosome():
    entries = [
        Entry(f"c{p}{v}", f"p{p}", kind, None) for kind in KINDS[:2] for p in range(5) for v in range(2)
    ]
    twosomes, ordered = pair_patients(entries)
    assert sorted(twosomes.values()) == [0, 0, 1, 1]
    assert sorted(e.case_id + e.modality for e in ordered) == sorted(e.case_id + e.modality for e in entries)


def test_a3_numbers_of_members_do_not_depend_on_the_order_of_files():
    names = [("b", "T1"), ("a", "T2"), ("b", "T2")]
    (one,), (other,) = number_members(names), number_members(names[::-1])
    assert one.patients.tolist() == other.patients.tolist()[::-1] == [1, 0, 1]


def test_a3_training_subsets_are_of_different_patients():
    rows, owners = correlated(20, seed=0)
    made, _ = correlated(12, seed=1, per_patient=1)
    score = frechet_ratio(
        made,
        rows,
        correlated(12, seed=2)[0],
        generator=torch.Generator().manual_seed(0),
        training_patients=owners,
        held_out_patients=torch.arange(12).repeat_interleave(4),
        replicates=20,
    )
    assert score.num_patients == 12
    assert score.dimensions == 3
    assert score.interval[0] < score.ratio < score.interval[1]


def test_a3_a_result_says_patients_and_one_patient_gives_no_interval(tmp_path):
    real = write_patients(tmp_path / "real", 3, names=("t1n", "t2f"))
    made = write_patients(tmp_path / "made", 1, names=("t1n", "t2f"), noise=20.0)
    evaluate("images", real, made, "--paired", "-o", tmp_path / "out", "--replicates", 20)
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["patients"] == {"real": 3, "generated": 1}
    rows = {(r["metric"], r["region"]): r for r in result["scores"] if r["modality"] == "all"}
    for row in (rows["psnr", "brain"], rows["frechet_3d", None]):
        assert (row["low"], row["high"]) == (None, None)
        assert "no interval: it needs 2 patients" in row["note"]
    assert rows["psnr", "brain"]["num_real"] == 2
    assert rows["psnr", "brain"]["patients_real"] == 1


def test_a3_two_time_points_of_a_patient_are_one(tmp_path):
    made = write_flat(tmp_path / "made", 4)
    real = tmp_path / "real"
    for k in range(3):
        source = write_patients(tmp_path / f"source{k}", 1, first=k, names=("t1n",))
        for visit in ("000", "001"):
            case = f"BraTS-GLI-{k:05d}-{visit}"
            (real / case).mkdir(parents=True)
            file = next(source.glob("*/*t1n.nii.gz"))
            (real / case / f"{case}-t1n.nii.gz").write_bytes(file.read_bytes())
    evaluate("images", real, made, "-o", tmp_path / "out", "--replicates", 0)
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["sets"]["real"]["volumes"] == 6
    assert result["patients"]["real"] == 3


def test_a3_identical_sets_score_nothing():
    rows, owners = correlated(8, seed=0)
    real = set_rows(rows, owners, "p")
    found = {
        s.metric: s.value
        for s in score_sets(real, real, ["x"], Resampling(replicates=0))
        if s.modality == "all"
    }
    assert found["kid"] == found["kid_standardised"] == 0.0
    assert (
        found["frechet_3d"]
        == pytest.approx(frechet_distance(rows, rows).item())
        == pytest.approx(0.0, abs=1e-9)
    )
    assert found["frechet_principal"] == pytest.approx(0.0, abs=1e-9)
