"""What is compared by ``prod9 evaluate images``: two sets of volumes, brought together; and their features by parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.features import SliceExtractor
from prod9.evaluation.judges.judge import Judge, load_judge, train_judge
from prod9.evaluation.judges.loading import KINDS, load_extractor
from prod9.evaluation.judges.networks import coarsen
from prod9.evaluation.sets.denoised import Levels, measure_noise
from prod9.evaluation.sets.kept_rows import KeptRows
from prod9.evaluation.sets.rows import PROBABILITIES, Describe, describe_set, pair_patients, share_of
from prod9.evaluation.sets.volume_sets import (
    BadFiles,
    Entry,
    Preparation,
    find_volumes,
    prepare_for,
    require_other,
    shuffled,
)
from prod9.evaluation.settings import Report, SetSettings, silent
from prod9.files import sha256
from prod9.system.parts import WorkPart


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


def check_settings(settings: ImageSettings) -> None:
    """Raise ConfigError for settings that cannot work, before anything is read."""
    for name in settings.extractors:
        if name not in KINDS and not name.startswith("file:"):
            raise ConfigError(f"--extractor: expected {', '.join(KINDS)} or file:PATH, got {name}")
    if "autoencoder" in settings.extractors and settings.autoencoder is None:
        raise ConfigError(
            "--extractor autoencoder: expected --autoencoder NAME|PATH too, got none; name a stage 1"
        )
    if settings.inception_score and settings.classifier is None and "classifier" not in settings.extractors:
        raise ConfigError(
            "--inception-score: expected a classifier trained on the same labels, got none: without one the score "
            "means nothing. Train one with --extractor classifier, or pass --classifier FILE."
        )


@dataclass(frozen=True)
class Compared:
    """Two sets that are ready to be described, and how.

    Attributes:
        sets: ``real`` and ``generated`` volumes, shuffled.
        preparation: how they are read.
        extractors: of features.
        describe: what makes further rows.
        judge: the classifier.
        noise: levels of the real volumes.
        settings: plain values that decide the rows.
    """

    sets: dict[str, Sequence[Entry]]
    preparation: Preparation
    extractors: list[SliceExtractor]
    describe: dict[str, Describe]
    judge: Judge | None
    noise: Levels | None
    settings: dict[str, Any]


def find_sets(
    real_root: Path, generated_root: Path, settings: ImageSettings, bad: BadFiles
) -> tuple[list[Entry], list[Entry]]:
    """Return the volumes of both folders.

    Args:
        real_root: folder of the real volumes.
        generated_root: folder of the generated ones.
        settings: of the comparison.
        bad: notes the files that cannot be used.
    """
    require_other(real_root, generated_root)
    real = find_volumes(
        real_root,
        layout=settings.layout,
        label_scheme=settings.label_scheme,
        modalities=settings.modalities,
        split=None if settings.split is None else Path(settings.split),
        without=generated_root,
        bad=bad,
    )
    return real, find_volumes(generated_root, modalities=settings.modalities, bad=bad)


def compare_sets(
    settings: ImageSettings,
    real: Sequence[Entry],
    generated: Sequence[Entry],
    bad: BadFiles,
    device: torch.device,
    report: Report,
) -> Compared:
    """Bring both sets together: the same modalities and grid, one classifier, the noise of the real ones.

    Args:
        settings: of the comparison.
        real: the real volumes.
        generated: the generated ones.
        bad: notes the files that cannot be used.
        device: where to compute.
        report: called with what is being done.
    """
    real, generated = _comparable(real, generated, bad)
    preparation, real, generated = prepare_for(
        real, generated, bad, grid=settings.grid, spacing=settings.spacing
    )
    judge = _find_judge(settings, real, preparation, bad, report)
    noise = measure_noise(real, preparation, bad) if settings.denoised else None
    classifier = None if judge is None else judge.classifier.to(device)
    extractors = [
        load_extractor(name, autoencoder=settings.autoencoder, classifier=classifier, device=device)
        for name in dict.fromkeys(settings.extractors)
    ]
    describe: dict[str, Describe] = {}
    if classifier is not None:
        describe[PROBABILITIES] = lambda volume: classifier.probabilities(coarsen(volume))
    return Compared(
        {
            "real": shuffled(real, seed=settings.seed),
            "generated": shuffled(generated, seed=settings.seed),
        },
        preparation,
        extractors,
        describe,
        judge,
        noise,
        {
            "grid": list(preparation.grid),
            "spacing": preparation.spacing,
            "extractors": [extractor.name for extractor in extractors],
            "autoencoder": settings.autoencoder,
            "classifier": None if settings.classifier is None else sha256(Path(settings.classifier)),
            "noise": noise,
        },
    )


def describe_part(
    real_root: Path,
    generated_root: Path,
    settings: ImageSettings,
    work: WorkPart,
    folder: Path,
    *,
    expect: Callable[[Mapping[str, Any], Sequence[str], Sequence[str]], None],
    device: torch.device | None = None,
    report: Report = silent,
) -> int:
    """Compute the features of one part of the volumes of both folders, into ``folder``; return how many volumes.

    Raises ConfigError and DataError as :func:`evaluate_images`.

    Args:
        real_root: folder of real volumes.
        generated_root: folder of generated volumes.
        settings: what is asked for.
        work: which part.
        folder: where it is kept; what is there already counts.
        expect: called first with the settings that decide the features, the names of the files of this part, and
            those of all parts.
        device: where features are computed; the CPU by default.
        report: called with the progress of each set.
    """
    check_settings(settings)
    device, bad = device or torch.device("cpu"), BadFiles(skip=settings.skip_bad)
    compared = compare_sets(
        settings, *find_sets(real_root, generated_root, settings, bad), bad, device, report
    )
    kept = {what: KeptRows(folder, what, compared.settings, writes=True) for what in compared.sets}
    mine, names, all_names = 0, list[str](), list[str]()
    for what, entries in compared.sets.items():
        twosomes, ordered = pair_patients(entries)
        names += [kept[what].name(entry) for entry in share_of(work, twosomes, ordered)]
        all_names += [kept[what].name(entry) for entry in ordered]
    expect(compared.settings, names, all_names)
    for what, entries in compared.sets.items():
        share = share_of(work, *pair_patients(entries))
        mine += len(share)
        if share:
            describe_set(
                entries,
                compared.preparation,
                compared.extractors,
                bad,
                describe=compared.describe,
                noise=compared.noise,
                device=device,
                progress=partial(report, what.capitalize()),
                kept_rows=kept[what],
                work=work,
            )
    return mine


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
) -> Judge | None:
    """Return the classifier, if one is asked for; without a file it is trained here."""
    if settings.classifier is not None:
        return load_judge(Path(settings.classifier), [entry.modality for entry in real])
    if "classifier" not in settings.extractors:
        return None
    return train_judge(
        real,
        preparation,
        bad,
        seed=settings.seed,
        steps=settings.classifier_steps,
        progress=partial(report, "Classifier"),
    )
