"""BraTS of any year, and folders named alike: one file a modality, the name says which."""

from dataclasses import dataclass, field
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.names import MODALITIES, SEG, Identity, is_volume, parse_name
from prod9.data.scan import Scan, walk


@dataclass
class _Files:
    """Files of one case while the tree is walked."""

    identity: Identity
    files: dict[str, Path] = field(default_factory=dict)


def scan_brats(root: Path) -> Scan:
    """Group the volumes below ``root`` by the case in their names; the year is that of each name."""
    scan, found = Scan(), dict[str, _Files]()
    for path in walk(root):
        if not is_volume(path.name):
            continue
        name = parse_name(path.name, folder=path.parent.name)
        if name is None:
            scan.ignored.append(path)
            continue
        case = found.setdefault(name.identity.case_id, _Files(name.identity))
        if name.kind in case.files:
            scan.problems.append(
                f"{path}: expected one {name.kind} file for case {name.identity.case_id}, got "
                f"{case.files[name.kind]} too; remove one."
            )
            continue
        case.files[name.kind] = path
    for case in found.values():
        if set(case.files) == {SEG}:
            scan.ignored += case.files.values()
        else:
            scan.cases.append(_case(case))
    return scan


def _case(found: _Files) -> Case:
    identity = found.identity
    year = identity.year or "canonical"
    return Case(
        case_id=identity.case_id,
        patient_id=identity.patient_id,
        images={kind: found.files[kind] for kind in MODALITIES if kind in found.files},
        seg=found.files.get(SEG),
        layout=year,
        label_scheme=year,
        time_point=identity.time_point,
    )
