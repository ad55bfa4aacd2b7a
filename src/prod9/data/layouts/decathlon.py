"""Datasets that a ``dataset.json`` describes: the Medical Segmentation Decathlon and nnU-Net's raw folders."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prod9.data.cases import Case
from prod9.data.labels import AS_IS, declared_scheme
from prod9.data.layouts.names import bare, canonical_modality, identify, identify_file
from prod9.data.layouts.scan import Scan, folders_of, inside, is_file, not_there, read_json, unreachable
from prod9.errors import DataError
from prod9.volumes import Channel

DESCRIPTION = "dataset.json"
_NNUNET_NAME = re.compile(r"(.+)_(\d{4})")


def described_by(root: Path) -> str | None:
    """Return ``msd`` or ``nnunet`` where ``root`` has a dataset.json and training images, else None.

    Raises DataError for a dataset.json that is a link to nothing or cannot be read.
    """
    images, description = root / "imagesTr", root / DESCRIPTION
    if description.is_symlink() and (message := unreachable(description)) is not None:
        raise DataError(message)
    if not is_file(description) or not images.is_dir():
        return None
    names = [path.name for path in Scan().volumes(images)]
    # nnU-Net writes one file a channel and numbers them, also where there is only one.
    numbered = bool(names) and all(_NNUNET_NAME.fullmatch(bare(name)) for name in names)
    return "nnunet" if numbered and any(bare(name).endswith("_0000") for name in names) else "msd"


def scan_msd(root: Path) -> Scan:
    """Find the training cases of a Decathlon task; where it has several modalities, files are 4D.

    Images of ``imagesTs`` have no labels and stay out.
    """
    source = root / DESCRIPTION
    description = _read(source)
    names = _channel_names(description, source)
    scheme = declared_scheme(description.get("labels")) or AS_IS
    scan = Scan()
    for image, label in _training_pairs(description, root, scan):
        absent = [path for path in (image, label) if path is not None and not is_file(path)]
        if absent:
            scan.lacks(not_there(absent[0], source))
            continue
        identity = identify_file(bare(image.name), folders_of(image, root))
        channels = {name: Channel(name, index, len(names)) for index, name in enumerate(names)}
        scan.cases.append(
            Case(
                case_id=identity.case_id,
                patient_id=identity.patient_id,
                images=dict.fromkeys(names, image),
                seg=label,
                layout="msd",
                label_scheme=scheme,
                time_point=identity.time_point,
                channels=channels if len(names) > 1 else {},
            )
        )
    return scan


def scan_nnunet(root: Path) -> Scan:
    """Find the training cases of an nnU-Net raw folder: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``."""
    source = root / DESCRIPTION
    description = _read(source)
    names = _channel_names(description, source)
    scheme = declared_scheme(description.get("labels")) or AS_IS
    scan, images = Scan(), dict[str, dict[str, Path]]()
    labels = _by_name(scan, root / "labelsTr")
    for path in scan.volumes(root / "imagesTr"):
        match = _NNUNET_NAME.fullmatch(bare(path.name))
        if match is None:
            scan.ignored.append(path)
        elif int(match[2]) >= len(names):
            scan.problems.append(
                f"{path}: expected channels 0000 to {len(names) - 1:04d} as {source} says, got {match[2]}; "
                "correct either."
            )
        else:
            name = names[int(match[2])]
            first = images.setdefault(match[1], {}).setdefault(name, path)
            if first != path:
                scan.problems.append(_twice(path, first, f"channel {match[2]} of {match[1]}"))
    scan.ignored += [path for case, path in labels.items() if case not in images]
    for case, files in images.items():
        identity = identify(case)
        scan.cases.append(
            Case(
                case_id=identity.case_id,
                patient_id=identity.patient_id,
                images={name: files[name] for name in names if name in files},
                seg=labels.get(case),
                layout="nnunet",
                label_scheme=scheme,
                time_point=identity.time_point,
            )
        )
    return scan


def _by_name(scan: Scan, folder: Path) -> dict[str, Path]:
    """Return the volumes below ``folder`` by their names without suffix; ``.nii`` beside ``.nii.gz`` is a problem."""
    found: dict[str, Path] = {}
    for path in scan.volumes(folder) if folder.is_dir() else ():
        first = found.setdefault(bare(path.name), path)
        if first != path:
            scan.problems.append(_twice(path, first, f"{bare(path.name)} in {folder.name}"))
    return found


def _twice(path: Path, first: Path, what: str) -> str:
    return f"{path}: expected one file for {what}, got {first} too; remove one."


def _read(source: Path) -> Mapping[str, Any]:
    if not source.is_file():
        raise DataError(f"{source}: no such file; data.layout msd and nnunet need it.")
    description = read_json(source)
    if not isinstance(description, dict):
        raise DataError(
            f"{source}: expected a JSON object, got {type(description).__name__}; repair the file."
        )
    return description


def _channel_names(description: Mapping[str, Any], source: Path) -> list[str]:
    """Return the modalities in the order of their numbers; version 1 says ``modality``, 2 ``channel_names``."""
    declared = description.get("channel_names", description.get("modality"))
    try:
        numbered = sorted((int(number), str(name)) for number, name in dict(declared or {}).items())
    except (TypeError, ValueError, OverflowError):  # JSON knows Infinity
        numbered = []
    names = [canonical_modality(name) for _, name in numbered]
    if (
        not names
        or [number for number, _ in numbered] != list(range(len(names)))
        or len(set(names)) < len(names)
    ):
        raise DataError(
            f'{source}: expected channel_names (or modality) such as {{"0": "FLAIR", "1": "T1w"}}, numbered from 0 '
            f"and all different, got {declared}; correct it."
        )
    return names


def _training_pairs(description: Mapping[str, Any], root: Path, scan: Scan) -> list[tuple[Path, Path | None]]:
    """Return (image, label) of every training case, from the list, or from the folder where there is none."""
    source, listed = root / DESCRIPTION, description.get("training")
    if not isinstance(listed, list) or not listed:
        labels = _by_name(scan, root / "labelsTr")
        images = _by_name(scan, root / "imagesTr")
        return [(path, labels.get(name)) for name, path in images.items()]
    try:
        return [
            (
                inside(root, str(entry["image"]), source),
                inside(root, str(entry["label"]), source) if entry.get("label") else None,
            )
            for entry in listed
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{source}: expected training entries such as {{"image": "./imagesTr/x.nii.gz", "label": …}}, got '
            f"{str(listed[0])[:80]}; correct it."
        ) from error
