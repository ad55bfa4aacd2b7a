"""A modality classifier for an evaluation, trained on one half of the real patients and tested on the other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prod9.errors import ConfigError, DataError
from prod9.evaluation.judges.classifier import ModalityClassifier, train_classifier
from prod9.evaluation.judges.networks import coarsen
from prod9.evaluation.score_table import Score
from prod9.evaluation.sets.pair import SetPair
from prod9.evaluation.sets.rows import PROBABILITIES
from prod9.evaluation.sets.volume_sets import BadFiles, Entry, Preparation
from prod9.files import atomic_write
from prod9.measures.metrics import inception_score
from prod9.system.progress import Progress

FILE = "classifier.safetensors"
MOST_VOLUMES = 240
"""Most volumes of each half: all of them are in memory at once, with at most 64³ voxels each."""


@dataclass(frozen=True)
class Judge:
    """A classifier and how far its answers can be trusted.

    Attributes:
        classifier: in evaluation mode.
        labels: name of each class.
        accuracy: share of right answers on real volumes that were not used in training.
        num_unseen: how many volumes those were.
    """

    classifier: ModalityClassifier
    labels: tuple[str, ...]
    accuracy: float
    num_unseen: int

    def save(self, path: Path) -> None:
        """Write weights, labels and accuracy as safetensors."""
        about = {"labels": self.labels, "accuracy": self.accuracy, "num_unseen": self.num_unseen}
        weights = {name: value.cpu().contiguous() for name, value in self.classifier.state_dict().items()}
        with atomic_write(path) as temporary:
            save_file(weights, temporary, metadata={"prod9_classifier": json.dumps(about)})


def load_judge(path: Path, wanted: Sequence[str]) -> Judge:
    """Read what :meth:`Judge.save` wrote; ``wanted`` are the labels of the volumes to judge.

    Raises DataError for another file, ConfigError where it was trained on other labels.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            about = json.loads((stored.metadata() or {})["prod9_classifier"])
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        classifier = ModalityClassifier(num_classes=len(about["labels"]))
        classifier.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path}: expected a classifier that `prod9 evaluate images --extractor classifier` wrote, got something "
            f"else ({error})."
        ) from error
    labels = tuple(about["labels"])
    strange = sorted(set(wanted) - set(labels))
    if strange:
        raise ConfigError(
            f"--classifier {path}: expected one trained on {', '.join(sorted(set(wanted)))}, got one of "
            f"{', '.join(labels)}; train one with --extractor classifier."
        )
    return Judge(
        classifier.eval().requires_grad_(False), labels, float(about["accuracy"]), int(about["num_unseen"])
    )


def train_judge(
    entries: Sequence[Entry],
    preparation: Preparation,
    bad: BadFiles,
    *,
    seed: int,
    steps: int,
    progress: Progress | None = None,
) -> Judge:
    """Train on the volumes of one half of the patients and measure the accuracy on the other half.

    Raises ConfigError for fewer than two modalities or fewer than two patients.

    Args:
        entries: real volumes.
        preparation: how they are read.
        bad: notes files that cannot be read.
        seed: of the division into halves and of the training.
        steps: training steps.
        progress: called after each volume that was read.
    """
    labels = tuple(sorted({entry.modality for entry in entries}))
    patients = sorted({entry.patient_id for entry in entries})
    if len(labels) < 2 or len(patients) < 2:
        raise ConfigError(
            f"--extractor classifier: expected real volumes of at least 2 modalities and 2 patients to train on, got "
            f"{', '.join(labels)} of {len(patients)} patients; use another extractor."
        )
    order = torch.randperm(len(patients), generator=torch.Generator().manual_seed(seed)).tolist()
    seen = {patients[i] for i in order[: len(patients) // 2]}
    halves = [[e for e in entries if (e.patient_id in seen) == inside] for inside in (True, False)]
    total = sum(min(len(half), MOST_VOLUMES) for half in halves)
    read = 0
    sets: list[tuple[Tensor, Tensor]] = []
    for half in halves:
        volumes, classes = [], []
        for entry in half[:: -(-len(half) // MOST_VOLUMES)]:
            try:
                volumes.append(coarsen(preparation.read(entry)))
            except DataError as error:
                bad.report(entry, error)
                continue
            classes.append(labels.index(entry.modality))
            read += 1
            if progress is not None:
                progress(read, total)
        if not volumes:
            raise DataError("expected readable real volumes to train the classifier on, got none.")
        sets.append((torch.cat(volumes), torch.tensor(classes)))
    classifier = train_classifier(*sets[0], num_classes=len(labels), seed=seed, steps=steps)
    return Judge(classifier, labels, classifier.accuracy(*sets[1]), len(sets[1][1]))


def score_with_judge(judge: Judge, pair: SetPair, *, inception: bool) -> list[Score]:
    """Return how often the classifier finds the modality that a file is named by, and the Inception Score if wanted.

    Both sets have rows of :data:`~prod9.evaluation.sets.rows.PROBABILITIES`.
    """
    made, real = (rows.rows[PROBABILITIES] for rows in (pair.generated, pair.real))
    about = {"group": "classifier", "better": "higher"}
    trust = f"right on {judge.accuracy:.1%} of {judge.num_unseen} real volumes that it did not see"
    wanted = torch.tensor([judge.labels.index(entry.modality) for entry in pair.generated.entries])
    right = (made.argmax(1) == wanted).double()
    scores = [
        pair.score(
            "on real volumes that it did not see in training",
            **about,
            metric="classifier_accuracy",
            value=judge.accuracy,
        ),
        pair.score(
            f"generated volumes whose modality, as named, is found; the classifier is {trust}",
            **about,
            metric="modality_accuracy",
            value=right.mean().item(),
            interval=pair.mean_interval(right, pair.members[0].patients, bounds=(0.0, 1.0)),
        ),
    ]
    if inception:
        scores.append(
            pair.score(
                f"from 1 to {len(judge.labels)}; real volumes give {inception_score(real).item():.3f}; the classifier "
                f"is {trust}",
                **about,
                metric="inception_score",
                value=inception_score(made).item(),
                interval=pair.score_interval(lambda i, _: inception_score(made[i]).item(), least=1.0),
            )
        )
    return scores
