"""Datasets that a ``dataset.json`` describes: the Medical Segmentation Decathlon and nnU-Net's raw folders."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prod9.data.cases import Case
from prod9.data.labels import AS_IS, scheme_from_names
from prod9.data.names import bare, canonical_modality, identify, is_volume
from prod9.data.scan import Scan, inside, read_json, walk
from prod9.errors import DataError
from prod9.volumes import Channel

DESCRIPTION = "dataset.json"
_NNUNET_NAME = re.compile(r"(.+)_(\d{4})")


def described_by(root: Path) -> str | None:
    """Return ``msd`` or ``nnunet`` where ``root`` has a dataset.json and training images, else None."""
    images = root / "imagesTr"
    if not (root / DESCRIPTION).is_file() or not images.is_dir():
        return None
    names = [path.name for path in images.iterdir() if is_volume(path.name)]
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
    scheme = _scheme(description)
    scan = Scan()
    for image, label in _training_pairs(description, root):
        if not image.is_file():
            scan.problems.append(
                f"{image}: listed in {source}, but no such file; restore it or correct the list."
            )
            continue
        identity = identify(bare(image.name))
        channels = {name: Channel(name, index, len(names)) for index, name in enumerate(names)}
        scan.cases.append(
            Case(
                case_id=identity.case_id,
                patient_id=identity.patient_id,
                images=dict.fromkeys(names, image),
                seg=label if label is not None and label.is_file() else None,
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
    scheme = _scheme(description)
    labels = {bare(path.name): path for path in walk(root / "labelsTr") if is_volume(path.name)} if (
        root / "labelsTr"
    ).is_dir() else {}  # fmt: skip
    scan, images = Scan(), dict[str, dict[str, Path]]()
    for path in walk(root / "imagesTr"):
        match = _NNUNET_NAME.fullmatch(bare(path.name)) if is_volume(path.name) else None
        if match is None or int(match[2]) >= len(names):
            if match is not None:
                scan.problems.append(
                    f"{path}: expected channels 0000 to {len(names) - 1:04d} as {source} says, got {match[2]}; "
                    "correct either."
                )
            elif is_volume(path.name):
                scan.ignored.append(path)
            continue
        images.setdefault(match[1], {})[names[int(match[2])]] = path
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
    except (TypeError, ValueError):
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


def _scheme(description: Mapping[str, Any]) -> str:
    """Return the label scheme: version 1 maps value → name, 2 name → value or values."""
    labels = description.get("labels")
    if not isinstance(labels, dict):
        return AS_IS
    try:
        if all(str(key).isdigit() for key in labels):
            return scheme_from_names({str(name): int(value) for value, name in labels.items()})
        named = {str(n): v if isinstance(v, list) else int(v) for n, v in labels.items() if n != "ignore"}
        return scheme_from_names(named)
    except (TypeError, ValueError):
        return AS_IS


def _training_pairs(description: Mapping[str, Any], root: Path) -> list[tuple[Path, Path | None]]:
    """Return (image, label) of every training case, from the list, or from the folder where there is none."""
    source, listed = root / DESCRIPTION, description.get("training")
    if not isinstance(listed, list) or not listed:
        images = [path for path in walk(root / "imagesTr") if is_volume(path.name)]
        return [(path, root / "labelsTr" / path.name) for path in images]
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
