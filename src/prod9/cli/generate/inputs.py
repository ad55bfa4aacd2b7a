"""Finds the files that a command line names, and warns of segmentations that may not be what the user means."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prod9.cli import shared
from prod9.errors import ConfigError, DataError
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.pipelines.segmentation import PlacedSegmentation


def find_segmentations(given: Sequence[Path]) -> dict[str, Path]:
    """Return output name → segmentation file.

    In a folder these are the files with ``seg`` in their names. Where no name has it, they are those of the cases in
    the folder, as of an nnU-Net dataset, or all files without a modality in their names. Raises DataError when there is
    nothing, ConfigError when two would get one name.
    """
    from prod9.data.layouts.names import SEG, parse_modality
    from prod9.data.layouts.scan import find_volumes as walk_volumes
    from prod9.data.layouts.scan import no_volumes, unreachable

    files: dict[str, Path] = {}
    for path in (expand(p) for p in given):
        found = [path]
        if path.is_dir():
            inside = walk_volumes(path)
            kinds = {p: parse_modality(p.name) for p in inside}
            named = [p for p in inside if kinds[p] == SEG]
            found = named or _of_cases(path) or [p for p in inside if kinds[p] is None]
        if not found or not found[0].exists():
            if path.is_symlink() and (message := unreachable(path)) is not None:
                raise DataError(message)
            got = no_volumes(path) if path.is_dir() else "got nothing there"
            raise DataError(f"{path}: expected a segmentation (.nii or .nii.gz) or a folder of them, {got}")
        for file in found:
            name = _stem(file.name)
            if name in files:
                raise ConfigError(f"{files[name]} and {file} would both become {name}; give one at a time")
            files[name] = file
    return files


def _of_cases(folder: Path) -> list[Path]:
    """Return the segmentations of the cases of a dataset; none for a folder of no known layout."""
    from prod9.data.layouts.find import scan_dataset

    try:
        return [case.seg for case in scan_dataset(folder).cases if case.seg is not None]
    except DataError:
        return []


def named_files(given: Sequence[str]) -> dict[str, Path]:
    """Return name → file of ``--source NAME=FILE`` each; ConfigError for other texts and for a name given twice.

    Raises DataError for a file that is missing or no NIfTI file; only headers are read.
    """
    from prod9.volumes import read_header

    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--source: expected NAME=FILE such as T1=brain.nii.gz, got {text!r}")
        if name in files:
            raise ConfigError(f"--source: expected one file for {name}, got {files[name]} and {path}")
        files[name] = expand(path)
    for path in files.values():
        read_header(path)
    return files


def _stem(name: str) -> str:
    """Return a file's name without its suffix and a trailing ``seg``."""
    from prod9.data.layouts.names import bare

    stem = bare(name)
    for word in ("segm", "seg"):
        if stem.lower().endswith(word) and stem[: -len(word)].rstrip("-_. "):
            return stem[: -len(word)].rstrip("-_. ")
    return stem


def warn_of(placed: "PlacedSegmentation", file: Path) -> None:
    """Warn of what may make the segmentation of ``file`` another than the user means."""
    for text in placed.warnings(remedy="--reference SCAN"):
        shared.warn(f"{file}: {text}.")
