"""Preprocess every case of a folder, several at a time, and go on where an earlier run stopped."""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prod9.data.cases import Case
from prod9.data.registration.case import Settings, preprocess_case
from prod9.data.registration.quality import PAGE, PICTURE, write_page
from prod9.data.registration.record import RECORD, CaseRecord
from prod9.data.registration.rigid import simple_itk
from prod9.errors import ConfigError, DataError, Prod9Error
from prod9.files import sha256
from prod9.json_files import read_object, write_json
from prod9.system.folders import claimed, sweep
from prod9.system.parts import part_folders
from prod9.system.processes import clean_context
from prod9.system.progress import Progress

_PARTIAL = ".tmp-case-"
_KIND = "prod9 data preprocess"


@dataclass(frozen=True)
class Preprocessed:
    """A folder of preprocessed cases. made: names of this run's. kept: those of earlier runs. failures: messages."""

    root: Path
    made: tuple[str, ...]
    kept: tuple[str, ...]
    failures: dict[str, str]
    page: Path


def preprocess(
    cases: Sequence[Case],
    output_dir: Path,
    settings: Settings,
    *,
    num_workers: int = 1,
    progress: Progress | None = None,
    merged: Path | None = None,
    begun: Callable[[], None] | None = None,
) -> Preprocessed:
    """Preprocess ``cases`` into ``output_dir``, a folder a case, with a page of pictures.

    A case whose files have not changed since it was made is kept. A case that fails leaves nothing behind but its
    message; the others go on.

    Args:
        cases: complete ones.
        output_dir: made if missing.
        settings: of all cases; a folder made with others is refused.
        num_workers: processes.
        progress: called with the cases (done, total).
        merged: another folder of these results; cases that are complete there are kept too.
        begun: called once it is known that the folder may be filled.

    Raises:
        ConfigError: for a folder with other settings, or one that is no such folder.
        MissingDependencyError: without SimpleITK.
    """
    simple_itk()
    with claimed(output_dir, key="OUT"):
        sweep(output_dir)
        for folder in output_dir.glob(f"{_PARTIAL}*"):
            shutil.rmtree(folder, ignore_errors=True)
        _check_folder(output_dir, settings.describe())
        if begun is not None:
            begun()
        places = [output_dir] if merged is None else [output_dir, merged]
        kept = [
            case.case_id
            for case in cases
            if any(_is_done(case, place / case.case_id, settings) for place in places)
        ]
        missing = [case for case in cases if case.case_id not in set(kept)]
        report = progress or (lambda done, total: None)
        report(len(kept), len(cases))
        made, failures = list[str](), dict[str, str]()
        for name, problem in _run(missing, output_dir, settings, num_workers):
            if problem is None:
                made.append(name)
            else:
                failures[name] = problem
            report(len(kept) + len(made) + len(failures), len(cases))
        page = _write_page(output_dir, failures, settings.describe())
    return Preprocessed(output_dir, tuple(sorted(made)), tuple(kept), dict(sorted(failures.items())), page)


def join(root: Path, folders: Mapping[Path, Sequence[str]], settings: Mapping[str, Any]) -> None:
    """Move the cases of parts into ``root``, and write the page of all; a second call ends what was interrupted.

    Raises ConfigError where ``root`` holds cases of other settings, or something else.

    Args:
        root: folder of the result.
        folders: folder of each part and the names of its cases; those that are gone were moved before.
        settings: of all cases.
    """
    with claimed(root, key="OUT"):
        sweep(root)
        _check_folder(root, settings)
        for folder, names in folders.items():
            for name in names:
                if not (folder / name).is_dir():
                    continue
                shutil.rmtree(root / name, ignore_errors=True)  # of inputs that have changed since
                (folder / name).rename(root / name)
        _write_page(root, {}, settings)


def is_complete(folder: Path) -> bool:
    """Return whether ``folder`` holds a finished case."""
    return (folder / RECORD).is_file() and (folder / PICTURE).is_file()


def _run(
    cases: Sequence[Case], root: Path, settings: Settings, num_workers: int
) -> Iterator[tuple[str, str | None]]:
    work = partial(_one, root=root, settings=settings)
    if num_workers == 1 or len(cases) < 2:
        yield from map(work, cases)
        return
    # Threads of the caller (ITK, torch) would be in a broken state after a fork.
    with ProcessPoolExecutor(num_workers, mp_context=clean_context(__name__)) as pool:
        try:
            for future in as_completed([pool.submit(work, case) for case in cases]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _one(case: Case, *, root: Path, settings: Settings) -> tuple[str, str | None]:
    """Make one case in a folder of another name, which gets its own once all is there; return an error's message."""
    folder = root / f"{_PARTIAL}{secrets.token_hex(6)}"
    folder.mkdir()
    try:
        preprocess_case(case, folder, settings)
        final = root / case.case_id
        if final.exists():  # of inputs that have changed since
            shutil.rmtree(final)
        folder.rename(final)
    except Prod9Error as problem:
        return case.case_id, str(problem)
    except OSError as problem:
        raise DataError(
            f"{root}: cannot be written to ({problem}); free some space, or choose another folder."
        ) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(folder, ignore_errors=True)
    return case.case_id, None


def _is_done(case: Case, folder: Path, settings: Settings) -> bool:
    if not is_complete(folder):
        return False
    try:
        record = CaseRecord.read(folder)
    except DataError:
        return False
    if record.settings != settings.describe() or set(record.scans) != set(case.images):
        return False
    hashes = {name: scan.sha256 for name, scan in record.scans.items()}
    if any(sha256(path) != hashes[name] for name, path in case.images.items()):
        return False
    if (record.seg is None) != (case.seg is None):
        return False
    if case.seg is not None and record.seg is not None and sha256(case.seg) != record.seg["sha256"]:
        return False
    mask = settings.stripping.mask_file(case.case_id)
    return mask is None or (mask.is_file() and sha256(mask) == record.mask_sha256)


def _check_folder(root: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder made with other settings, or filled by something else; else write the settings."""
    path, now = root / RECORD, {"made_by": _KIND, **settings}
    if path.exists():
        before = read_object(path)
        differing = [key for key, value in now.items() if before.get(key) != value]
        if differing:
            raise ConfigError(
                f"{root}: expected cases made with {', '.join(f'{key} {now[key]}' for key in differing)}, got "
                f"{', '.join(str(before.get(key)) for key in differing)}; choose another folder."
            )
        return
    parts = set(part_folders(root).values())
    others = sorted(
        entry.name for entry in root.iterdir() if not entry.name.startswith(".") and entry not in parts
    )
    if others:
        raise ConfigError(
            f"{root}: expected an empty folder or one of preprocessed cases, got {others[0]} in it; choose another."
        )
    write_json(path, now)


def _write_page(root: Path, failures: dict[str, str], settings: Mapping[str, Any]) -> Path:
    records = []
    parts = set(part_folders(root).values())
    for folder in sorted(path.parent for path in root.glob(f"*/{RECORD}")):
        with suppress(DataError):
            records += [CaseRecord.read(folder)] if folder not in parts else []
    page = root / PAGE
    write_page(page, root, records, failures, settings)
    return page
