"""``prod9 merge``: joins what the parts of a work made."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import PATIENTS, tell_after_results, tell_next
from prod9.cli.parts.record import (
    CASES,
    FEATURES,
    RECORD,
    RESULTS,
    STORE,
    PartRecord,
    describe_gap,
    read_parts,
)
from prod9.cli.shared import DebugOption, JsonOption, new_app
from prod9.errors import DataError
from prod9.system.machine import expand
from prod9.system.parts import WorkPart, part_folders
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.cli.generate.manifest import Manifest

app = new_app("Join the parts of a work that ran with --part.")

_MERGED = ".merged"
"""Marks a folder whose parts are joined and are being deleted."""
Parts = Mapping[WorkPart, tuple[Path, PartRecord]]


@app.command(example="prod9 merge made")
def merge(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the parts: an --output-dir, or a store.")
    ],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Join the parts of a command that ran with `--part` into what one run would have made.

    Nothing is joined while a part is missing, incomplete or of other settings. Interrupted, it can be started again.
    """
    directory = expand(folder)
    again = f"Nothing is lost; run `prod9 merge {folder}` again."
    with shared.resumable(again):
        record, parts = merge_parts(directory)
    if as_json:
        shared.print_json({"output_dir": str(directory), "parts": parts, "results": record.total})
        return
    shared.console.print(f"{plural(record.total, 'result')} of {plural(parts, 'part')} in {directory}")
    _tell_next(directory, record)


def _tell_next(directory: Path, record: PartRecord) -> None:
    """Print the next command for what the parts of ``record`` were joined into."""
    if record.kind == CASES:
        tell_next("prod9", "data", "check", directory)
    elif record.kind == STORE:
        tell_next("prod9", "train", "--config", "NAME")
    elif record.kind == FEATURES:
        tell_next("prod9", "evaluate", "images", PATIENTS, "GENERATED", "-o", directory)
    else:
        tell_after_results(directory, str(record.settings.get("command")).rpartition(" ")[2])


def merge_parts(directory: Path) -> tuple[PartRecord, int]:
    """Join the parts in ``directory``; return the record of one of them, and how many there were.

    Raises DataError and ConfigError for parts that do not belong together, and for gaps.
    """
    from prod9.files import exclusive

    if not directory.is_dir():
        raise DataError(f"{directory}: expected a folder with parts, got no such folder; check the path.")
    with exclusive(directory / ".merge.lock"):
        if (directory / _MERGED).exists():
            _delete_parts(directory)
        parts = read_parts(directory)
        first = next(iter(parts.values()))[1]
        _MERGING[first.kind](directory, parts)
        (directory / _MERGED).touch()
        _delete_parts(directory)
        (directory / ".merge.lock").unlink(missing_ok=True)
    return first, len(parts)


def _delete_parts(directory: Path) -> None:
    for folder in part_folders(directory).values():
        _delete(folder)
    (directory / _MERGED).unlink(missing_ok=True)


def _delete(folder: Path) -> None:
    """Delete what a part has written; anything else in its folder stays, with a warning."""
    from prod9.cli.generate.manifest import MANIFEST, Manifest
    from prod9.data.registration.quality import PAGE
    from prod9.data.registration.record import RECORD as CASES_RECORD
    from prod9.data.stores.manifest import IN_USE, LOCK, is_shard
    from prod9.files import inside

    names: set[str] = {MANIFEST, RECORD, IN_USE, LOCK, ".lock", PAGE, CASES_RECORD}
    with suppress(DataError):
        names |= set(PartRecord.read(folder).names)
    with suppress(DataError):
        found = Manifest.read(folder / MANIFEST)
        names |= set(found.files if found else ())
    known = list[Path]()
    for name in sorted(names):
        with suppress(DataError):  # a name that would lead elsewhere
            known.append(inside(folder, name))
    known += [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]
    known += [path for path in folder.glob("*.npy") if is_shard(path.name)]
    # The record goes last: what is left of an interrupted deletion is still known as a part.
    for path in sorted(known, key=lambda one: one.name in (RECORD, MANIFEST)):
        if not path.is_dir():
            path.unlink(missing_ok=True)
    for place in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            place.rmdir()
    try:
        folder.rmdir()
    except OSError:
        shared.warn(f"{folder}: holds files that prod9 did not write; they stay there.")


def _merge_results(directory: Path, parts: Parts) -> None:
    from prod9.cli.generate.manifest import MANIFEST, Inputs, Manifest
    from prod9.cli.generate.outputs import OutputFolder

    merged = Manifest.read(directory / MANIFEST)
    files: dict[str, tuple[Path, Mapping[str, Any], Inputs]] = {}
    for part, (folder, record) in parts.items():
        found = Manifest.read(folder / MANIFEST)
        missing = [
            name
            for name in record.names
            if not (_holds(found, folder, name) or _holds(merged, directory, name))
        ]
        if missing:
            raise describe_gap(part, folder, missing, len(record.names))
        wanted = set(record.names)
        for name, entry in (found.files if found else {}).items():
            if name in wanted and found is not None:
                files[name] = folder / name, entry, found.inputs.get(name, {})
    _require_no_other(directory, merged, files)
    first = next(iter(parts.values()))[1]
    with OutputFolder(directory, first.settings, described=first.described) as folder:
        folder.adopt(files)


def _holds(manifest: "Manifest | None", folder: Path, name: str) -> bool:
    if manifest is None or name not in manifest.files or name in manifest.pending:
        return False
    return (folder / name).is_file()


def _require_no_other(
    directory: Path, merged: "Manifest | None", files: Mapping[str, tuple[Path, Any, Any]]
) -> None:
    """Refuse (DataError) to replace finished or unknown files in ``directory`` by others."""
    from filecmp import cmp

    for name, (source, _, _) in files.items():
        place = directory / name
        pending = merged is not None and name in merged.pending
        if place.exists() and not pending and not cmp(source, place, shallow=False):
            raise DataError(
                f"{place}: exists already with other content than {source}; move it away, or delete the part that "
                "is not wanted."
            )


def _merge_stores(directory: Path, parts: Parts) -> None:
    from prod9.data.stores.merging import merge_stores, stored_keys

    merged = stored_keys(directory)
    sources: list[Path] = []
    for part, (folder, record) in parts.items():
        there = stored_keys(folder)
        missing = [name for name in record.names if name not in there and name not in merged]
        if missing:
            raise describe_gap(part, folder, missing, len(record.names))
        if there:
            sources.append(folder)
    merge_stores(directory, sources)


def _merge_features(directory: Path, parts: Parts) -> None:
    from prod9.evaluation.sets.kept_rows import FOLDER
    from prod9.files import atomic_write, link_or_copy
    from prod9.system.folders import sweep

    for part, (folder, record) in parts.items():
        missing = [name for name in record.names if not (folder / name).is_file()]
        if missing:
            raise describe_gap(part, folder, missing, len(record.names))
    target = directory / FOLDER
    target.mkdir(exist_ok=True)
    sweep(target)  # what a merge that was killed left
    for folder, record in parts.values():
        for name in record.names:
            with atomic_write(target / name) as temporary:
                link_or_copy(folder / name, temporary)


def _merge_cases(directory: Path, parts: Parts) -> None:
    from prod9.data.registration.cohort import is_complete, join

    for part, (folder, record) in parts.items():
        missing = [
            name for name in record.names if not (is_complete(folder / name) or is_complete(directory / name))
        ]
        if missing:
            raise describe_gap(part, folder, missing, len(record.names))
    first = next(iter(parts.values()))[1]
    join(directory, {folder: record.names for folder, record in parts.values()}, first.settings)


_MERGING = {RESULTS: _merge_results, STORE: _merge_stores, FEATURES: _merge_features, CASES: _merge_cases}
