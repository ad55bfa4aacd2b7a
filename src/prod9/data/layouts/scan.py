"""What every search for volumes has in common: walking a tree, what a walk cannot reach, and the form of its result."""

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prod9.data.cases import Case
from prod9.data.layouts.names import is_volume, shows_labels
from prod9.errors import DataError
from prod9.files import reading
from prod9.system.wording import listing, plural

_MAX_DESCRIPTION = 64 << 20
"""Bytes of a dataset.json or list that are read; a case takes some hundred."""
FOREIGN = (
    ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc", ".hdr", ".img", ".gipl", ".dcm", ".ima", ".par",
)  # fmt: skip
"""Suffixes of images of other formats."""
_JUNK = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
_FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make what follows run the other way: a name would not be what it looks like."""
_MAX_NAME_BYTES = 200
"""Of a case's or modality's name: results are named by both, with a suffix, and a file name ends at 255."""
_QUOTED = 80
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(1, 10))}
)


@dataclass
class Scan:
    """Cases as found, volumes that belong to none, and messages for what cannot be used.

    absent: those of the problems that are files which a list or a link names and which are not there; the case
    lacks them. doubts: what may be missing, such as a folder that a link leads to.
    """

    cases: list[Case] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def lacks(self, message: str) -> None:
        """Note a file that is not there."""
        self.problems.append(message)
        self.absent.append(message)

    def volumes(self, root: Path) -> Iterator[Path]:
        """Yield the volumes below ``root``, noting those that cannot be reached."""
        found = Walk()
        yield from found.volumes(root)
        self.problems += found.problems
        self.doubts += found.doubts
        for message in found.absent:
            self.lacks(message)


@dataclass
class Walk:
    """What a walk met besides files, one message each.

    absent: volumes that are links to nothing, as in a DataLad dataset whose content was not fetched. doubts: links to
    nothing of other names, maybe folders. problems: folders that cannot be read.
    """

    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def volumes(self, root: Path) -> Iterator[Path]:
        """Yield the volumes below ``root`` in order of names."""
        yield from (path for path in self.files(root) if is_volume(path.name))

    def files(self, folder: Path, seen: set[tuple[int, int]] | None = None) -> Iterator[Path]:
        """Yield the files below ``folder`` in order of names.

        Links are followed, each folder is visited once, and what is hidden (``._x.nii.gz``, ``.git``, temporary
        files) is passed over.
        """
        seen = set() if seen is None else seen
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                # Real folders first, so that a link to a sibling does not give its files another path.
                found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            self.problems.append(
                f"{folder}: expected a folder that can be read, got {error.strerror or error}; change its "
                "permissions, or take it out of the dataset."
            )
            return
        for entry in found:
            if entry.name.startswith(".") or entry.name in _JUNK:
                continue
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    yield from self.files(path, seen)
                    continue
                usable = entry.is_file()
            except OSError:  # a link to itself, or into a folder that may not be looked into
                usable = False
            if usable:
                yield path
            elif is_volume(entry.name):
                self.absent += [
                    unreachable(path) or f"{path}: expected a file, got something else; remove it."
                ]
            elif entry.is_symlink() and not _FILE_SUFFIX.search(entry.name):
                self.doubts += [message] if (message := unreachable(path)) is not None else []


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` as :meth:`Walk.files` does.

    Raises DataError, once all are yielded, for volumes that are links to nothing and for folders that cannot be
    read: nothing is left out of a command's input without a word.
    """
    found = Walk()
    yield from found.files(folder)
    for message in [*found.problems, *found.absent]:
        raise DataError(message)


def find_volumes(folder: Path, *, images_only: bool = False) -> list[Path]:
    """Return the volumes below ``folder`` by :func:`walk`, links to elsewhere and letters of any case included.

    images_only: leave out segmentations and masks of any kind, by their names.
    """
    paths = [path for path in walk(folder) if is_volume(path.name)]
    return [path for path in paths if not (images_only and shows_labels(path.name))]


def no_volumes(folder: Path) -> str:
    """Return what a folder without usable volumes holds instead, to end a message: "got …; what to do"."""
    volumes, foreign = list(Walk().volumes(folder)), foreign_files(folder)
    if volumes:
        names = listing((path.relative_to(folder) for path in volumes), 2)
        return f"got {plural(volumes, 'volume')} of another kind by their names ({names}); name the files one by one"
    if foreign:
        names = listing((path.relative_to(folder) for path in foreign), 2)
        return f"got {plural(foreign, 'image')} of other formats ({names}); {conversion(foreign[0])}"
    return "got none; check the path"


def folders_of(path: Path, root: Path) -> list[str]:
    """Return the names of the folders of ``path``, from its own up to that of the dataset, ``root``."""
    below = Path(os.path.normpath(path.parent)).relative_to(os.path.normpath(root)).parts
    return [*reversed(below), root.name or root.resolve().name]


def foreign_files(folder: Path) -> list[Path]:
    """Return the files below ``folder`` that are images of other formats than NIfTI, by their names."""
    return [path for path in Walk().files(folder) if path.suffix.lower() in FOREIGN]


def conversion(path: Path) -> str:
    """Return how to make a NIfTI file of an image of another format."""
    suffix = path.suffix.lower()
    if suffix in (".dcm", ".ima", ".par"):
        return "convert them with dcm2niix"
    if suffix in (".mgz", ".mgh", ".mnc", ".hdr", ".img"):
        return f'convert them with nibabel: nibabel.save(nibabel.load("x{suffix}"), "x.nii.gz")'
    return (
        "convert them with SimpleITK (pip install SimpleITK): "
        f'SimpleITK.WriteImage(SimpleITK.ReadImage("x{suffix}"), "x.nii.gz")'
    )


def is_file(path: Path) -> bool:
    """Return whether ``path`` is a file; False too for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Return whether ``path`` is a folder; False too for names that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def unreachable(path: Path) -> str | None:
    """Return what is wrong with a file that cannot be opened, such as a link to nothing; None for any other."""
    try:
        with reading(path, "a file"):
            return None
    except DataError as error:
        return str(error)


def not_there(path: Path, source: Path) -> str:
    """Return the message for ``path``, which the list ``source`` names and which is not there."""
    try:
        is_link = path.is_symlink() or path.exists()
    except (OSError, ValueError):
        is_link = True
    if is_link and (message := unreachable(path)) is not None:
        return f"{message} It is listed in {source}."
    drive = any(re.fullmatch(r"[A-Za-z]:", part) for part in path.parts)
    hint = " (it is a path of Windows)" if drive else ""
    return f"{path}: listed in {source}, but no such file{hint}; restore it or correct the list."


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; DataError when it is none or far too large."""
    with reading(path, "JSON", remedy="repair the file"):
        if path.stat().st_size > _MAX_DESCRIPTION:
            raise DataError(f"{path}: expected a list of files, got {path.stat().st_size} bytes; split it.")
        return json.loads(path.read_text(encoding="utf-8-sig"))


def inside(root: Path, name: str, source: Path) -> Path:
    """Return ``root / name``; DataError when it leads out of ``root``, as no dataset's own list does."""
    path = root / name
    if not os.path.normpath(path).startswith(os.path.normpath(root) + os.sep):
        raise DataError(f"{source}: expected files inside {root}, got {name}; correct the list.")
    return path


def wrong_name(name: str, what: str, source: Path) -> str | None:
    """Return the message for a name that no result can be called by, None for a good one.

    Names of cases and modalities become file names of results: they hold no path, no control characters, are no
    reserved names of Windows, and leave room for a suffix. what: what has the name, for the message.
    """
    reason = None
    if not name.strip(" ."):
        reason = "letters or digits"
    elif "/" in name or "\\" in name:
        reason = "no / or \\"
    elif any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTIONS for c in name):
        reason = "no control characters"
    elif name.startswith(".") or name.split(".")[0].strip().lower() in _RESERVED:
        reason = "no dot in front, and to be no reserved word of Windows"
    elif len(name.encode()) > _MAX_NAME_BYTES:
        reason = f"at most {_MAX_NAME_BYTES} bytes"
    if reason is None:
        return None
    shown = ascii(name) if not name.isprintable() else repr(name)
    return f"{source}: expected the name of a {what} to have {reason}, got {shown[:_QUOTED]}; rename it."
