"""Datasets that a ``dataset.json`` describes: the Medical Segmentation Decathlon and nnU-Net's raw folders."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prod9.data.labels import AS_IS, declared_scheme
from prod9.data.layouts.names import bare, canonical_modality, identify, identify_file
from prod9.data.layouts.scan import (
    Scan,
    folders_of,
    inside,
    is_file,
    not_there,
    twice,
    unreachable,
)
from prod9.errors import DataError
from prod9.json_files import read_object
from prod9.volumes import Channel

DESCRIPTION = "dataset.json"
_NNUNET_NAME = re.compile(r"(.+)_(\d{4})")


def described_by(root: Path) -> str | None:
    """Return ``msd`` or ``nnunet`` if ``root`` has a dataset.json and training images, else None.

    Raises DataError for a dataset.json that is a link to nothing or cannot be read.
    """
    images, description = root / "imagesTr", root / DESCRIPTION
    if description.is_symlink() and (message := unreachable(description)) is not None:
        raise DataError(message)
    if not is_file(description) or not images.is_dir():
        return None
    names = [path.name for path in Scan().volumes(images)]
    # nnU-Net writes one numbered file per channel, even for a single channel.
    numbered = bool(names) and all(_NNUNET_NAME.fullmatch(bare(name)) for name in names)
    return "nnunet" if numbered and any(bare(name).endswith("_0000") for name in names) else "msd"


def scan_msd(root: Path) -> Scan:
    """Find the training cases of a Decathlon task; with several modalities, files are 4D.

    Images of ``imagesTs`` have no labels and are left out.
    """
    scan, described = Scan(), _read(root)
    names = described.names
    for image, label in _training_pairs(described, root, scan):
        absent = [path for path in (image, label) if path is not None and not is_file(path)]
        if absent:
            scan.lacks(not_there(absent[0], described.source))
            continue
        identity = identify_file(bare(image.name), folders_of(image, root))
        channels = {name: Channel(name, index, len(names)) for index, name in enumerate(names)}
        scan.cases.append(
            identity.case(
                images=dict.fromkeys(names, image),
                seg=label,
                layout="msd",
                label_scheme=described.scheme,
                channels=channels if len(names) > 1 else {},
            )
        )
    return scan


def scan_nnunet(root: Path) -> Scan:
    """Find the training cases of an nnU-Net raw folder: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``."""
    described, scan, images = _read(root), Scan(), dict[str, dict[str, Path]]()
    names = described.names
    labels = _by_name(scan, root / "labelsTr")
    for path in scan.volumes(root / "imagesTr"):
        match = _NNUNET_NAME.fullmatch(bare(path.name))
        if match is None:
            scan.ignored.append(path)
        elif int(match[2]) >= len(names):
            scan.problems.append(
                f"{path}: expected channels 0000 to {len(names) - 1:04d} as {described.source} says, got {match[2]}; "
                "correct either."
            )
        else:
            name = names[int(match[2])]
            first = images.setdefault(match[1], {}).setdefault(name, path)
            if first != path:
                scan.problems.append(twice(path, first, f"file for channel {match[2]} of {match[1]}"))
    scan.ignored += [path for case, path in labels.items() if case not in images]
    for case, files in images.items():
        scan.cases.append(
            identify(case).case(
                images={name: files[name] for name in names if name in files},
                seg=labels.get(case),
                layout="nnunet",
                label_scheme=described.scheme,
            )
        )
    return scan


def _by_name(scan: Scan, folder: Path) -> dict[str, Path]:
    """Return the volumes below ``folder`` by name without suffix; ``.nii`` beside ``.nii.gz`` is a problem."""
    found: dict[str, Path] = {}
    for path in scan.volumes(folder) if folder.is_dir() else ():
        first = found.setdefault(bare(path.name), path)
        if first != path:
            scan.problems.append(twice(path, first, f"file for {bare(path.name)} in {folder.name}"))
    return found


@dataclass(frozen=True)
class _Description:
    """A dataset.json. names: the modalities in the order of their numbers. scheme: that of its labels."""

    source: Path
    content: Mapping[str, Any]
    names: Sequence[str]
    scheme: str


def _read(root: Path) -> _Description:
    source = root / DESCRIPTION
    if not source.is_file():
        raise DataError(
            f"{source}: expected a file for data.layout msd and nnunet, got none; correct the layout or data.root."
        )
    content = read_object(source)
    scheme = declared_scheme(content.get("labels")) or AS_IS
    return _Description(source, content, _channel_names(content, source), scheme)


def _channel_names(description: Mapping[str, Any], source: Path) -> list[str]:
    """Return the modalities by number: ``modality`` in version 1, ``channel_names`` in version 2."""
    declared = description.get("channel_names", description.get("modality"))
    try:
        numbered = sorted((int(number), str(name)) for number, name in dict(declared or {}).items())
    except (TypeError, ValueError, OverflowError):  # JSON may hold Infinity
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


def _training_pairs(described: _Description, root: Path, scan: Scan) -> list[tuple[Path, Path | None]]:
    """Return (image, label) of every training case, from the list or, without one, from the folders."""
    source, listed = described.source, described.content.get("training")
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
