"""The volumes of an evaluation by their names, and notes on those that are left out."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from prod9.data.layouts.names import SEG, TOKENS, bare, identify, parse_name, shows_labels
from prod9.errors import DataError
from prod9.system.wording import listing, plural
from prod9.volumes import Channel, VolumeFile, read

UNNAMED = "volume"
"""The modality of a file whose name holds none."""
MAPS = ("segmentation", "uncertainty")
"""Kinds in a manifest, and last words of names, of files that are no images."""

_NUMBERED = re.compile(
    rf"(?:(?P<case>.+)[-_])?(?P<token>{'|'.join(sorted(TOKENS, key=len, reverse=True))})[-_]?(?P<index>\d+)",
    re.IGNORECASE,
)
_MAP = re.compile(rf"(?:^|[-_. ])(?:{'|'.join(MAPS)})$", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One volume: ``channel`` is its place in a 4D file, ``seg`` the segmentation of its case."""

    case_id: str
    patient_id: str
    modality: str
    path: Path
    channel: Channel | None = None
    seg: Path | None = None
    label_scheme: str = "canonical"

    @property
    def key(self) -> tuple[str, str]:
        """Return what it has in common with its counterpart in another folder."""
        return self.case_id, self.modality

    def read(self) -> VolumeFile:
        """Read the volume; DataError where that fails."""
        return read(self.path, channel=self.channel)


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """Volumes without a fault that are left out; ``asked`` if an option demands it."""

    reason: str
    files: tuple[str, ...]
    asked: bool = True

    def sentence(self) -> str:
        """Return the reason, the number and some names."""
        names = listing((Path(file).name for file in self.files), _SHOWN)
        return f"{plural(self.files, 'volume')} left out ({names}): {self.reason}"


@dataclass
class BadFiles:
    """Files that cannot be used are refused, or with ``skip`` listed and left out.

    Attributes:
        skip: whether to leave such files out.
        skipped: those that were left out.
        left_out: volumes without a fault that are left out.
        missing: sentences about patients that a split names and that are missing.
    """

    skip: bool
    skipped: list[Skipped] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def report(self, entry: Entry, error: DataError) -> None:
        """Note ``entry`` as skipped, or raise ``error`` with what to do about it."""
        self.report_file(str(entry.path), str(error), cause=error)

    def report_file(self, file: str, message: str, *, cause: DataError | None = None) -> None:
        """Do the same for a file that is no entry, for example one that a list names and that does not exist."""
        if not self.skip:
            raise DataError(f"{message} To leave such files out and list them, pass --skip-bad.") from cause
        found = Skipped(file, message)
        if found not in self.skipped:  # each pass meets it again
            self.skipped.append(found)

    def leave_out(self, reason: str, files: list[Path], *, asked: bool = True) -> None:
        """Note volumes that are left out for ``reason``."""
        if files:
            self.left_out.append(LeftOut(reason, tuple(str(file) for file in files), asked))

    def require_patients(
        self, wanted: Sequence[str], entries: Sequence[Entry], what: str, root: Path
    ) -> None:
        """Note which of the patients ``wanted`` have no volume among ``entries``.

        Args:
            wanted: names of patients.
            entries: the volumes that were found.
            what: what the patients are, for messages.
            root: the folder.
        """
        there = {entry.patient_id for entry in entries}
        absent = [patient for patient in wanted if patient not in there]
        if absent:
            self.missing.append(
                f"{root}: {len(absent)} of {len(wanted)} {what} patients are not there: {listing(absent, _SHOWN)}"
            )

    @property
    def gaps(self) -> list[str]:
        """Return a sentence for everything that should have been used and was not."""
        left = [item.sentence() for item in self.left_out if not item.asked]
        return [*(item.reason for item in self.skipped), *left, *self.missing]


def require_finite(path: Path | None, rows: Iterable[Tensor]) -> None:
    """Raise DataError where the features of a volume are not finite: no score over them would be."""
    if not all(bool(row.isfinite().all()) for row in rows):
        raise DataError(
            f"{path}: expected finite features, got NaN or infinity; check the volume's intensities, or use another "
            "extractor."
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `prod9 generate` noted in ``folder``; empty without a manifest, or with a damaged one."""
    try:
        content = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def entry_by_name(path: Path, root: Path, manifest: Mapping[str, Mapping[str, object]]) -> Entry | None:
    """Return the volume ``path`` by its name; None for a segmentation or another map that is no image.

    Args:
        path: a file below ``root``.
        root: the folder that is evaluated.
        manifest: notes of `prod9 generate` about each file, by its path below ``root``.
    """
    relative = path.relative_to(root)
    noted = manifest.get(relative.as_posix(), {})
    stem = bare(path.name)
    if noted.get("kind") in MAPS or "segmentation" in noted or _MAP.search(stem) or shows_labels(path.name):
        return None
    match, named = _NUMBERED.fullmatch(stem), parse_name(path.name, folder=path.parent.name)
    if match and TOKENS[match["token"].lower()] == SEG:
        return None
    if named is not None:
        return Entry(named.identity.case_id, named.identity.patient_id, named.kind, path)
    label = noted.get("label") or noted.get("target")
    modality = str(label) if label else TOKENS[match["token"].lower()] if match else UNNAMED
    if match and match["case"]:
        # One of several volumes that were generated for a case.
        return Entry(f"{match['case']}_{match['index']}", identify(match["case"]).patient_id, modality, path)
    # Volumes that are only numbered belong to no case: equal names in two folders are two patients.
    owner = identify(stem).patient_id if match is None else relative.with_name(stem).as_posix()
    return Entry(stem, owner, modality, path)
