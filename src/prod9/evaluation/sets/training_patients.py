"""Whether an evaluation compares with patients that the model was trained on.

A model may reproduce those, so any score against them is better than the model is. Who they are is known from the
split of a run: of the autoencoder that is named, or of the runs beside the generated volumes whose checkpoints
made them, by the hashes in ``manifest.json``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod9.data.splits import Split
from prod9.errors import Prod9Error
from prod9.evaluation.sets.entries import Entry

SPLIT = "split.json"
_MANIFEST = "manifest.json"
_HASH = re.compile(r"[0-9a-f]{64}")
_LEVELS_UP = 3
"""Folders above the generated volumes in which runs are looked for; each with the folders in it."""


@dataclass(frozen=True)
class TrainingPatients:
    """What is known of the real set. patients: of them, those that were trained or selected on; None: not known.

    source: the split that tells. total: patients of the real set.
    """

    total: int
    patients: tuple[str, ...] | None = None
    source: str | None = None

    def warning(self) -> str | None:
        """Return what has to be said; None where it is known that none was trained on."""
        if self.patients is None:
            return (
                "It is not known on which patients the model was trained: no --split was given. Scores against "
                "training patients look better than the model is; name the run's split.json with --split."
            )
        if not self.patients:
            return None
        return (
            f"{len(self.patients)} of the {self.total} real patients were trained or selected on, as {self.source} "
            "says: these scores look better than the model is. Compare with its test patients alone: --split."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        known = self.patients is not None
        return {
            "known": known,
            "count": None if self.patients is None else len(self.patients),
            "of": self.total,
            "source": self.source,
        }


def find_training_patients(
    real: Sequence[Entry], generated: Path, *, split: str | None = None, autoencoder: str | None = None
) -> TrainingPatients:
    """Return which patients of ``real`` were trained or selected on, as far as anything here knows."""
    patients = {entry.patient_id for entry in real}
    splits = list(_splits(generated, split, autoencoder))
    if not splits:
        return TrainingPatients(len(patients))
    used = {patient for _, known in splits for patient in (*known.train, *known.val)} & patients
    sources = [source for source, known in splits if not used or used & {*known.train, *known.val}]
    return TrainingPatients(len(patients), tuple(sorted(used)), ", ".join(dict.fromkeys(sources)))


def _splits(generated: Path, split: str | None, autoencoder: str | None) -> Iterator[tuple[str, Split]]:
    if split is not None:
        yield split, Split.load(Path(split))
    if autoencoder is not None:
        yield from _of_checkpoint(autoencoder)
    hashes = _hashes(generated)
    for run in _runs_near(generated) if hashes else ():
        made = {
            word
            for file in (run / "checkpoints").glob("*.sha256")
            for word in file.read_text(encoding="utf-8", errors="replace").split()[:1]
        }
        if made & hashes:
            try:
                yield str(run / SPLIT), Split.load(run / SPLIT)
            except Prod9Error:
                continue


def _of_checkpoint(path: str) -> Iterator[tuple[str, Split]]:
    from prod9.models.checkpoint_manager import CheckpointManager

    parts = CheckpointManager.open(path).header["split"]
    # Weights of others say of nobody that they were trained on him.
    if any(parts.values()):
        yield path, Split.from_dict(parts)


def _hashes(generated: Path) -> set[str]:
    """Return the hashes of the checkpoints that made the volumes; none where no manifest tells."""
    try:
        settings = json.loads((generated / _MANIFEST).read_text("utf-8"))["settings"]
        return set(_HASH.findall(json.dumps(settings)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _runs_near(generated: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    place = generated.resolve()
    for _ in range(_LEVELS_UP + 1):
        for run in (place, *sorted(path.parent for path in place.glob(f"*/{SPLIT}"))):
            if run not in seen and (run / SPLIT).is_file():
                seen.add(run)
                yield run
        place = place.parent
