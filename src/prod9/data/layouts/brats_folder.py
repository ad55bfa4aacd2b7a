"""BraTS of any year, and folders with similar names: one file per modality, told apart by name."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prod9.data.layouts.names import MODALITIES, SEG, Identity, is_expert, parse_name, visit_of_folders
from prod9.data.layouts.scan import Scan, folders_of, twice


@dataclass(frozen=True)
class _File:
    """A volume whose name was understood. visit: name of the folder above it that is a visit."""

    path: Path
    kind: str
    stem: str
    identity: Identity
    visit: str | None


@dataclass
class _Files:
    """Files of one case while the tree is walked."""

    identity: Identity
    files: dict[str, Path] = field(default_factory=dict)


def scan_brats(root: Path) -> Scan:
    """Group the volumes below ``root`` by the case in their names; each name has its own year.

    Folders complete the names: ``P001/2019-01-02/t1.nii.gz``, or ``baseline/P001_t1.nii.gz`` beside
    ``followup/P001_t1.nii.gz``.
    """
    scan, files = Scan(), list[_File]()
    for path in scan.volumes(root):
        folder, *above = folders_of(path, root)
        name = parse_name(path.name, folder=folder, above=above)
        if name is None:
            scan.ignored.append(path)
        else:
            visit = visit_of_folders([folder, *above][:-1])
            files.append(_File(path, name.kind, name.stem, name.identity, visit))
    found: dict[str, _Files] = {}
    for file in _apart_by_visit(files):
        case = found.setdefault(file.identity.case_id, _Files(file.identity))
        if file.kind in case.files:
            what = f"{file.kind} file for case {file.identity.case_id}"
            scan.problems.append(twice(file.path, case.files[file.kind], what))
            continue
        case.files[file.kind] = file.path
    _give_segmentations(found, {file.path: file.stem for file in files if file.kind == SEG})
    for case in found.values():
        if set(case.files) == {SEG}:
            scan.ignored += case.files.values()
        else:
            year = case.identity.year or "canonical"
            scan.cases.append(
                case.identity.case(
                    images={kind: case.files[kind] for kind in MODALITIES if kind in case.files},
                    seg=case.files.get(SEG),
                    layout=year,
                    label_scheme=year,
                )
            )
    return scan


def _apart_by_visit(files: Sequence[_File]) -> Iterable[_File]:
    """Divide the files of one case name by visit, if several folders hold the same kind of file."""
    by_case: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        by_case[file.identity.case_id].append(file)
    for group in by_case.values():
        kinds = [file.kind for file in group]
        split = len(set(kinds)) < len(kinds) and len({file.visit for file in group}) > 1
        for file in group:
            if not split or file.visit is None or file.visit in file.identity.case_id:
                yield file
                continue
            case = f"{file.identity.case_id}_{file.visit}"
            yield replace(file, identity=replace(file.identity, case_id=case, time_point=file.visit))


def _give_segmentations(found: dict[str, _Files], stems: dict[Path, str]) -> None:
    """Add a segmentation without a case in its name, such as ``GT_seg``, to the only case with images in its folder."""
    by_folder: dict[Path, list[_Files]] = defaultdict(list)
    for case in found.values():
        for folder in {path.parent for kind, path in case.files.items() if kind != SEG}:
            by_folder[folder].append(case)
    for name, orphan in list(found.items()):
        if set(orphan.files) != {SEG}:
            continue
        beside = by_folder.get(orphan.files[SEG].parent, [])
        stem = stems[orphan.files[SEG]].rstrip("-_. ")
        if len(beside) == 1 and SEG not in beside[0].files and (not stem or is_expert(stem)):
            beside[0].files[SEG] = found.pop(name).files[SEG]
