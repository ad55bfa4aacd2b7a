"""Plain lists of files: a CSV with a column a modality, or the JSON datalist that MONAI reads.

CSV: columns ``case``, ``patient``, ``split``, ``seg`` (also ``label``, ``mask``) are known, every other column whose
name is a modality (``T1``, ``t1ce``, ``CT`` …) holds paths, relative to the list. JSON: ``{"training": [{"image": path
or paths, "label": path, …}], "validation": […], "test": […]}`` with ``modality`` or ``channel_names`` saying what the
images are where their names don't.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prod9.data.cases import Case, Part
from prod9.data.labels import AS_IS, scheme_from_names
from prod9.data.names import (
    MODALITIES,
    SEG,
    bare,
    canonical_modality,
    identify,
    is_volume,
    parse_modality,
    parse_name,
)
from prod9.data.scan import Scan, read_json
from prod9.errors import DataError

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


def scan_datalist(root: Path) -> Scan:
    """Read the cases of a CSV, TSV or JSON list."""
    if root.is_dir():
        raise DataError(
            f"{root}: expected a .csv, .tsv or .json list, got a folder; name the file as data.root."
        )
    rows = _json_rows(root) if root.suffix.lower() == ".json" else _table_rows(root)
    scan, seen = Scan(), set[str]()
    for case in rows:
        absent = [path for path in case.files if not path.is_file()]
        if case.case_id in seen:
            scan.problems.append(
                f"{root}: expected each case once, got {case.case_id} twice; remove one row."
            )
        elif absent:
            scan.problems.append(
                f"{absent[0]}: listed in {root}, but no such file; restore it or correct the list."
            )
        else:
            scan.cases.append(case)
        seen.add(case.case_id)
    return scan


def _table_rows(source: Path) -> list[Case]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: expected a text table in UTF-8 ({error}); save it so.") from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if source.suffix.lower() == ".tsv" else ",")
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
    table = list(reader)
    known = {*_SEG_COLUMNS, *_CASE_COLUMNS, *_PATIENT_COLUMNS, *_PART_COLUMNS}
    modalities = {
        canonical_modality(str(name)): name
        for key, name in columns.items()
        if key and key not in known and any(is_volume(Path(row[name] or "").name) for row in table)
    }
    if not modalities:
        raise DataError(
            f"{source}: expected a header with modalities above paths, such as case,patient,T1,T1ce,T2,FLAIR,seg, "
            f"got {', '.join(map(str, reader.fieldnames or [])) or 'nothing'}; correct it."
        )
    rows = []
    for number, row in enumerate(table, start=2):

        def value(names: Sequence[str], row: Mapping[str, Any] = row) -> str | None:
            return next((row[columns[n]].strip() for n in names if n in columns and row[columns[n]]), None)

        images = {kind: str(row[name]).strip() for kind, name in modalities.items() if row[name]}
        if not images:
            raise DataError(f"{source}: row {number} names no image; fill it or remove it.")
        rows.append(
            _case(
                source, images, value(_SEG_COLUMNS), case=value(_CASE_COLUMNS), patient=value(_PATIENT_COLUMNS),
                part=_part(value(_PART_COLUMNS), source, number),
            )
        )  # fmt: skip
    return rows


def _json_rows(source: Path) -> list[Case]:
    content = read_json(source)
    if not isinstance(content, dict):
        raise DataError(
            f'{source}: expected {{"training": [{{"image": …}}]}}, got a {type(content).__name__}.'
        )
    declared = content.get("channel_names", content.get("modality")) or {}
    names = (
        [canonical_modality(str(name)) for name in declared.values()] if isinstance(declared, dict) else []
    )
    labels = content.get("labels")
    scheme = None
    if isinstance(labels, dict) and labels and all(str(key).isdigit() for key in labels):
        scheme = scheme_from_names({str(name): int(value) for value, name in labels.items()})
    several = sum(bool(content.get(key)) for key in _PARTS) > 1
    cases = []
    for key, part in _PARTS.items():
        for entry in content.get(key) or []:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not entry.get("image"):
                raise DataError(f'{source}: expected entries of {key} such as {{"image": …}}, got {entry}.')
            files = [
                str(p) for p in ([entry["image"]] if isinstance(entry["image"], str) else entry["image"])
            ]
            images = dict(zip(_kinds(files, names, source), files, strict=True))
            cases.append(
                _case(
                    source, images, entry.get("label"), case=entry.get("case") or entry.get("case_id"),
                    patient=entry.get("patient") or entry.get("patient_id"),
                    part=part if several else None, scheme=scheme,
                )
            )  # fmt: skip
    return cases


def _kinds(files: Sequence[str], names: Sequence[str], source: Path) -> list[str]:
    """Return what each file of an entry shows: as declared, else as their names end."""
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
    files = {kind: source.parent / name for kind, name in images.items()}
    first = next(iter(files.values()))
    parsed = parse_name(first.name, folder=first.parent.name)
    found = parsed.identity if parsed is not None else identify(bare(first.name))
    identity = found if case is None else identify(str(case))
    year = identity.year or found.year
    return Case(
        case_id=identity.case_id,
        patient_id=identity.patient_id if patient is None else str(patient),
        images=files,
        seg=None if not seg else source.parent / str(seg),
        layout="datalist",
        label_scheme=scheme or year or ("canonical" if set(files) <= set(MODALITIES) else AS_IS),
        time_point=identity.time_point,
        part=part,
    )


def _part(text: str | None, source: Path, number: int) -> Part | None:
    if text is None:
        return None
    if text.lower() not in _PARTS:
        raise DataError(f"{source}: row {number}: expected split train, val or test, got {text}; correct it.")
    return _PARTS[text.lower()]
