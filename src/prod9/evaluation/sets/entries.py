"""The volumes of an evaluation by name, and what is said of those that stay out of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from prod9.data.layouts.names import SEG, TOKENS, bare, identify, parse_name, shows_labels
from prod9.errors import DataError
from prod9.system.wording import plural
from prod9.volumes import Channel

UNNAMED = "volume"
"""The modality of a file whose name says none."""
MAPS = ("segmentation", "uncertainty")
"""Kinds of a manifest, and last words of names, of files that are no images."""

_NUMBERED = re.compile(
    rf"(?:(?P<case>.+)[-_])?(?P<token>{'|'.join(sorted(TOKENS, key=len, reverse=True))})[-_]?(?P<index>\d+)",
    re.IGNORECASE,
)
_MAP = re.compile(rf"(?:^|[-_. ])(?:{'|'.join(MAPS)})$", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One volume. channel: its place in a 4D file. seg: the segmentation of its case, of ``label_scheme``."""

    case_id: str
    patient_id: str
    modality: str
    path: Path
    channel: Channel | None = None
    seg: Path | None = None
    label_scheme: str = "canonical"

    @property
    def key(self) -> tuple[str, str]:
        """Return what its counterpart in another folder has too."""
        return self.case_id, self.modality


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """Volumes that nothing is wrong with and that stay out. files: all of them. asked: an option says so."""

    reason: str
    files: tuple[str, ...]
    asked: bool = True

    def sentence(self) -> str:
        """Return reason, number and some names."""
        names = [Path(file).name for file in self.files[:_SHOWN]]
        more = ", …" if len(self.files) > _SHOWN else ""
        return f"{plural(len(self.files), 'volume')} left out ({', '.join(names)}{more}): {self.reason}"


@dataclass
class BadFiles:
    """What happens to files that cannot be used: refused, or with ``skip`` listed and left out.

    skipped: those. left_out: volumes that nothing is wrong with and that stay out all the same. missing: sentences
    on patients that a split names and that are not there.
    """

    skip: bool
    skipped: list[Skipped] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def report(self, entry: Entry, error: DataError) -> None:
        """Note ``entry`` as skipped, or raise ``error`` with what to do about it."""
        self.report_file(str(entry.path), str(error), cause=error)

    def report_file(self, file: str, message: str, *, cause: DataError | None = None) -> None:
        """Do the same for a file that is no entry: one that a list names and that is gone, for example."""
        if not self.skip:
            raise DataError(f"{message} To leave such files out and list them, pass --skip-bad.") from cause
        found = Skipped(file, message)
        if found not in self.skipped:  # met once a pass
            self.skipped.append(found)

    def leave_out(self, reason: str, files: list[Path], *, asked: bool = True) -> None:
        """Note volumes that stay out for ``reason``."""
        if files:
            self.left_out.append(LeftOut(reason, tuple(str(file) for file in files), asked))

    def require_patients(
        self, wanted: Sequence[str], entries: Sequence[Entry], what: str, root: Path
    ) -> None:
        """Note which of the patients ``wanted`` have no volume among ``entries``."""
        there = {entry.patient_id for entry in entries}
        absent = [patient for patient in wanted if patient not in there]
        if absent:
            names = ", ".join(absent[:_SHOWN]) + (", …" if len(absent) > _SHOWN else "")
            self.missing.append(
                f"{root}: {len(absent)} of {len(wanted)} {what} patients are not there: {names}"
            )

    @property
    def gaps(self) -> list[str]:
        """Return a sentence for everything that should have been looked at and was not."""
        left = [item.sentence() for item in self.left_out if not item.asked]
        return [*(item.reason for item in self.skipped), *left, *self.missing]


def require_finite(path: Path | None, rows: Iterable[Tensor]) -> None:
    """Raise DataError where what describes a volume is not finite: a score over it would be none."""
    if not all(bool(row.isfinite().all()) for row in rows):
        raise DataError(
            f"{path}: expected a volume that can be described, got NaN or infinite features; look at its "
            "intensities, or use another extractor."
        )


def entry_by_name(path: Path, root: Path, manifest: Mapping[str, Mapping[str, object]]) -> Entry | None:
    """Return the volume ``path`` by its name alone, None for a segmentation or another map that is no image.

    manifest: what `prod9 generate` noted of each file of ``root``, by its path there.
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
        # One of several volumes made for a case.
        return Entry(f"{match['case']}_{match['index']}", identify(match["case"]).patient_id, modality, path)
    # Volume k of a modality stands alone: equal names in two folders are two of them.
    owner = identify(stem).patient_id if match is None else relative.with_name(stem).as_posix()
    return Entry(stem, owner, modality, path)
