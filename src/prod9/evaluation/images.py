"""``prod9 evaluate images``: a folder of generated volumes against a folder of real ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prod9.evaluation.image_sets import ImageSettings as ImageSettings
from prod9.evaluation.image_sets import check_settings as check_settings
from prod9.evaluation.image_sets import compare_sets, find_sets
from prod9.evaluation.judges.judge import Judge, score_with_judge
from prod9.evaluation.paired_files import Case, score_pairs
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.set_scores import score_sets
from prod9.evaluation.sets.kept_rows import KeptRows
from prod9.evaluation.sets.pair import Resampling, SetPair
from prod9.evaluation.sets.rows import (
    SetRows,
    describe_set,
)
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import (
    BadFiles,
    Entry,
    match_pairs,
)
from prod9.evaluation.settings import Report, silent

UNEVEN = 0.1
"""Difference of a modality's share of both sets above which scores over all modalities are warned about."""


@dataclass(frozen=True)
class ImageEvaluation:
    """The result, and the classifier that was trained for it, if one was."""

    evaluation: Evaluation
    judge: Judge | None = None


def evaluate_images(
    real_root: Path,
    generated_root: Path,
    settings: ImageSettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
    keep: Path | None = None,
    features: Path | None = None,
) -> ImageEvaluation:
    """Score the volumes below ``generated_root`` against those below ``real_root``.

    Raises ConfigError for settings that cannot work, DataError for folders or files that cannot be used.

    Args:
        real_root: folder of real volumes.
        generated_root: folder of generated volumes.
        settings: what is asked for.
        device: where features are computed; the CPU by default.
        report: called with the progress of each part.
        keep: a file for the scores of pairs as they come; an interrupted evaluation continues from it.
        features: a folder in which :func:`describe_part` kept what it found; it is not computed again.
    """
    check_settings(settings)
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    real, generated = find_sets(real_root, generated_root, settings, bad)
    trained_on = find_training_patients(
        real, generated_root, split=settings.split, autoencoder=settings.autoencoder
    )
    pairs = match_pairs(real, generated, bad) if settings.paired else []
    scores, cases = _score_pairs(settings, pairs, bad, report, keep)
    compared = compare_sets(settings, real, generated, bad, device, report)
    preparation, judge, noise = compared.preparation, compared.judge, compared.noise
    trained = None if settings.classifier is not None else judge
    names = [extractor.name for extractor in compared.extractors]
    described = [
        describe_set(
            entries,
            preparation,
            compared.extractors,
            bad,
            describe=compared.describe,
            noise=noise,
            device=device,
            progress=partial(report, what.capitalize()),
            kept_rows=None if features is None else KeptRows(features, what, compared.settings),
        )
        for what, entries in compared.sets.items()
    ]
    pair = SetPair(described[1], described[0], Resampling(settings.replicates, settings.seed))
    scores += score_sets(pair.generated, pair.real, names, pair.resampling)
    if judge is not None:
        scores += score_with_judge(judge, pair, inception=settings.inception_score)
    evaluation = Evaluation(
        command="evaluate images",
        settings={
            **asdict(settings),
            "grid": list(preparation.grid),
            "extractor_names": names,
            "noise_levels": noise,
        },
        sets={
            "real": _about(real_root, pair.real) | {"training_patients": trained_on.to_dict()},
            "generated": _about(generated_root, pair.generated),
        },
        patients={"real": pair.real.num_patients, "generated": pair.generated.num_patients},
        scores=[score.to_dict() for score in scores],
        cases=cases,
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning()]), *bad.missing, *_warnings(scores, pair)],
    )
    return ImageEvaluation(evaluation, trained)


def _score_pairs(
    settings: ImageSettings,
    pairs: Sequence[tuple[Entry, Entry]],
    bad: BadFiles,
    report: Report,
    keep: Path | None,
) -> tuple[list[Score], list[Case]]:
    if not pairs:
        return [], []
    return score_pairs(
        pairs,
        bad,
        resample=settings.resample,
        replicates=settings.replicates,
        seed=settings.seed,
        progress=partial(report, "Pairs"),
        keep=keep,
    )


def _about(root: Path, rows: SetRows) -> dict[str, Any]:
    return {
        "path": str(root),
        "cases": len({entry.case_id for entry in rows.entries}),
        "volumes": len(rows),
        "modalities": rows.modalities,
    }


def _warnings(scores: Sequence[Score], pair: SetPair) -> list[str]:
    warnings = []
    for name in pair.real.modalities:
        made, real = (
            sum(e.modality == name for e in rows.entries) / len(rows) for rows in (pair.generated, pair.real)
        )
        if abs(made - real) > UNEVEN:
            warnings.append(
                f"{name} makes up {made:.0%} of the generated and {real:.0%} of the real volumes: this difference is "
                "part of the scores over all modalities; read those of each modality."
            )
    weak = sorted({score.metric for score in scores if not score.reliable})
    if weak:
        warnings.append(
            f"Too few volumes to rely on {', '.join(weak)}; the notes say how many patients are needed."
        )
    return warnings
