"""Walks folders for volumes, notes what cannot be reached, and holds the result of a search."""

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.layouts.names import is_volume, shows_labels
from prod9.errors import DataError
from prod9.files import reading
from prod9.system.wording import listing, plural

FOREIGN = (
    ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc", ".hdr", ".img", ".gipl", ".dcm", ".ima", ".par",
)  # fmt: skip
"""Suffixes of images of other formats."""
_JUNK = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
_FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that reverse the direction of the text after them: the name would not be what it looks like."""
_MAX_NAME_BYTES = 200
"""Limit for the name of a case or a modality: results are named by both, and a file name has at most 255 bytes."""
_QUOTED = 80
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(1, 10))}
)


@dataclass
class Walk:
    """What a walk through folders meets besides files, one message each.

    Attributes:
        problems: what cannot be used, such as folders that cannot be read.
        absent: those of the problems that are files which are not there: volumes that are links to nothing, as in a
            DataLad dataset whose content was not fetched, or that a list names.
        doubts: links to nothing with other names, perhaps folders.
    """

    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def lacks(self, message: str) -> None:
        """Note a file that is not there."""
        self.problems.append(message)
        self.absent.append(message)

    def volumes(self, root: Path) -> Iterator[Path]:
        """Yield the volumes below ``root`` in order of names."""
        yield from (path for path in self.files(root) if is_volume(path.name))

    def files(self, folder: Path, seen: set[tuple[int, int]] | None = None) -> Iterator[Path]:
        """Yield the files below ``folder`` in order of names.

        Links are followed, each folder is visited once, and hidden files and folders (``._x.nii.gz``, ``.git``,
        temporary files) are skipped.
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
                self.lacks(unreachable(path) or f"{path}: expected a file, got something else; remove it.")
            elif entry.is_symlink() and not _FILE_SUFFIX.search(entry.name):
                self.doubts += [message] if (message := unreachable(path)) is not None else []


@dataclass
class Scan(Walk):
    """The cases of a dataset as they were found, and the volumes that belong to none."""

    cases: list[Case] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder`` as :meth:`Walk.files` does.

    Raises DataError, once all are yielded, for volumes that are links to nothing and for folders that cannot be
    read: no input of a command is left out silently.
    """
    found = Walk()
    yield from found.files(folder)
    for message in found.problems:
        raise DataError(message)


def find_volumes(folder: Path, *, images_only: bool = False) -> list[Path]:
    """Return the volumes below ``folder``, found by :func:`walk`.

    images_only: leave out segmentations and masks of any kind, by their names.
    """
    paths = [path for path in walk(folder) if is_volume(path.name)]
    return [path for path in paths if not (images_only and shows_labels(path.name))]


def no_volumes(folder: Path) -> str:
    """Return the end of a message about a folder without usable volumes: "got …; REMEDY"."""
    if volumes := list(Walk().volumes(folder)):
        names = listing((path.relative_to(folder) for path in volumes), 2)
        return f"got {plural(volumes, 'volume')} of another kind by their names ({names}); name the files one by one"
    return f"got {foreign_hint(folder) or 'none; check the path'}"


def folders_of(path: Path, root: Path) -> list[str]:
    """Return the names of the folders of ``path``, from its own up to that of the dataset, ``root``."""
    below = Path(os.path.normpath(path.parent)).relative_to(os.path.normpath(root)).parts
    return [*reversed(below), root.name or root.resolve().name]


def foreign_files(folder: Path) -> list[Path]:
    """Return the images below ``folder`` of formats other than NIfTI, by their names."""
    return [path for path in Walk().files(folder) if path.suffix.lower() in FOREIGN]


def foreign_hint(folder: Path) -> str | None:
    """Return the end of a message about images of other formats below ``folder``; None if there are none."""
    foreign = foreign_files(folder)
    if not foreign:
        return None
    names = listing((path.relative_to(folder) for path in foreign), 2)
    return f"{plural(foreign, 'image')} of other formats ({names}); {conversion(foreign[0])}"


def conversion(path: Path) -> str:
    """Return how to convert an image of another format to NIfTI."""
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
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_dir(path: Path) -> bool:
    """Return whether ``path`` is a folder; False too for names that no folder can have."""
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


def twice(path: Path, first: Path, what: str) -> str:
    """Return the message for ``path``, a second ``what`` (such as "file for channel 0") beside ``first``."""
    return f"{path}: expected one {what}, got {first} too; remove one."


def unreachable(path: Path) -> str | None:
    """Return the message for a file that cannot be opened, such as a link to nothing; None for any other."""
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


def inside(root: Path, name: str, source: Path) -> Path:
    """Return ``root / name``; DataError if it is not inside ``root``."""
    path = root / name
    if not os.path.normpath(path).startswith(os.path.normpath(root) + os.sep):
        raise DataError(f"{source}: expected files inside {root}, got {name}; correct the list.")
    return path


def wrong_name(name: str, what: str, source: Path) -> str | None:
    """Return the message for a name that cannot be part of a file name, None for a good one.

    Results are named by cases and modalities: such a name holds no path and no control characters, is not reserved
    on Windows, and leaves room for a suffix.

    Args:
        name: to check.
        what: the thing that has the name, for the message.
        source: the file or folder that it comes from, for the message.
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
