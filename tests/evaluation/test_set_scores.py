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
