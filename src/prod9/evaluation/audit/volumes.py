"""The copy audit from files to its report: reads each volume once, compares, and draws the suspects."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prod9
from prod9.data.layouts.names import MODALITIES
from prod9.errors import DataError
from prod9.evaluation.audit.embeddings import Embedding, VoxelEmbedding
from prod9.evaluation.audit.run import MIN_PATIENTS, Comparison, Described, compare, required_held_out
from prod9.evaluation.sets.entries import require_finite
from prod9.evaluation.sets.volume_sets import BadFiles, Entry
from prod9.files import atomic_write
from prod9.measures.montage import write_montage
from prod9.volumes import VolumeFile, read

Progress = Callable[[int, int], None]
FORMAT = 1
RESULT = "audit.json"
PICTURE = "nearest.png"
MAX_PICTURES = 8
_PICTURE_SIDE = 96


@dataclass(frozen=True)
class AuditSets:
    """The volumes of the three sets. Raises DataError where a patient is in ``train`` and in ``held_out``."""

    train: Sequence[Entry]
    held_out: Sequence[Entry]
    generated: Sequence[Entry]

    def __post_init__(self) -> None:
        both = sorted({e.patient_id for e in self.train} & {e.patient_id for e in self.held_out})
        if both:
            raise DataError(
                f"expected held-out patients that the model never saw, got {_some(both)} among the training patients "
                f"too ({len(both)} in all); take them out of one of the two."
            )


@dataclass(frozen=True)
class Pair:
    """A generated volume and the training volume it is nearest to.

    mirrored: array axes (RAS) that were reversed to find it. distances: relative distance by embedding, the one that
    accuses it most first. suspect: whether any of them is below its threshold.
    """

    generated: Entry
    train: Entry
    mirrored: tuple[int, ...]
    distances: dict[str, float]
    p_value: float
    suspect: bool


@dataclass(frozen=True)
class Audit:
    """The result. max_share: limit on the share of suspects; false_alarms: what the threshold was set for.

    gaps: a sentence for each thing that should have been looked at and was not. An audit with gaps has not passed:
    what was left out may be the copy, or what it was copied from.
    """

    sets: AuditSets
    comparisons: Sequence[Comparison]
    mirrors: dict[str, tuple[tuple[int, ...], ...]]
    false_alarms: float
    max_share: float
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every generated volume with the training volume it is nearest to, suspects first, then the nearest."""
        found = [self._pair(k) for k in range(len(self.sets.generated))]
        return sorted(found, key=lambda pair: (not pair.suspect, min(pair.distances.values())))

    @property
    def suspects(self) -> list[Pair]:
        """Those that are suspect by any embedding."""
        return [pair for pair in self.pairs if pair.suspect]

    @property
    def share(self) -> float:
        """Share of the generated volumes that is suspect."""
        return len(self.suspects) / len(self.sets.generated)

    @property
    def passed(self) -> bool:
        """Whether the share is within the limit and nothing was left out."""
        return self.share <= self.max_share and not self.gaps

    def to_dict(self) -> dict[str, Any]:
        """Return the whole as plain values, for JSON."""
        return {
            "format": FORMAT,
            "command": "audit",
            "prod9": prod9.__version__,
            "passed": self.passed,
            "share_suspect": self.share,
            "max_share": self.max_share,
            "false_alarms": self.false_alarms,
            "sets": {name: _summary(getattr(self.sets, name)) for name in ("train", "held_out", "generated")},
            "embeddings": [_embedding(c) for c in self.comparisons],
            "pairs": [_plain(pair) for pair in self.pairs],
            "skipped": self.skipped,
            "left_out": self.left_out,
            "gaps": self.gaps,
        }

    def write(self, folder: Path, voxels: VoxelEmbedding) -> None:
        """Write ``audit.json`` and then ``nearest.png`` into ``folder``: the verdict does not wait for pictures."""
        self.write_verdict(folder)
        self.write_pictures(folder / PICTURE, voxels)

    def write_verdict(self, folder: Path) -> None:
        """Write ``audit.json``; pictures of an earlier audit, which are not this one's, are removed."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PICTURE).unlink(missing_ok=True)
        with atomic_write(folder / RESULT) as temporary:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def write_pictures(self, path: Path, voxels: VoxelEmbedding) -> None:
        """Draw the first of ``pairs``, beside what they are nearest to, and the difference, as one PNG."""
        rows = []
        for pair in self.pairs[:MAX_PICTURES]:
            word = "suspect, " if pair.suspect else ""
            made = voxels.cube(_read(pair.generated), _PICTURE_SIDE)
            real = voxels.cube(_read(pair.train), _PICTURE_SIDE)
            made = made.flip(pair.mirrored) if pair.mirrored else made
            turned = ", mirrored" if pair.mirrored else ""
            rows.append([
                (f"{pair.generated.path.name}{turned}", made.clamp(0, 1).numpy()),
                (f"nearest in training: {pair.train.case_id} {pair.train.modality}", real.clamp(0, 1).numpy()),
                (f"difference ({word}relative distance {min(pair.distances.values()):.2f})",
                 (made - real).abs().clamp(0, 1).numpy()),
            ])  # fmt: skip
        write_montage(path, rows)

    def _pair(self, k: int) -> Pair:
        accusers = sorted(self.comparisons, key=lambda c: (not c.suspect[k], c.generated[k].item()))
        first = accusers[0]
        return Pair(
            generated=self.sets.generated[k],
            train=self.sets.train[int(first.nearest.index[k])],
            mirrored=self.mirrors[first.name][int(first.nearest.mirror[k])],
            distances={c.name: c.generated[k].item() for c in accusers},
            p_value=first.p_values[k].item(),
            suspect=bool(first.suspect[k]),
        )


def run_audit(
    sets: AuditSets,
    embeddings: Sequence[Embedding],
    *,
    false_alarms: float,
    max_share: float,
    bad: BadFiles,
    progress: Progress | None = None,
) -> Audit:
    """Read every volume once, describe it by each of ``embeddings``, and compare the sets.

    A volume is suspect if any embedding says so; each may take its part of ``false_alarms``. Raises DataError for too
    few held-out volumes, saying how many are needed, for files that cannot be read, and when a held-out volume is
    a training volume under another name.
    """
    _require_held_out(sets.held_out, false_alarms, len(embeddings))
    reader = _Reader(embeddings, bad, progress, len(sets.train) + len(sets.held_out) + len(sets.generated))
    train = reader.describe(sets.train, mirrored=False)
    held_out = reader.describe(sets.held_out, mirrored=True)
    generated = reader.describe(sets.generated, mirrored=True)
    for name, part in (("training", train), ("generated", generated)):
        if not part.entries:
            raise DataError(f"expected at least one readable {name} volume, got none.")
    _require_held_out(held_out.entries, false_alarms, len(embeddings))
    _require_no_copies(train, held_out)
    comparisons = [
        compare(
            embedding.name,
            train=train.described(i),
            held_out=held_out.described(i),
            generated=generated.described(i),
            false_alarms=false_alarms / len(embeddings),
        )
        for i, embedding in enumerate(embeddings)
    ]
    for comparison in comparisons:
        for one, other in comparison.copies_held_out:
            raise DataError(_copied(held_out.entries[one], train.entries[other]))
    return Audit(
        sets=AuditSets(train.entries, held_out.entries, generated.entries),
        comparisons=comparisons,
        mirrors={embedding.name: embedding.mirrors for embedding in embeddings},
        false_alarms=false_alarms,
        max_share=max_share,
        skipped=[{"file": s.file, "reason": s.reason} for s in bad.skipped],
        left_out=[asdict(item) | {"files": list(item.files)} for item in bad.left_out],
        gaps=bad.gaps,
    )


@dataclass
class _Part:
    """A set as read. rows: by embedding, one tensor ``[V D]`` a volume. contents: hashes of the voxels."""

    entries: list[Entry]
    rows: list[list[torch.Tensor]]
    contents: list[bytes]

    def described(self, embedding: int) -> Described:
        return Described(torch.stack(self.rows[embedding]), [entry.patient_id for entry in self.entries])


class _Reader:
    """Reads entries one at a time and keeps their descriptions alone."""

    def __init__(
        self, embeddings: Sequence[Embedding], bad: BadFiles, progress: Progress | None, total: int
    ) -> None:
        self.embeddings, self.bad, self.progress, self.total = embeddings, bad, progress, total
        self.done = 0

    def describe(self, entries: Sequence[Entry], *, mirrored: bool) -> _Part:
        part = _Part([], [[] for _ in self.embeddings], [])
        for entry in entries:
            try:
                file = _read(entry)
                rows = [embedding(file, mirrored=mirrored) for embedding in self.embeddings]
                # A distance that is no number is below no threshold: such a volume would pass.
                require_finite(entry.path, rows)
            except DataError as error:
                self.bad.report(entry, error)
            else:
                part.entries.append(entry)
                part.contents.append(hashlib.sha256(np.ascontiguousarray(file.data).data).digest())
                for kept, row in zip(part.rows, rows, strict=True):
                    kept.append(row)
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
        return part


def _read(entry: Entry) -> VolumeFile:
    return read(entry.path, channel=entry.channel)


def _require_held_out(entries: Sequence[Entry], false_alarms: float, embeddings: int) -> None:
    needed, patients = required_held_out(false_alarms, embeddings), {entry.patient_id for entry in entries}
    if len(entries) < needed or len(patients) < MIN_PATIENTS:
        raise DataError(
            f"expected at least {needed} held-out volumes of {MIN_PATIENTS} or more patients, to set a threshold for "
            f"{false_alarms:g} false alarms in {embeddings} embeddings, got {len(entries)} of {len(patients)}; hold "
            "out more patients, or allow more with --false-alarms."
        )


def _require_no_copies(train: _Part, held_out: _Part) -> None:
    known = dict(zip(train.contents, train.entries, strict=True))
    for entry, content in zip(held_out.entries, held_out.contents, strict=True):
        if content in known:
            raise DataError(_copied(entry, known[content]))


def _copied(held_out: Entry, train: Entry) -> str:
    return (
        f"{held_out.path}: expected a held-out volume that the model never saw, got a copy of the training volume "
        f"{train.path}; the patients overlap: take it out of one of the two sets."
    )


def _summary(entries: Sequence[Entry]) -> dict[str, Any]:
    found = {entry.modality for entry in entries}
    kinds = [kind for kind in MODALITIES if kind in found] + sorted(found - set(MODALITIES))
    return {"volumes": len(entries), "patients": len({e.patient_id for e in entries}), "modalities": kinds}


def _embedding(c: Comparison) -> dict[str, Any]:
    return {
        "name": c.name,
        "threshold": c.threshold,
        "share_suspect": c.suspect.float().mean().item(),
        "authenticity": c.authentic.float().mean().item(),
        "median_held_out": c.held_out.median().item(),
        "median_generated": c.generated.median().item(),
        "held_out": [round(value, 5) for value in c.held_out.tolist()],
        "generated": [round(value, 5) for value in c.generated.tolist()],
    }


def _plain(pair: Pair) -> dict[str, Any]:
    train = {"case": pair.train.case_id, "modality": pair.train.modality, "file": str(pair.train.path)}
    return {
        "generated": str(pair.generated.path),
        "train": train,
        "mirrored_axes": list(pair.mirrored),
        "relative_distance": pair.distances,
        "p_value": pair.p_value,
        "suspect": pair.suspect,
    }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
