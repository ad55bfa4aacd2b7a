"""BIDS: ``sub-…/[ses-…/]anat/sub-…_T1w.nii.gz``, segmentations below ``derivatives``."""

import re
from collections import defaultdict
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.layouts.names import LESION, MODALITIES, SEG, bare, says_other, shows_labels
from prod9.data.layouts.scan import Scan, twice
from prod9.data.layouts.visits import split_visit

_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+.]+)")
_OWNER = re.compile(r"(?:sub|ses)-[A-Za-z0-9+.]+")
_SUFFIXES = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}
_LABELS = ("dseg", "mask", "roi")
# Pipelines that segment tissue, even if the folder is called after lesions.
_TISSUE_PIPELINES = re.compile(
    r"f?s?mriprep|free-?surfer|fast-?surfer|synthseg|cat12|qsiprep|mriqc", re.IGNORECASE
)
# The entity of a contrast-enhanced T1: ce-gadolinium, ce-gd, ce-GADOLINIUM …
_ENHANCED = "ce"


def looks_like_bids(root: Path) -> bool:
    """Return whether ``root`` holds a BIDS description, or sub-* folders with an anat folder in them."""
    if (root / "dataset_description.json").is_file():
        return True
    subjects = [path for path in sorted(root.glob("sub-*")) if path.is_dir()]
    return any(next(subject.glob("**/anat"), None) is not None for subject in subjects[:3])


def scan_bids(root: Path) -> Scan:
    """Group the anatomical images below ``root`` by subject and session.

    Among several images of one kind the one with the fewest entities, then the lowest run, is taken; the others
    are listed as ignored. A segmentation is a ``dseg``, ``mask`` or ``roi`` with lesion or tumour in its name or in
    that of its folder below ``derivatives``; others, such as the tissue of fMRIPrep, are ignored too.
    """
    images: dict[tuple[str, str | None], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    scan = Scan()
    for path in scan.volumes(root):
        kind, (subject, session) = _kind(path, root), _owner(path, root)
        if kind is not None and subject is not None:
            images[subject, session][kind].append(path)
        elif kind is not None or shows_labels(path.name):
            scan.ignored.append(path)
    for (subject, session), files in images.items():
        scan.problems += [text for paths in files.values() for text in _doubled(paths)]
        chosen = {kind: min(paths, key=_plainness) for kind, paths in files.items()}
        scan.ignored += [p for kind, paths in files.items() for p in paths if p != chosen[kind]]
        if set(chosen) == {SEG}:
            scan.ignored.append(chosen[SEG])
            continue
        scan.cases.append(_case(subject, session, chosen))
    return scan


def _case(subject: str, session: str | None, chosen: dict[str, Path]) -> Case:
    seg = chosen.get(SEG)
    # Some converters put the visit into the subject: sub-P001tp1.
    patient, visit = split_visit(subject) or (subject, None)
    return Case(
        case_id=f"sub-{subject}" + (f"_ses-{session}" if session else ""),
        patient_id=f"sub-{patient}",
        images={name: chosen[name] for name in MODALITIES if name in chosen},
        seg=seg,
        layout="bids",
        label_scheme="as_is" if seg is not None and _is_mask(seg) else "canonical",
        time_point=session or visit,
    )


def _doubled(paths: list[Path]) -> list[str]:
    """Return a message for each image that is there as ``.nii`` and as ``.nii.gz``."""
    first: dict[tuple[Path, str], Path] = {}
    return [
        twice(path, first[path.parent, bare(path.name)], "file of this image")
        for path in paths
        if first.setdefault((path.parent, bare(path.name)), path) != path
    ]


def _owner(path: Path, root: Path) -> tuple[str | None, str | None]:
    """Return subject and session, from the name or else from the folders."""
    entities: dict[str, str] = {}
    for part in path.relative_to(root).parts:
        entities |= dict(_ENTITY.findall(bare(part)))
    return entities.get("sub"), entities.get("ses")


def _kind(path: Path, root: Path) -> str | None:
    """Return the modality of ``path``, ``seg``, or None for other files."""
    stem = bare(path.name)
    suffix = stem.rpartition("_")[2]
    if suffix in _LABELS:
        return SEG if _shows_lesion(path, root) else None
    if "derivatives" in path.relative_to(root).parts:
        return None
    if path.parent.name != "anat" or suffix not in _SUFFIXES:
        return None
    enhanced = suffix == "T1w" and _ENHANCED in dict(_ENTITY.findall(stem))
    return "T1ce" if enhanced else _SUFFIXES[suffix]


def _shows_lesion(path: Path, root: Path) -> bool:
    if LESION.search(_OWNER.sub("", bare(path.name))) is not None:
        return True
    folders = path.parent.relative_to(root).parts
    pipelines = folders[folders.index("derivatives") + 1 :] if "derivatives" in folders else ()
    said = [name for name in pipelines if not name.startswith(("sub-", "ses-")) and LESION.search(name)]
    return bool(said) and not says_other(path.name) and not any(map(_TISSUE_PIPELINES.search, said))


def _is_mask(path: Path) -> bool:
    return bare(path.name).rpartition("_")[2] in ("mask", "roi")


def _plainness(path: Path) -> tuple[bool, int, str]:
    """Order files of one kind: dseg before mask, few entities before many, then by name."""
    return _is_mask(path), len(_ENTITY.findall(bare(path.name))), path.name
