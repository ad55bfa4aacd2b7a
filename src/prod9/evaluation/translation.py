"""Scores of translations of held-out patients, beside those of simple baselines.

The brightness and contrast of a scan cannot be derived from the patient's other scans. Scores therefore come raw and
``…_fitted``: after the affine map of intensities, one per volume, that brings a translation closest to the scan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prod9.evaluation.baselines import fit_copy, fit_regression
from prod9.evaluation.judges.segmenter import Segmenter, dice
from prod9.evaluation.regions import find_regions
from prod9.evaluation.sets.intervals import mean_interval
from prod9.evaluation.sets.members import Members, as_members
from prod9.measures.metrics import fit_intensities, foreground, psnr, ssim3d
from prod9.types import Volume

TOKENS, SOURCES, BOTH = "tokens", "sources", "both"
"""Names of the rows: decoded tokens as they are; refined with the decoded target set to zero; refined."""

Scores = dict[str, float]


@dataclass(frozen=True)
class TranslationSet:
    """Volumes of one translation in [0, 1], ``N`` of each; their background is exactly 0.

    Attributes:
        sources: modalities that are given, always in the same order.
        targets: scans to make.
        tumours: masks.
        patients: number of each row's patient; None where each row belongs to another patient.
    """

    sources: Float[Tensor, "N S H W D"]
    targets: Volume
    tumours: Bool[Tensor, "N 1 H W D"]
    patients: Tensor | None = None

    @property
    def members(self) -> Members:
        """Patients of the rows."""
        return as_members(len(self.targets) if self.patients is None else self.patients)


@dataclass(frozen=True)
class Translations:
    """Translations of the held-out patients.

    Attributes:
        rows: volumes in [0, 1] by name: one or several of TOKENS, SOURCES and BOTH.
        result: name of the row that is delivered.
        deviation: standard deviation of several samples; None where there was only one.
        sampled_mean: their mean; None where there was only one.
    """

    rows: Mapping[str, Volume]
    result: str = BOTH
    deviation: Volume | None = None
    sampled_mean: Volume | None = None


def score_translation(
    training: TranslationSet,
    held_out: TranslationSet,
    made: Translations,
    *,
    segmenter: Segmenter | None = None,
    replicates: int = 200,
) -> dict[str, Any]:
    """Return the scores of one target.

    ``psnr_brain``, ``ssim_brain``, ``psnr_tumour`` and ``ssim_tumour`` of the result (see :func:`paired_row`), the same
    of both baselines under ``copy_`` and ``regression_``, each also ``…_fitted``. ``rows`` holds them for each row.
    ``uncertainty_correlation`` is there with a deviation, ``dice_real``, ``dice_translated`` and their difference
    ``dice_drop`` with a segmenter. ``intervals`` holds those of the result's means over patients.

    Args:
        training: patients that the baselines are fitted on.
        held_out: patients that are scored.
        made: their translations.
        segmenter: of tumours in the target modality.
        replicates: bootstrap samples.
    """
    values = {name: _paired_values(volumes, held_out) for name, volumes in made.rows.items()}
    rows = {name: _means(own) for name, own in values.items()}
    scores: dict[str, Any] = {**rows[made.result], "rows": rows, "result": made.result}
    copy = fit_copy(training.sources, training.targets)
    regression = fit_regression(training.sources, training.targets)
    for name, baseline in (("copy", copy), ("regression", regression)):
        row = paired_row(baseline(held_out.sources), held_out)
        scores |= {f"{name}_{key}": value for key, value in row.items()}
    if made.deviation is not None and made.sampled_mean is not None:
        scores["uncertainty_correlation"] = uncertainty_correlation(
            made.sampled_mean, made.deviation, held_out.targets
        )
    resampled = dict(values[made.result])
    if segmenter is not None:
        means, resampled["dice_drop"] = dice_drop(segmenter, made.rows[made.result], held_out)
        scores |= means
    owners = held_out.members
    scores |= {"volumes": len(held_out.targets), "patients": owners.num_patients}
    intervals = {
        name: mean_interval(found, replicates=replicates, seed=0, patients=owners.patients)
        for name, found in resampled.items()
    }
    scores["intervals"] = {name: list(found) if found else None for name, found in intervals.items()}
    return scores


def paired_row(volumes: Volume, held_out: TranslationSet) -> Scores:
    """Return the mean over patients of PSNR and SSIM in brain and tumour, raw and ``…_fitted``.

    The fit is one of the whole brain, for the tumour too: a lesion that is too faint stays too faint. Patients without
    a tumour do not count there; if no patient has one, the scores of the tumour are left out.
    """
    return _means(_paired_values(volumes, held_out))


def _means(values: Mapping[str, Tensor]) -> Scores:
    return {name: own.nanmean().item() for name, own in values.items()}


def _paired_values(volumes: Volume, held_out: TranslationSet) -> dict[str, Float[Tensor, " N"]]:
    """Return the scores of each patient, NaN where there is no such region."""
    targets = held_out.targets
    regions = find_regions(targets, held_out.tumours)
    fitted = fit_intensities(volumes, targets, mask=regions["brain"])
    scores = {}
    for region in ("brain", "tumour"):
        if not regions[region].any():
            continue
        for suffix, made in (("", volumes), ("_fitted", fitted)):
            for name, score in (("psnr", psnr), ("ssim", ssim3d)):
                scores[f"{name}_{region}{suffix}"] = score(made, targets, mask=regions[region])
    return scores


def uncertainty_correlation(mean: Volume, deviation: Volume, targets: Volume) -> float:
    """Return Pearson's correlation over the brain of the samples' deviation and the absolute error of their mean.

    It is a mean over patients without those whose samples all agree; NaN if they all do.
    """
    values = [
        _correlation(deviation[i][brain], (mean[i] - targets[i])[brain].abs())
        for i, brain in enumerate(foreground(targets))
    ]
    return torch.stack(values).nanmean().item()


def dice_drop(
    segmenter: Segmenter, translated: Volume, held_out: TranslationSet
) -> tuple[Scores, Float[Tensor, " N"]]:
    """Return what a segmenter trained on real volumes of the target loses when they are translated instead.

    The scores are means over the patients with a tumour; beside them stands the drop of each patient.
    """
    real = dice(segmenter.predict(held_out.targets), held_out.tumours)
    made = dice(segmenter.predict(translated), held_out.tumours)
    means = real.nanmean().item(), made.nanmean().item()
    scores = {"dice_real": means[0], "dice_translated": means[1], "dice_drop": means[0] - means[1]}
    return scores, real - made


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()
