"""BIDS: ``sub-…/[ses-…/]anat/sub-…_T1w.nii.gz``, segmentations below ``derivatives``."""

import re
from collections import defaultdict
from pathlib import Path

from prod9.data.cases import Case
from prod9.data.names import MODALITIES, SEG, bare, is_volume
from prod9.data.scan import Scan, walk

_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+.]+)")
_LESION = re.compile(r"lesion|tumou?r|glioma|cancer", re.IGNORECASE)
_SUFFIXES = {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}
# A contrast-enhanced T1 says so: ce-gadolinium, ce-gd, ce-GADOLINIUM …
_ENHANCED = "ce"


def looks_like_bids(root: Path) -> bool:
    """Return whether ``root`` holds subjects: sub-* folders with an anat folder somewhere, or the description."""
    if (root / "dataset_description.json").is_file():
        return True
    subjects = [path for path in root.glob("sub-*") if path.is_dir()]
    return any(next(subject.glob("**/anat"), None) is not None for subject in subjects[:3])


def scan_bids(root: Path) -> Scan:
    """Group the anatomical images below ``root`` by subject and session.

    Of several images of one kind the one with the fewest entities, then the lowest run, is taken; the others
    are listed as ignored. A segmentation is a ``dseg``, or a ``mask`` whose name says lesion or tumour.
    """
    images: dict[tuple[str, str | None], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in walk(root):
        if not is_volume(path.name):
            continue
        kind, (subject, session) = _kind(path, root), _owner(path.name)
        if kind is not None and subject is not None:
            images[subject, session][kind].append(path)
    scan = Scan()
    for (subject, session), files in images.items():
        chosen = {kind: min(paths, key=_plainness) for kind, paths in files.items()}
        scan.ignored += [p for kind, paths in files.items() for p in paths if p != chosen[kind]]
        if set(chosen) == {SEG}:
            scan.ignored.append(chosen[SEG])
            continue
        seg = chosen.get(SEG)
        scan.cases.append(
            Case(
                case_id=f"sub-{subject}" + (f"_ses-{session}" if session else ""),
                patient_id=f"sub-{subject}",
                images={name: chosen[name] for name in MODALITIES if name in chosen},
                seg=seg,
                layout="bids",
                label_scheme="as_is" if seg is not None and bare(seg.name).endswith("_mask") else "canonical",
                time_point=session,
            )
        )
    return scan


def _owner(name: str) -> tuple[str | None, str | None]:
    entities = dict(_ENTITY.findall(name))
    return entities.get("sub"), entities.get("ses")


def _kind(path: Path, root: Path) -> str | None:
    """Return the modality of ``path``, ``seg``, or None for what is neither."""
    stem = bare(path.name)
    suffix = stem.rpartition("_")[2]
    if "derivatives" in path.relative_to(root).parts:
        is_seg = suffix == "dseg" or (suffix == "mask" and _LESION.search(stem) is not None)
        return SEG if is_seg else None
    if path.parent.name != "anat" or suffix not in _SUFFIXES:
        return None
    enhanced = suffix == "T1w" and _ENHANCED in dict(_ENTITY.findall(stem))
    return "T1ce" if enhanced else _SUFFIXES[suffix]


def _plainness(path: Path) -> tuple[bool, int, str]:
    """Order files of one kind: dseg before mask, few entities before many, then by name."""
    stem = bare(path.name)
    return stem.endswith("_mask"), len(_ENTITY.findall(stem)), path.name
