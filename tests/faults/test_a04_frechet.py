"""Fréchet distances of few volumes in many features: collapse never scores better, N and D are said."""

import json

import pytest
import torch

from prod9.evaluation.report.tables import demo_tiles
from prod9.evaluation.sets.distribution import compare_kernels, frechet_ratio, sample
from prod9.evaluation.sets.manifold import standardised_kid
from prod9.measures.metrics import frechet_distance, num_directions, principal_frechet
from prod9.training.algorithms.controlnet_trainer import ControlNetTrainer
from tests.cli.test_evaluate import evaluate, write_flat, write_patients

N, D = 16, 365
SPECTRA = {"flat": torch.ones(D), "steep": 3 * torch.arange(1, D + 1.0).pow(-0.75)}


def drawn(count, seed, spectrum="flat"):
    generator = torch.Generator().manual_seed(seed)
    return 1 + SPECTRA[spectrum] * torch.randn(count, D, generator=generator)


def shrunk(rows, factor):
    return rows.mean(0) + factor * (rows - rows.mean(0))


COLLAPSES = {
    "half": lambda rows: shrunk(rows, 0.5),
    "a quarter": lambda rows: shrunk(rows, 0.25),
    "one volume": lambda rows: rows[:1].repeat(len(rows), 1),
    "two volumes": lambda rows: rows[:2].repeat(len(rows) // 2, 1),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("collapse", COLLAPSES)
def test_a4_fid_of_stage_3_never_prefers_collapse(spectrum, collapse):
    same, less, kid_same, kid_less = [], [], [], []
    for seed in range(12):
        real, made = drawn(N, 2 * seed, spectrum), drawn(N, 2 * seed + 1, spectrum)
        for rows, fid, kid in ((made, same, kid_same), (COLLAPSES[collapse](made), less, kid_less)):
            volumes = [x[:, None, :, None, None] for x in (rows, real)]
            found = ControlNetTrainer.compute_sample_metrics(*volumes, extractor=lambda x: x.flatten(1))
            fid.append(found["fid"].item())
            kid.append(standardised_kid(rows, real))
    assert sum(same) < sum(less)
    assert sum(a < b for a, b in zip(kid_same, kid_less, strict=True)) >= 11
    if spectrum == "flat":
        assert all(a < b for a, b in zip(same, less, strict=True))


def test_a4_the_whole_distance_does_prefer_it():
    # What the principal directions are for: were this to change, they would not be needed.
    assert frechet_distance(shrunk(drawn(N, 1), 0.5), drawn(N, 0)) < frechet_distance(
        drawn(N, 1), drawn(N, 0)
    )


@pytest.mark.parametrize("patients", [N, 56])
def test_a4_the_ratio_never_prefers_collapse(patients):
    held_out, training, other = drawn(patients, 0), drawn(4 * patients, 1), drawn(patients, 2)

    def ratio(rows):
        return frechet_ratio(rows, training, held_out, generator=torch.Generator().manual_seed(0))

    good = ratio(other)
    assert 0.6 < good.ratio < 1.6
    for collapse in COLLAPSES.values():
        assert ratio(collapse(other)).ratio > good.ratio
    assert (good.features, good.dimensions) == (D, patients // 4)
    assert good.reliable


def test_a4_within_classes_a_collapsed_class_is_seen():
    labels = torch.arange(2).repeat_interleave(N)
    shift = 50.0 * labels[:, None]
    held_out, other = drawn(2 * N, 0) + shift, drawn(2 * N, 2) + shift
    training, more = drawn(8 * N, 1), torch.arange(2).repeat_interleave(4 * N)
    worse = torch.cat([other[:N], shrunk(other[N:], 0.2)])

    def ratio(rows):
        return frechet_ratio(
            rows, training + 50.0 * more[:, None], held_out, generator=torch.Generator().manual_seed(0),
            generated_labels=labels, training_labels=more, held_out_labels=labels,
        ).ratio  # fmt: skip

    assert ratio(worse) > 1.2 * ratio(other)
    sets = sample(training + 50.0 * more[:, None], more), sample(held_out, labels)
    found = [
        compare_kernels(sample(rows, labels), *sets, generator=torch.Generator().manual_seed(0)).distance
        for rows in (other, worse)
    ]
    assert found[0] < found[1]


def test_a4_directions_are_those_of_both_sets_and_change_nothing_where_all_fit():
    a, b = drawn(60, 0)[:, :5], 2 * drawn(40, 1)[:, :5]
    assert num_directions(40, 5) == 5
    assert principal_frechet(a, b, directions=5).item() == pytest.approx(frechet_distance(a, b).item())
    assert principal_frechet(a, b, directions=2) == pytest.approx(principal_frechet(b, a, directions=2))
    assert principal_frechet(a, b, directions=2) <= frechet_distance(a, b)


def test_a4_every_frechet_number_has_n_and_d_and_a_mark_below_2_d(tmp_path, capsys):
    real, made = write_patients(tmp_path / "real", 6, names=("t1n",)), write_flat(tmp_path / "made", 6)
    ran = evaluate("images", real, made, "-o", tmp_path / "out", "--replicates", 0)
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    found = [
        row for row in result["scores"] if "frechet" in row["metric"] or row["metric"] == "radiomic_distance"
    ]
    assert len(found) >= 7
    for row in found:
        assert min(row["patients_real"], row["patients_generated"]) == 6
        assert row["dimensions"] is not None
        if 2 * row["dimensions"] > 6:
            assert not row["reliable"]
            assert f"{2 * row['dimensions']} patients" in row["note"] or "20 patients" in row["note"]
        line = next(line for line in ran.out.splitlines() if line.strip().startswith(row["metric"]))
        assert "?" in line
        assert str(row["dimensions"]) in line
    assert "6 generated of 6 patients, 6 real of 6 patients" in ran.out


def test_a4_many_slices_are_no_more_patients():
    from prod9.evaluation.set_scores import Resampling, score_sets
    from tests.faults.test_a03_patients import correlated, set_rows

    real, made = (set_rows(*correlated(12, seed=seed), "abc"[seed]) for seed in (0, 1))
    scores = {
        s.metric: s for s in score_sets(made, real, ["x"], Resampling(replicates=0)) if s.modality == "all"
    }
    for name in ("frechet_3d", "frechet_axis0", "frechet_2.5d"):
        assert scores[name].dimensions == 8
        assert not scores[name].reliable  # 96 rows, 12 patients, 8 dimensions


def test_a4_the_tile_of_a_demo_says_n_and_d():
    values = {"frechet_ratio": 1.25, "frechet": {"patients": 14, "dimensions": 3}}
    (tile,) = demo_tiles({"stages": {"s": values}})
    assert tile.value == "1.25"
    assert tile.note.startswith("N 14 patients, D 3")
    (few,) = demo_tiles({"stages": {"s": {**values, "frechet": {"patients": 4, "dimensions": 3}}}})
    assert few.value.endswith("?")
    (old,) = demo_tiles({"stages": {"s": {"frechet_ratio": 1.25}}})
    assert old.value.endswith("?")
