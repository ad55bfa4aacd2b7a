"""Known damage, in order, with every extractor that needs no weights; and what too few volumes give."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from prod9.evaluation.judges.classifier import train_classifier
from prod9.evaluation.judges.features import AutoencoderFeatures, ClassifierFeatures, RandomFeatures
from prod9.evaluation.set_scores import Resampling, score_sets
from prod9.evaluation.sets.rows import describe_set
from prod9.evaluation.sets.volume_sets import BadFiles, Entry
from tests.evaluation.conftest import toy_brains


class FromMemory:
    """Stands for a Preparation: gives volumes that are there."""

    def __init__(self, volumes):
        self.volumes = volumes

    def read(self, entry):
        return self.volumes[int(entry.case_id)][None]


class Pyramid:
    """A fixed linear encoder: averages of blocks of 4³ voxels, and their deviation."""

    def encode(self, x):
        mean = torch.nn.functional.avg_pool3d(x, 4)
        return torch.cat([mean, (torch.nn.functional.avg_pool3d(x * x, 4) - mean**2).clamp_min(0).sqrt()], 1)

    def state_dict(self):
        return {}


def blurred(volumes, sigma):
    return torch.from_numpy(gaussian_filter(volumes.numpy(), (0, 0, sigma, sigma, sigma)))


def noisy(volumes, deviation):
    noise = deviation * torch.randn(volumes.shape, generator=torch.Generator().manual_seed(9))
    return torch.where(volumes > 0, (volumes + noise).clamp(0, 1), 0.0)


def described(volumes, labels, extractors):
    entries = [Entry(str(k), str(k), f"M{label}", None) for k, label in enumerate(labels.tolist())]
    return describe_set(entries, FromMemory(volumes), extractors, BadFiles(skip=False))


@pytest.fixture(scope="module")
def extractors(brains):
    classifier = train_classifier(*brains[:2], num_classes=2, seed=0, steps=30)
    return [RandomFeatures(seed=0), AutoencoderFeatures(Pyramid()), ClassifierFeatures(classifier)]


@pytest.fixture(scope="module")
def tables(brains, extractors):
    """Scores by kind of damage, metric and extractor."""
    volumes, labels, _ = toy_brains(16, seed=5)
    real = described(*brains[:2], extractors)
    damaged = {
        "none": volumes,
        "blur 0.7": blurred(volumes, 0.7),
        "blur 1.5": blurred(volumes, 1.5),
        "noise 0.05": noisy(volumes, 0.05),
        "noise 0.2": noisy(volumes, 0.2),
        "collapse": volumes[:2].repeat(16, 1, 1, 1, 1),
    }
    names = [extractor.name for extractor in extractors]
    return {
        kind: {
            (score.metric, score.extractor): score
            for score in score_sets(
                described(made, labels, extractors), real, names, Resampling(replicates=0)
            )
            if score.modality == "all"
        }
        for kind, made in damaged.items()
    }


@pytest.mark.parametrize("metric", ["frechet_3d", "frechet_2.5d", "kid"])
@pytest.mark.parametrize("kind", ["blur", "noise"])
def test_distances_rank_damage(tables, extractors, metric, kind):
    weak, strong = ("0.7", "1.5") if kind == "blur" else ("0.05", "0.2")
    for extractor in extractors:
        key = (metric, extractor.name)
        none, less, more = (tables[n][key].value for n in ("none", f"{kind} {weak}", f"{kind} {strong}"))
        assert less < more, key
        assert none < more, key


def test_appearance_ranks_damage(tables):
    for kind, weak, strong in (("blur", "0.7", "1.5"), ("noise", "0.05", "0.2")):
        key = ("spectrum_distance_db", None)
        values = [tables[name][key].value for name in ("none", f"{kind} {weak}", f"{kind} {strong}")]
        assert values == sorted(values)


def test_coverage_finds_collapse(tables, extractors):
    for extractor in extractors:
        covered, collapsed = (tables[k]["coverage", extractor.name].value for k in ("none", "collapse"))
        assert collapsed < 0.5 * covered
    alike = ("ms_ssim_pairs", None)
    assert tables["collapse"][alike].value > tables["none"][alike].value + 0.05


def test_an_undamaged_set_is_near_the_floor(tables, extractors):
    for extractor in extractors:
        good, bad = (tables[k]["frechet_3d", extractor.name] for k in ("none", "noise 0.2"))
        assert good.floor.matched < 1.5 * good.floor.value < bad.floor.matched
        assert good.dimensions
        assert not good.reliable
        assert "unreliable below" in good.note


def test_one_volume_is_told_how_many_it_takes(brains, extractors):
    real = described(*brains[:2], extractors[:1])
    one = described(brains[0][:1], brains[1][:1], extractors[:1])
    scores = {s.metric: s for s in score_sets(one, real, ["random-0"], Resampling()) if s.modality == "all"}
    assert math.isnan(scores["frechet_3d"].value)
    assert scores["frechet_3d"].note == "needs at least 2 volumes of each set, got 1 generated and 32 real"
    assert "at least 6 volumes" in scores["coverage"].note
    assert math.isfinite(scores["histogram_distance"].value)
    assert not scores["histogram_distance"].reliable


def test_identical_sets(brains, extractors):
    real = described(*brains[:2], extractors[:1])
    scores = {s.metric: s.value for s in score_sets(real, real, ["random-0"], Resampling(replicates=0))}
    assert scores["frechet_3d"] == pytest.approx(0.0, abs=1e-9)
    assert scores["coverage"] == scores["precision"] == 1.0
    assert scores["kid"] <= 0.0


def denoised_scores(volumes, real, labels, real_labels):
    """Return the scores over all modalities, by metric; both sets are denoised from the real set's noise."""
    levels = {"M0": 0.03, "M1": 0.03}

    def rows(of, own):
        entries = [Entry(str(k), str(k), f"M{label}", None) for k, label in enumerate(own.tolist())]
        extractors = [RandomFeatures(seed=0)]
        return describe_set(entries, FromMemory(of), extractors, BadFiles(skip=False), noise=levels)

    found = score_sets(
        rows(volumes, labels), rows(real, real_labels), ["random-0"], Resampling(replicates=20)
    )
    return {score.metric: score for score in found if score.modality == "all"}


def test_grain_does_not_please_the_scores_of_denoised_volumes(brains, held_out):
    real, labels = held_out[:2]
    made = {
        "alike": brains[0],
        "soft": torch.where(brains[0] > 0, blurred(brains[0], 1.0), 0.0),
    }
    made["soft with grain"] = noisy(made["soft"], 0.03)
    made["grain"] = noisy(brains[0], 0.06)
    found = {name: denoised_scores(of, real, brains[1], labels) for name, of in made.items()}
    value = {name: {k: s.value for k, s in scores.items()} for name, scores in found.items()}
    # As it is, the spectrum of soft volumes is mended by grain; after denoising it is hardly.
    gained = {
        metric: value["soft with grain"][metric] / value["soft"][metric]
        for metric in ("spectrum_distance_db", "spectrum_distance_db_denoised", "edge_ratio")
    }
    assert gained["spectrum_distance_db"] < 0.7
    assert gained["spectrum_distance_db_denoised"] > 0.85
    assert gained["edge_ratio"] == pytest.approx(1.0, abs=0.05)
    assert value["soft with grain"]["edge_score"] > value["soft"]["edge_score"]
    for metric in ("kid_denoised", "radiomic_distance_denoised"):
        assert value["soft with grain"][metric] > 2 * abs(value["alike"][metric])
    assert value["soft with grain"]["edge_ratio"] < 0.85
    assert value["soft"]["edge_ratio"] < 0.85
    assert value["grain"]["edge_ratio"] < 1.1
    assert value["alike"]["edge_ratio"] == pytest.approx(1.0, abs=0.05)
    assert value["alike"]["noise_ratio"] == pytest.approx(1.0, abs=0.05)
    assert value["grain"]["noise_ratio"] > 1.8
    assert value["soft"]["noise_ratio"] < 0.3
    ratio = found["grain"]["noise_ratio"]
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1]
    assert ratio.floor.value == pytest.approx(1.0, abs=0.1)
    assert (ratio.group, found["grain"]["edge_ratio"].group) == ("appearance", "denoised")


def test_without_noise_in_the_real_volumes_there_is_no_ratio():
    flat = torch.full((4, 1, 12, 12, 12), 0.5)
    scores = denoised_scores(flat, flat, torch.zeros(4), torch.zeros(4))
    assert math.isnan(scores["noise_ratio"].value)
    assert "0 in the real volumes" in scores["noise_ratio"].note
    assert scores["noise_ratio"].floor is None
