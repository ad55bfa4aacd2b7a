"""``prod9 evaluate samples``: several samples of each case against the truth, with a calibration curve."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prod9.errors import DataError
from prod9.evaluation.samples.calibration import LEVELS, rank_levels
from prod9.evaluation.samples.cases import CaseScores, Sampled, match_samples, score_case
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.sets.appearance import spectrum_distance
from prod9.evaluation.sets.intervals import Floor, Interval, mean_interval, score_interval
from prod9.evaluation.sets.members import Members, number_members
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import BadFiles, find_volumes
from prod9.evaluation.settings import Report, SetSettings, silent
from prod9.json_files import without_nan

GROUP = "samples"
BETTER = {
    "spread_correlation": "higher", "spread_ratio": "floor", "coverage_50": "floor", "coverage_80": "floor",
    "coverage_90": "floor", "coverage_95": "floor", "calibration_error": "lower", "width_90": "lower",
    "crps": "lower", "mean_error": "lower", "psnr_mean": "higher", "psnr_samples": "higher",
}  # fmt: skip
"""Scores of a case, and which way is good; ``floor`` where a calibrated model's own value is best."""
_UNITS = {"psnr_mean": "dB", "psnr_samples": "dB"}
_BOUNDS = {
    "spread_correlation": (-1.0, 1.0),
    "psnr_mean": (-math.inf, 100.0),
    "psnr_samples": (-math.inf, 100.0),
}
_SHARE = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class SampleSettings(SetSettings):
    """What is asked for.

    Attributes:
        fit: bring the mean of the samples to the truth by an affine map of intensities, and the samples with it.
        resample: bring samples to the voxels of the truth.
    """

    fit: bool = True
    resample: bool = False


def evaluate_samples(
    real_root: Path, samples_root: Path, settings: SampleSettings, *, report: Report = silent
) -> Evaluation:
    """Score the samples below ``samples_root`` against the real volumes of the same cases and modalities.

    Raises DataError for folders or files that cannot be used, for a case with one sample, or without a truth.

    Args:
        real_root: folder of real patients.
        samples_root: folder of samples, as ``prod9 generate translate --num-samples`` writes it.
        settings: what is asked for; ``grid`` and ``spacing`` play no part.
        report: called after each case.
    """
    bad = BadFiles(skip=settings.skip_bad)
    split = None if settings.split is None else Path(settings.split)
    truths = find_volumes(
        real_root,
        layout=settings.layout,
        label_scheme=settings.label_scheme,
        modalities=settings.modalities,
        split=split,
        without=samples_root,
        bad=BadFiles(skip=True),  # real volumes that nothing was sampled for do not matter
    )
    made = find_volumes(samples_root, modalities=settings.modalities, bad=bad)
    cases = match_samples(truths, made, samples_root, split=split, bad=bad)
    trained_on = find_training_patients([case.truth for case in cases], samples_root, split=settings.split)
    found = list(_score_all(cases, bad, settings, report))
    if not found:
        raise DataError(f"{samples_root}: expected at least one readable case with its truth, got none.")
    count = len(cases[0].samples)
    scores = [score for own in _groups(found) for score in _scores(own, count, settings)]
    return Evaluation(
        command="evaluate samples",
        settings={**asdict(settings), "num_samples": count},
        sets={
            "real": {
                "path": str(real_root),
                "volumes": len(found),
                "training_patients": trained_on.to_dict(),
            },
            "generated": {
                "path": str(samples_root),
                "volumes": count * len(found),
                "samples_per_case": count,
            },
        },
        patients={"real": len({one.truth.patient_id for one in found})},
        scores=[score.to_dict() for score in scores],
        cases=without_nan(list(_rows(found))),
        curves=[curve for own in _groups(found) for curve in _curves(own, count, settings)],
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning()]), *bad.missing],
    )


def _score_all(
    cases: Sequence[Sampled], bad: BadFiles, settings: SampleSettings, report: Report
) -> Iterator[CaseScores]:
    for done, case in enumerate(cases, 1):
        scored = score_case(case, bad, fit=settings.fit, resample=settings.resample)
        if scored is not None:
            yield scored
        report("Cases", done, len(cases))


@dataclass(frozen=True)
class _Group:
    """Cases of one modality, or of all."""

    modality: str
    cases: Sequence[CaseScores]

    @property
    def members(self) -> Members:
        """Return the patients of the cases."""
        return number_members([(one.truth.patient_id, one.truth.modality) for one in self.cases])[0]


def _groups(found: Sequence[CaseScores]) -> list[_Group]:
    names = sorted({one.truth.modality for one in found})
    alone = [_Group(name, [one for one in found if one.truth.modality == name]) for name in names]
    return [_Group("all", found), *(alone if len(names) > 1 else [])]


def _scores(group: _Group, count: int, settings: SampleSettings) -> Iterator[Score]:
    for region in dict.fromkeys(name for one in group.cases for name in one.regions):
        for metric in BETTER:
            values = _values([one.regions.get(region, {}).get(metric, math.nan) for one in group.cases])
            interval = _interval(values, group, settings, _bounds(metric))
            yield _score(
                group,
                values,
                count,
                metric=metric,
                region=region,
                better=BETTER[metric],
                value=values.nanmean().item(),
                unit=_UNITS.get(metric, ""),
                interval=interval,
                floor=_reference(group, metric, region, values),
                note=_note(metric, count, interval),
            )
    yield from _spectrum_scores(group, count, settings)


def _spectrum_scores(group: _Group, count: int, settings: SampleSettings) -> Iterator[Score]:
    """Yield the distance of mean spectra to those of the truths: of samples, of their means, and the former over it."""
    spectra = torch.stack([one.spectra for one in group.cases])

    def distance(of: int) -> Callable[[Tensor], float]:
        return lambda rows: spectrum_distance(spectra[rows, of], spectra[rows, 2])

    samples, mean = distance(0), distance(1)
    everyone = torch.arange(len(spectra))
    about: tuple[tuple[str, Callable[[Tensor], float], str], ...] = (
        ("spectrum_distance_samples", samples, "dB"),
        ("spectrum_distance_mean", mean, "dB"),
        ("spectrum_ratio", lambda rows: samples(rows) / max(mean(rows), 1e-12), ""),
    )
    for metric, value, unit in about:
        # Samples and truths are of the same patients, so these are drawn together: the second draw has no part in it.
        interval = score_interval(
            lambda rows, _, value=value: value(rows), group.members, group.members,
            replicates=settings.replicates, seed=settings.seed, least=0.0,
        )  # fmt: skip
        note = "of the samples over that of their mean" if unit == "" else None
        yield _score(
            group, torch.zeros(len(spectra)), count, metric=metric, region="brain", better="lower", unit=unit,
            value=value(everyone), interval=interval, note=note,
        )  # fmt: skip


def _score(group: _Group, values: Tensor, count: int, **about: Any) -> Score:
    known = ~values.isnan()
    patients = len(group.members.patients[known].unique())
    return Score(
        group=GROUP,
        modality=group.modality,
        num_generated=count * int(known.sum()),
        num_real=int(known.sum()),
        patients_generated=patients,
        patients_real=patients,
        **about,
    )


def _reference(group: _Group, metric: str, region: str, values: Tensor) -> Floor | None:
    """Return what a calibrated model would score, beside the score."""
    if BETTER[metric] == "floor":
        best = float(metric.removeprefix("coverage_")) / 100 if metric.startswith("coverage_") else 1.0
    else:
        own = _values([one.references.get(metric, math.nan) for one in group.cases])
        best = own.nanmean().item() if region == "brain" else math.nan
    if math.isnan(best):
        return None
    patients = group.members.num_patients
    return Floor(values.nanmean().item(), best, (patients, patients))


def _note(metric: str, count: int, interval: Interval | None) -> str | None:
    notes = {
        "spread_correlation": "floor: a sample in place of the truth",
        "crps": "floor: a sample in place of the truth",
        "width_90": f"Student's interval of {count} samples",
        "mean_error": "the CRPS of the mean without any spread",
    }
    note = notes.get(metric, "floor: the nominal share" if metric.startswith("coverage_") else None)
    return (
        "; ".join(filter(None, [note, "no interval: it needs 2 patients" if interval is None else None]))
        or None
    )


def _bounds(metric: str) -> Interval:
    return _SHARE if metric.startswith(("coverage", "calibration")) else _BOUNDS.get(metric, (0.0, math.inf))


def _interval(values: Tensor, group: _Group, settings: SampleSettings, bounds: Interval) -> Interval | None:
    return mean_interval(
        values,
        replicates=settings.replicates,
        seed=settings.seed,
        patients=group.members.patients,
        bounds=bounds,
    )


def _curves(group: _Group, count: int, settings: SampleSettings) -> Iterator[dict[str, Any]]:
    """Yield the calibration curves in the brain: of Student's intervals, and of those between ordered samples."""
    for name, levels, rows in (
        ("calibration", LEVELS, [one.coverage for one in group.cases]),
        ("calibration_ranks", rank_levels(count), [one.ranks for one in group.cases]),
    ):
        covered = torch.stack(rows).double()
        points = []
        for k, nominal in enumerate(levels):
            low, high = _interval(covered[:, k], group, settings, _SHARE) or (math.nan, math.nan)
            points.append(
                {"nominal": nominal, "coverage": covered[:, k].mean().item(), "low": low, "high": high}
            )
        yield {"name": name, "modality": group.modality, "region": "brain", "points": without_nan(points)}


def _rows(found: Sequence[CaseScores]) -> Iterator[dict[str, Any]]:
    for one in found:
        for region, scores in one.regions.items():
            yield {"case": one.truth.case_id, "modality": one.truth.modality, "region": region, **scores}


def _values(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
