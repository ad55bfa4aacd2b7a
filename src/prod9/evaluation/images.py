"""``prod9 evaluate images``: a folder of generated volumes against a folder of real ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.judge import Judge, load_judge, score_with_judge, train_judge
from prod9.evaluation.judges.loading import KINDS, load_extractor
from prod9.evaluation.judges.networks import coarsen
from prod9.evaluation.paired_files import Case, score_pairs
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.set_scores import score_sets
from prod9.evaluation.sets.denoised import Levels, measure_noise
from prod9.evaluation.sets.pair import Resampling, SetPair
from prod9.evaluation.sets.rows import PROBABILITIES, SetRows, describe_set
from prod9.evaluation.sets.training_patients import find_training_patients
from prod9.evaluation.sets.volume_sets import (
    BadFiles,
    Entry,
    Preparation,
    find_volumes,
    match_pairs,
    prepare_for,
    shuffled,
)
from prod9.evaluation.settings import Report, SetSettings, silent

UNEVEN = 0.1
"""Difference of a modality's share of both sets above which scores over all modalities are warned about."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings(SetSettings):
    """What is asked for.

    Attributes:
        extractors: ``random``, ``autoencoder``, ``classifier`` or ``file:PATH``.
        autoencoder: run folder, checkpoint or export of the extractor of that name.
        classifier: a file that an earlier evaluation wrote; None to train a classifier where one is needed.
        classifier_steps: training steps of that classifier.
        inception_score: also compute the Inception Score.
        denoised: also compare the volumes of both sets after they were denoised alike.
        paired: also compare volumes of the same case.
        resample: bring the generated volume of a pair to the voxels of the real one.
    """

    extractors: tuple[str, ...] = ("random",)
    autoencoder: str | None = None
    classifier: str | None = None
    classifier_steps: int = 400
    inception_score: bool = False
    denoised: bool = True
    paired: bool = False
    resample: bool = False


@dataclass(frozen=True)
class ImageEvaluation:
    """The result, and the classifier that was trained for it, if one was."""

    evaluation: Evaluation
    judge: Judge | None = None


def check_settings(settings: ImageSettings) -> None:
    """Raise ConfigError for settings that cannot work, before anything is read."""
    for name in settings.extractors:
        if name not in KINDS and not name.startswith("file:"):
            raise ConfigError(f"--extractor: expected {', '.join(KINDS)} or file:PATH, got {name}")
    if "autoencoder" in settings.extractors and settings.autoencoder is None:
        raise ConfigError(
            "--extractor autoencoder: expected --autoencoder RUN|CHECKPOINT|EXPORT too, got none; name a stage 1"
        )
    if settings.inception_score and settings.classifier is None and "classifier" not in settings.extractors:
        raise ConfigError(
            "--inception-score: expected a classifier trained on the same labels, got none: without one the score "
            "means nothing. Train one with --extractor classifier, or pass --classifier FILE."
        )


def evaluate_images(
    real_root: Path,
    generated_root: Path,
    settings: ImageSettings,
    *,
    device: torch.device | None = None,
    report: Report = silent,
    keep: Path | None = None,
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
    """
    check_settings(settings)
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    real = find_volumes(
        real_root,
        layout=settings.layout,
        label_scheme=settings.label_scheme,
        modalities=settings.modalities,
        split=None if settings.split is None else Path(settings.split),
        bad=bad,
    )
    generated = find_volumes(generated_root, modalities=settings.modalities, bad=bad)
    trained_on = find_training_patients(
        real, generated_root, split=settings.split, autoencoder=settings.autoencoder
    )
    pairs = match_pairs(real, generated, bad) if settings.paired else []
    scores, cases = _score_pairs(settings, pairs, bad, report, keep)
    real, generated = _comparable(real, generated, bad)
    preparation, real, generated = prepare_for(
        real, generated, bad, grid=settings.grid, spacing=settings.spacing
    )
    judge, trained = _find_judge(settings, real, preparation, bad, report)
    noise = measure_noise(real, preparation, bad) if settings.denoised else None
    pair, names = _describe(settings, (real, generated), preparation, judge, noise, bad, device, report)
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


def _comparable(
    real: Sequence[Entry], generated: Sequence[Entry], bad: BadFiles
) -> tuple[list[Entry], list[Entry]]:
    """Return the entries whose modality is in both sets; ``bad`` notes the others."""
    kinds = [{entry.modality for entry in entries} for entries in (real, generated)]
    common = kinds[0] & kinds[1]
    if not common:
        names = [", ".join(sorted(own)) for own in kinds]
        raise DataError(
            f"expected generated volumes of the real ones' modalities, {names[0]}, got {names[1]}; name the files as "
            "`prod9 generate` does (T1_0000.nii.gz), or choose the folders' modalities with --modality."
        )
    for what, other, entries, own in (
        ("real", "generated", real, kinds[0]),
        ("generated", "real", generated, kinds[1]),
    ):
        for modality in sorted(own - common):
            alone = [entry.path for entry in entries if entry.modality == modality]
            bad.leave_out(f"{what} volumes of {modality}, of which there are no {other} ones", alone)
    return [e for e in real if e.modality in common], [e for e in generated if e.modality in common]


def _find_judge(
    settings: ImageSettings,
    real: Sequence[Entry],
    preparation: Preparation,
    bad: BadFiles,
    report: Report,
) -> tuple[Judge | None, Judge | None]:
    """Return the classifier, if one is asked for, and the same once more if it was trained here."""
    if settings.classifier is not None:
        return load_judge(Path(settings.classifier), [entry.modality for entry in real]), None
    if "classifier" not in settings.extractors:
        return None, None
    judge = train_judge(
        real,
        preparation,
        bad,
        seed=settings.seed,
        steps=settings.classifier_steps,
        progress=partial(report, "Classifier"),
    )
    return judge, judge


def _describe(
    settings: ImageSettings,
    sets: tuple[Sequence[Entry], Sequence[Entry]],
    preparation: Preparation,
    judge: Judge | None,
    noise: Levels | None,
    bad: BadFiles,
    device: torch.device,
    report: Report,
) -> tuple[SetPair, list[str]]:
    """Read the real and the generated set; return what is kept of both, and the names of the extractors."""
    classifier = None if judge is None else judge.classifier.to(device)
    extractors = [
        load_extractor(name, autoencoder=settings.autoencoder, classifier=classifier, device=device)
        for name in dict.fromkeys(settings.extractors)
    ]
    describe = {}
    if classifier is not None:
        describe[PROBABILITIES] = lambda volume: classifier.probabilities(coarsen(volume))
    real, generated = (
        describe_set(
            shuffled(entries, seed=settings.seed),
            preparation,
            extractors,
            bad,
            describe=describe,
            noise=noise,
            device=device,
            progress=partial(report, what),
        )
        for what, entries in zip(("Real", "Generated"), sets, strict=True)
    )
    resampling = Resampling(settings.replicates, settings.seed)
    return SetPair(generated, real, resampling), [extractor.name for extractor in extractors]


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
