"""Scores of translations of held-out patients, beside what they have to beat.

A scan's own brightness and contrast can't be read from the patient's other scans, so figures come raw and
``…_fitted``: after the affine map of intensities, one a volume, that brings a translation closest to the scan.
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
"""The rows: decoded tokens as they are; refined with the decoded target zeroed; refined."""

Scores = dict[str, float]


@dataclass(frozen=True)
class TranslationSet:
    """Patients of one translation, ``N`` of them.

    sources: ``[N S H W D]`` in [0, 1], always in the same order. targets: the scans to make, ``[N 1 H W D]``.
    tumours: bool ``[N 1 H W D]``. Backgrounds are exactly 0. patients: number of each row's patient; None where each
    row is a patient's only one.
    """

    sources: Float[Tensor, "N S H W D"]
    targets: Volume
    tumours: Bool[Tensor, "N 1 H W D"]
    patients: Tensor | None = None

    @property
    def members(self) -> Members:
        """Whose the rows are."""
        return as_members(len(self.targets) if self.patients is None else self.patients)


@dataclass(frozen=True)
class Translations:
    """What was made of the held-out patients.

    rows: ``[N 1 H W D]`` in [0, 1] by name, one or several of TOKENS, SOURCES and BOTH. result: the row that
    is delivered. deviation: of several samples, ``[N 1 H W D]``, with ``sampled_mean``, their mean; None where
    there was one.
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

    ``psnr_brain``, ``ssim_brain``, ``psnr_tumour``, ``ssim_tumour`` of the result (see ``paired_row``), the same
    of both baselines under ``copy_`` and ``regression_``, fitted on ``training``, each also ``…_fitted``. ``rows``
    holds them for each row. ``uncertainty_correlation`` where there is a deviation. ``dice_real``,
    ``dice_translated`` and ``dice_drop``, their difference, where there is a segmenter of the target.
    ``intervals`` holds those of the result's means over patients, from ``replicates`` bootstrap samples.
    """
    rows = {name: paired_row(volumes, held_out) for name, volumes in made.rows.items()}
    copy = fit_copy(training.sources, training.targets)
    regression = fit_regression(training.sources, training.targets)
    scores: dict[str, Any] = {**rows[made.result], "rows": rows, "result": made.result}
    for name, baseline in (("copy", copy), ("regression", regression)):
        row = paired_row(baseline(held_out.sources), held_out)
        scores |= {f"{name}_{key}": value for key, value in row.items()}
    if made.deviation is not None and made.sampled_mean is not None:
        scores["uncertainty_correlation"] = uncertainty_correlation(
            made.sampled_mean, made.deviation, held_out.targets
        )
    if segmenter is not None:
        scores |= dice_drop(segmenter, made.rows[made.result], held_out)
    scores["volumes"] = len(held_out.targets)
    owners = held_out.members
    scores["patients"] = owners.num_patients
    values = _paired_values(made.rows[made.result], held_out)
    if segmenter is not None:
        values["dice_drop"] = _dice_drops(segmenter, made.rows[made.result], held_out)
    intervals = {
        name: mean_interval(found, replicates=replicates, seed=0, patients=owners.patients)
        for name, found in values.items()
    }
    scores["intervals"] = {name: list(found) if found else None for name, found in intervals.items()}
    return scores


def paired_row(volumes: Volume, held_out: TranslationSet) -> Scores:
    """Return the mean over patients of PSNR and SSIM in brain and tumour, raw and ``…_fitted``.

    The fit is one of the whole brain, for the tumour too: a lesion that is too faint stays too faint. Patients
    without tumour don't count there; without any, the tumour's scores are left out.
    """
    return {name: values.nanmean().item() for name, values in _paired_values(volumes, held_out).items()}


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
    """Return the correlation, over the brain, of the deviation of samples and the error of their mean.

    Pearson's, of absolute errors, a mean over patients; those whose samples all agree don't count. NaN where none
    does.
    """
    values = [
        _correlation(deviation[i][brain], (mean[i] - targets[i])[brain].abs())
        for i, brain in enumerate(foreground(targets))
    ]
    return torch.stack(values).nanmean().item()


def dice_drop(segmenter: Segmenter, translated: Volume, held_out: TranslationSet) -> Scores:
    """Return what a segmenter trained on real volumes of the target loses when they are translated instead.

    Means over the patients who have a tumour.
    """
    real = dice(segmenter.predict(held_out.targets), held_out.tumours).nanmean().item()
    made = dice(segmenter.predict(translated), held_out.tumours).nanmean().item()
    return {"dice_real": real, "dice_translated": made, "dice_drop": real - made}


def _dice_drops(segmenter: Segmenter, translated: Volume, held_out: TranslationSet) -> Float[Tensor, " N"]:
    real, made = (
        dice(segmenter.predict(volumes), held_out.tumours) for volumes in (held_out.targets, translated)
    )
    return real - made


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()
