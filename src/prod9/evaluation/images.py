"""``prod9 evaluate images``: a folder of generated volumes against a folder of real ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prod9.autoencoder.padding import pad_to_multiple
from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.features import (
    AutoencoderFeatures,
    ClassifierFeatures,
    RandomFeatures,
    SliceExtractor,
)
from prod9.evaluation.judges.file_features import load_file_features
from prod9.evaluation.judges.judge import Judge, load_judge, train_judge
from prod9.evaluation.judges.networks import coarsen
from prod9.evaluation.paired_files import score_pairs
from prod9.evaluation.score_table import Evaluation, Score
from prod9.evaluation.set_scores import Resampling, score_sets
from prod9.evaluation.sets.intervals import mean_interval, score_interval
from prod9.evaluation.sets.members import number_members
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
from prod9.measures.metrics import inception_score
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.stages import AUTOENCODERS

KINDS = ("random", "autoencoder", "classifier")
UNEVEN = 0.1
"""Difference of a modality's share of both sets above which scores over all modalities are warned about."""

Report = Callable[[str, int, int], None]
"""Called with (what is under way, done, total)."""


@dataclass(frozen=True)
class ImageSettings:
    """What is asked for. extractors: ``random``, ``autoencoder``, ``classifier`` or ``file:PATH``.

    autoencoder: run folder, checkpoint or export of the extractor of that name. classifier: a file that an
    earlier evaluation wrote; None to train one where it is needed. paired, resample: also compare volumes of the
    same case, brought to the real one's voxels. layout, label_scheme: of the real set. split: a ``split.json``; of
    the real set only its test patients are used. replicates: bootstrap samples.
    """

    extractors: tuple[str, ...] = ("random",)
    autoencoder: str | None = None
    classifier: str | None = None
    classifier_steps: int = 400
    inception_score: bool = False
    paired: bool = False
    resample: bool = False
    modalities: tuple[str, ...] = ()
    split: str | None = None
    layout: str = "auto"
    label_scheme: str = "auto"
    grid: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    skip_bad: bool = False
    replicates: int = 100
    seed: int = 0


@dataclass(frozen=True)
class ImageEvaluation:
    """The result, and the classifier that was trained for it, if one was."""

    evaluation: Evaluation
    judge: Judge | None = None


def check_settings(settings: ImageSettings) -> None:
    """Refuse what cannot work before anything is read (ConfigError)."""
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
            "says nothing. Train one with --extractor classifier, or pass --classifier FILE."
        )


def evaluate_images(
    real_root: Path,
    generated_root: Path,
    settings: ImageSettings,
    *,
    device: torch.device | None = None,
    report: Report = lambda what, done, total: None,
    keep: Path | None = None,
) -> ImageEvaluation:
    """Score the volumes below ``generated_root`` against those below ``real_root``.

    keep: a file for the scores of pairs as they come; an interrupted evaluation goes on from there.
    Raises ConfigError for settings that cannot work, DataError for folders or files that cannot be used.
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
    scores, cases = [], []
    if settings.paired:
        pairs = match_pairs(real, generated, bad)
        scores, cases = score_pairs(
            pairs,
            bad,
            resample=settings.resample,
            replicates=settings.replicates,
            seed=settings.seed,
            progress=lambda done, total: report("Pairs", done, total),
            keep=keep,
        )
    real, generated = _comparable(real, generated, bad)
    preparation, real, generated = prepare_for(
        real, generated, bad, grid=settings.grid, spacing=settings.spacing
    )
    judge, trained = _judge(settings, real, preparation, bad, report)
    extractors = [_build(name, settings, judge, device) for name in dict.fromkeys(settings.extractors)]
    sets = [
        describe_set(
            shuffled(entries, seed=settings.seed),
            preparation,
            extractors,
            bad,
            describe={PROBABILITIES: _probabilities(judge, device)} if judge else {},
            device=device,
            progress=lambda done, total, what=what: report(what, done, total),
        )
        for what, entries in (("Real", real), ("Generated", generated))
    ]
    resampling = Resampling(replicates=settings.replicates, seed=settings.seed)
    found = score_sets(sets[1], sets[0], [extractor.name for extractor in extractors], resampling)
    if judge is not None:
        found += _judged(judge, sets[1], sets[0], settings)
    rows = [*scores, *found]
    evaluation = Evaluation(
        command="evaluate images",
        settings={
            **asdict(settings),
            "grid": list(preparation.grid),
            "extractor_names": [extractor.name for extractor in extractors],
        },
        sets={
            "real": _about(real_root, sets[0]) | {"training_patients": trained_on.to_dict()},
            "generated": _about(generated_root, sets[1]),
        },
        patients={"real": sets[0].num_patients, "generated": sets[1].num_patients},
        scores=[score.to_dict() for score in rows],
        cases=cases,
        skipped=bad.skipped,
        left_out=bad.left_out,
        warnings=[*filter(None, [trained_on.warning()]), *bad.missing, *_warnings(rows, sets[1], sets[0])],
    )
    return ImageEvaluation(evaluation, trained)


# -- what is compared -----------------------------------------------------------------------------


def _comparable(
    real: Sequence[Entry], generated: Sequence[Entry], bad: BadFiles
) -> tuple[list[Entry], list[Entry]]:
    """Return the entries whose modality the other set has too; ``bad`` notes the others."""
    common = {entry.modality for entry in real} & {entry.modality for entry in generated}
    if not common:
        names = [", ".join(sorted({entry.modality for entry in entries})) for entries in (real, generated)]
        raise DataError(
            f"expected generated volumes of the real ones' modalities, {names[0]}, got {names[1]}; name the files as "
            "`prod9 generate` does (T1_0000.nii.gz), or choose the folders' modalities with --modality."
        )
    for what, other, entries in (("real", "generated", real), ("generated", "real", generated)):
        for modality in sorted({entry.modality for entry in entries} - common):
            alone = [entry.path for entry in entries if entry.modality == modality]
            bad.leave_out(f"{what} volumes of {modality}, of which there are no {other} ones", alone)
    return [e for e in real if e.modality in common], [e for e in generated if e.modality in common]


def _about(root: Path, rows: SetRows) -> dict[str, Any]:
    return {
        "path": str(root),
        "cases": len({entry.case_id for entry in rows.entries}),
        "volumes": len(rows),
        "modalities": rows.modalities,
    }


def _warnings(scores: Sequence[Score], generated: SetRows, real: SetRows) -> list[str]:
    warnings = []
    for name in real.modalities:
        shares = [sum(e.modality == name for e in rows.entries) / len(rows) for rows in (generated, real)]
        if abs(shares[0] - shares[1]) > UNEVEN:
            warnings.append(
                f"{name} makes up {shares[0]:.0%} of the generated and {shares[1]:.0%} of the real volumes: scores "
                "over all modalities show that too; read those of each modality."
            )
    weak = sorted({score.metric for score in scores if not score.reliable})
    if weak:
        warnings.append(
            f"Too few volumes to rely on {', '.join(weak)}; the notes say how many patients it takes."
        )
    return warnings


# -- extractors and the classifier ----------------------------------------------------------------


def _build(name: str, settings: ImageSettings, judge: Judge | None, device: torch.device) -> SliceExtractor:
    if name == "random":
        extractor = RandomFeatures(seed=0)
        extractor.network.to(device)
        return extractor
    if name == "classifier":
        assert judge is not None  # one was trained or loaded for it
        return ClassifierFeatures(judge.classifier.to(device))
    if name == "autoencoder":
        assert settings.autoencoder is not None  # checked above
        path = settings.autoencoder
        if CheckpointManager.open(path, stage=AUTOENCODERS).header["stage"] == "maisi_vae":
            network = CheckpointManager.load_autoencoder(path, stage="maisi_vae").network
        else:
            network = CheckpointManager.load_autoencoder(path).network
        return AutoencoderFeatures(_PaddedEncoder(network.to(device).eval().requires_grad_(False)))
    return load_file_features(name.removeprefix("file:"))


class _PaddedEncoder:
    """An autoencoder that takes volumes of any sides."""

    def __init__(self, network: Any) -> None:
        self.network: nn.Module = network
        self._multiple = int(network.downsampling_factor)

    def encode(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Encode ``x`` with background appended up to sides that the network takes."""
        return self.network.encode(pad_to_multiple(x, self._multiple))  # pyright: ignore[reportCallIssue]

    def state_dict(self) -> dict[str, Any]:
        """Return the network's weights."""
        return self.network.state_dict()


def _judge(
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
        progress=lambda done, total: report("Classifier", done, total),
    )
    return judge, judge


def _probabilities(judge: Judge, device: torch.device) -> Callable[[Tensor], Tensor]:
    classifier = judge.classifier.to(device)
    return lambda volume: classifier.probabilities(coarsen(volume))


def _judged(judge: Judge, generated: SetRows, real: SetRows, settings: ImageSettings) -> list[Score]:
    """Return the Inception Score if asked for, and how often the classifier sees the modality a file is named by."""
    probabilities = {name: rows.rows[PROBABILITIES] for name, rows in (("made", generated), ("real", real))}
    common: Mapping[str, Any] = {
        "group": "classifier",
        "num_real": len(real),
        "patients_generated": generated.num_patients,
        "patients_real": real.num_patients,
        "better": "higher",
    }
    trust = f"right on {judge.accuracy:.1%} of {judge.num_unseen} real volumes that it did not see"
    (members, there) = number_members(
        *([(entry.patient_id, entry.modality) for entry in rows.entries] for rows in (generated, real))
    )
    scores = [
        Score(
            **common,
            metric="classifier_accuracy",
            value=judge.accuracy,
            num_generated=len(generated),
            note="on real volumes that it did not see in training",
        )
    ]
    wanted = torch.tensor([judge.labels.index(entry.modality) for entry in generated.entries])
    right = (probabilities["made"].argmax(1) == wanted).double()
    scores.append(
        Score(
            **common,
            metric="modality_accuracy",
            value=right.mean().item(),
            num_generated=len(generated),
            interval=mean_interval(
                right,
                replicates=settings.replicates,
                seed=settings.seed,
                patients=members.patients,
                bounds=(0.0, 1.0),
            ),
            note=f"generated volumes taken for what they are named; the classifier is {trust}",
        )
    )
    if settings.inception_score:
        made = probabilities["made"]
        scores.append(
            Score(
                **common,
                metric="inception_score",
                value=inception_score(made).item(),
                num_generated=len(generated),
                interval=score_interval(
                    lambda i, _: inception_score(made[i]).item(),
                    members,
                    there,
                    replicates=settings.replicates,
                    seed=settings.seed,
                    least=1.0,
                ),
                note=f"from 1 to {len(judge.labels)}; real volumes give "
                f"{inception_score(probabilities['real']).item():.3f}; the classifier is {trust}",
            )
        )
    return scores
