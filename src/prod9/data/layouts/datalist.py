"""Plain lists of files: a CSV with one column per modality, or the JSON datalist that MONAI reads.

CSV: columns ``case``, ``patient``, ``split``, ``seg`` (also ``label``, ``mask``) are known; every other column named
by a modality (``T1``, ``t1ce``, ``CT`` …) holds paths, relative to the list. Columns are separated by commas,
semicolons, tabs or bars; backslashes in paths are read as on Windows. JSON: ``{"training": [{"image": path
or paths, "label": path, …}], "validation": […], "test": […]}``; ``modality`` or ``channel_names`` names the images if
their file names do not.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from prod9.data.cases import Case, Part
from prod9.data.labels import AS_IS, declared_scheme
from prod9.data.layouts.names import (
    MODALITIES,
    SEG,
    Identity,
    bare,
    canonical_modality,
    identify,
    identify_file,
    is_volume,
    parse_modality,
    parse_name,
    says_other,
)
from prod9.data.layouts.scan import FOREIGN, Scan, conversion, is_file, not_there
from prod9.errors import DataError
from prod9.files import reading
from prod9.json_files import read_json

LIST_SUFFIXES = (".csv", ".tsv", ".json")
_PARTS: Mapping[str, Part] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SEG_COLUMNS = (SEG, "label", "mask", "segmentation")
_CASE_COLUMNS, _PATIENT_COLUMNS = (
    ("case", "case_id", "id"),
    ("patient", "patient_id", "subject", "subject_id"),
)
_PART_COLUMNS = ("split", "part")
_KNOWN = frozenset({*_SEG_COLUMNS, *_CASE_COLUMNS, *_PATIENT_COLUMNS, *_PART_COLUMNS})
_DELIMITERS = ",;\t|"
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def scan_datalist(root: Path) -> Scan:
    """Read the cases of a CSV, TSV or JSON list."""
    if root.is_dir():
        raise DataError(
            f"{root}: expected a .csv, .tsv or .json list, got a folder; name the file as data.root."
        )
    rows = _json_rows(root) if root.suffix.lower() == ".json" else _table_rows(root)
    scan, seen, owners = Scan(), set[str](), dict[str, str]()
    for case in rows:
        doubled = _given_twice(case, owners)
        absent = [path for path in case.files if not is_file(path)]
        if case.case_id in seen:
            scan.problems.append(
                f"{root}: expected each case once, got {case.case_id} twice; remove one row."
            )
        elif doubled is not None:
            scan.problems.append(f"{root}: {doubled}")
        elif absent:
            scan.lacks(not_there(absent[0], root))
        elif case.seg is not None and says_other(case.seg.name):
            scan.problems.append(
                f"{case.seg}: listed in {root} as the segmentation of lesions of {case.case_id}, got a name that says "
                "something else; list the right file, or give its column another name."
            )
        else:
            scan.cases.append(case)
        seen.add(case.case_id)
    return scan


def _given_twice(case: Case, owners: dict[str, str]) -> str | None:
    """Return the message for an image that ``owners``, file → what it is, has already; None for none. Adds the case."""
    for kind, path in case.images.items():
        place, what = os.path.normpath(path), f"{kind} of {case.case_id}"
        other = owners.setdefault(place, what)
        if other != what:
            return f"expected an image of its own as {what}, got {path}, which is {other}; correct the row."
    return None


def _table_rows(source: Path) -> list[Case]:
    header, table = read_table(source)
    modalities = _modality_columns(header, table, source)
    rows = []
    for number, row in table:
        cells = dict(zip((name.lower() for name in header), row, strict=False))
        images = {kind: row[place] for kind, place in modalities.items() if row[place]}
        if not images:
            raise DataError(
                f"{source}: row {number}: expected the path of an image, got none; fill the row or remove it."
            )
        part = _text(cells, _PART_COLUMNS, source)
        if part is not None and part.lower() not in _PARTS:
            raise DataError(
                f"{source}: row {number}: expected split train, val or test, got {part}; correct it."
            )
        rows.append(
            _case(
                source,
                images,
                _text(cells, _SEG_COLUMNS, source),
                case=_text(cells, _CASE_COLUMNS, source),
                patient=_text(cells, _PATIENT_COLUMNS, source),
                part=None if part is None else _PARTS[part.lower()],
            )
        )
    return rows


def read_table(source: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and, with their line numbers, the rows that are not empty; all cells are stripped."""
    with reading(source, "a text table in UTF-8", remedy="save it so"):
        content = source.read_bytes()
        encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
        lines = content.decode(encoding).splitlines(keepends=True)
        delimiter, above = None, 0
        if lines and (said := re.fullmatch(r'"?sep=(.)"?\s*', lines[0], re.IGNORECASE)):  # written by Excel
            delimiter, above = said[1], 1
        while above < len(lines) and not lines[above].strip():
            above += 1
        lines = lines[above:]
        reader = csv.reader(io.StringIO("".join(lines)), delimiter=delimiter or _delimiter(lines))
        read = [(above + reader.line_num, [cell.strip() for cell in row]) for row in reader]
    header = read[0][1] if read else []
    table = [(number, row) for number, row in read[1:] if any(row)]
    for number, row in table:
        row += [""] * (len(header) - len(row))
        if any(row[len(header) :]):
            raise DataError(
                f"{source}: line {number}: expected {len(header)} cells as in the header, got {len(row)}; put paths "
                "that hold the separator in quotes."
            )
    return header, table


def _delimiter(lines: Sequence[str]) -> str:
    """Return the separator that makes most words of the header known ones, then most columns."""

    def known(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip().lower() for cell in next(csv.reader(lines[:1], delimiter=delimiter), [])]
        words = sum(cell in _KNOWN or canonical_modality(cell) in MODALITIES for cell in cells)
        return words, len(cells)

    return max(_DELIMITERS, key=known)


def _modality_columns(
    header: Sequence[str], table: Sequence[tuple[int, Sequence[str]]], source: Path
) -> dict[str, int]:
    """Return modality → index of the column that holds its paths."""
    named = [name.lower() for name in header if name]
    found: dict[str, int] = {}
    for place, name in enumerate(header):
        paths = [row[place] for _, row in table if row[place]]
        volumes = [path for path in paths if is_volume(re.split(r"[/\\]", path)[-1])]
        if not name or name.lower() in _KNOWN or not volumes:
            continue
        kind = canonical_modality(name)
        if kind in found or named.count(name.lower()) > 1:
            other = header[found[kind]] if kind in found else name
            raise DataError(f"{source}: expected one column for {kind}, got {other} and {name}; remove one.")
        found[kind] = place
    twice = next((name for name in _KNOWN if named.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{source}: expected one column {twice}, got several; remove the others.")
    if not found:
        cells = chain.from_iterable(row[: len(header)] for _, row in table)
        foreign = next((cell for cell in cells if cell.lower().endswith(FOREIGN)), None)
        hint = "" if foreign is None else f" above files such as {foreign}: {conversion(Path(foreign))}"
        raise DataError(
            f"{source}: expected a header with modalities above paths, such as case,patient,T1,T1ce,T2,FLAIR,seg, "
            f"got {', '.join(header) or 'nothing'}{hint}; correct it."
        )
    return found


def _json_rows(source: Path) -> list[Case]:
    content = read_json(source)
    if not isinstance(content, dict):
        raise DataError(
            f'{source}: expected {{"training": [{{"image": …}}]}}, got a {type(content).__name__}; correct it.'
        )
    declared = content.get("channel_names", content.get("modality")) or {}
    names = (
        [canonical_modality(str(name)) for name in declared.values()] if isinstance(declared, dict) else []
    )
    scheme = declared_scheme(content.get("labels"))
    several = sum(bool(content.get(key)) for key in _PARTS) > 1
    cases = []
    for key, part in _PARTS.items():
        entries = content.get(key) or []
        if not isinstance(entries, list):
            raise DataError(f"{source}: expected a list under {key}, got {str(entries)[:80]}; correct it.")
        for entry in entries:
            entry = {"image": entry} if isinstance(entry, str) else entry
            files = _paths(entry.get("image")) if isinstance(entry, dict) else []
            if not files:
                raise DataError(
                    f'{source}: expected entries of {key} such as {{"image": …}}, got {str(entry)[:80]}; correct it.'
                )
            images = dict(zip(_kinds(files, names, source), files, strict=True))
            cases.append(
                _case(
                    source, images, _text(entry, ("label",), source), case=_text(entry, ("case", "case_id"), source),
                    patient=_text(entry, ("patient", "patient_id"), source), part=part if several else None,
                    scheme=scheme,
                )
            )  # fmt: skip
    return cases


def _paths(image: object) -> list[str]:
    """Return the paths of an entry's ``image``, a path or a list of paths; an empty list for anything else."""
    found = [image] if isinstance(image, str) else image
    return (
        [str(path) for path in found]
        if isinstance(found, list) and all(isinstance(p, str) for p in found)
        else []
    )


def _text(entry: Mapping[str, Any], keys: Sequence[str], source: Path) -> str | None:
    """Return the first text or number of an entry under one of ``keys``."""
    value = next((entry[key] for key in keys if entry.get(key) not in (None, "", [])), None)
    if isinstance(value, list) and len(value) == 1:  # MONAI writes some labels as lists of one
        value = value[0]
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise DataError(f"{source}: expected text for {keys[0]}, got {str(value)[:80]}; correct it.")
    return None if value is None else str(value)


def _kinds(files: Sequence[str], names: Sequence[str], source: Path) -> list[str]:
    """Return the modality of each file of an entry: as declared, or else by the end of its name."""
    if names:
        kinds = list(names)
    else:
        kinds = [kind for name in files if (kind := parse_modality(Path(name).name)) not in (None, SEG)]
    if len(kinds) != len(files) or len(set(kinds)) < len(kinds):
        raise DataError(
            f"{source}: expected a different modality for each of {', '.join(files)}, got "
            f"{', '.join(kinds) or 'none'}; "
            'declare them as "channel_names": {"0": "T1", …}.'
        )
    return kinds


def _case(
    source: Path,
    images: Mapping[str, str],
    seg: str | None,
    *,
    case: str | None,
    patient: str | None,
    part: Part | None,
    scheme: str | None = None,
) -> Case:
    files = {kind: _listed(source, name) for kind, name in images.items()}
    first = next(iter(files.values()))
    found = _identity(source, first, next(iter(images.values())))
    identity = found if case is None else identify(case)
    year = identity.year or found.year
    made = identity.case(
        images=files,
        seg=None if not seg else _listed(source, seg),
        layout="datalist",
        label_scheme=scheme or year or ("canonical" if set(files) <= set(MODALITIES) else AS_IS),
    )
    return replace(made, patient_id=made.patient_id if patient is None else patient, part=part)


def _listed(source: Path, name: str) -> Path:
    """Return the path of a file in a list; backslashes separate folders unless such a file exists."""
    path = source.parent / name
    return path if "\\" not in name or is_file(path) else source.parent / name.replace("\\", "/")


def _identity(source: Path, path: Path, written: str) -> Identity:
    """Return case and patient of a listed file, by its name or else by the folders before it in the list."""
    parts = [part for part in re.split(r"[/\\]", written)[:-1] if part not in ("", ".", "..")]
    folders = [*reversed(parts), source.parent.name or source.resolve().parent.name]
    parsed = parse_name(path.name, folder=folders[0], above=folders[1:])
    return parsed.identity if parsed is not None else identify_file(bare(path.name), folders)
