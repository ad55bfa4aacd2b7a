"""BIDS: scans as raw data with segmentations below ``derivatives``; synthetic patients as a derivative dataset.

BIDS says nothing of images that show nobody. They are written as a derivative with ``desc-synth``, whose
``GeneratedBy`` names prod9 and whose ``Sources`` name the segmentation that an image follows.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prod9.data.formats.form import Content, Form, Name

VERSION = "1.10.0"
"""Of the specification."""
# Modality → what stands between the subject and ``desc``, and the suffix.
_ENTITIES = {"T1": ("", "T1w"), "T1ce": ("_ce-gadolinium", "T1w"), "T2": ("", "T2w"), "FLAIR": ("", "FLAIR")}
_LESIONS = "derivatives/lesions"
_SYNTH = "_desc-synth"


def _stem(name: Name) -> tuple[str, str]:
    """Return the folder and the start of the file names of a case."""
    subject = f"sub-{_plain(name.patient_id.removeprefix('sub-'))}"
    session = f"ses-{_plain(name.time_point)}" if name.time_point is not None else ""
    parts = [subject, *([session] if session else [])]
    return "/".join([*parts, "anat"]), "_".join(parts)


def _plain(text: str) -> str:
    """Return the letters and digits of a label, which BIDS allows alone."""
    return re.sub(r"[^A-Za-z0-9]", "", text) or "0"


def _image(name: Name, modality: str, order: Sequence[str], synthetic: bool) -> str:
    del order
    folder, stem = _stem(name)
    entity, suffix = _ENTITIES[modality]
    return f"{folder}/{stem}{entity}{_SYNTH if synthetic else ''}_{suffix}.nii.gz"


def _seg(name: Name, synthetic: bool) -> str:
    folder, stem = _stem(name)
    place = f"{folder}/{stem}_seg-lesion{_SYNTH if synthetic else ''}_dseg.nii.gz"
    return place if synthetic else f"{_LESIONS}/{place}"


def _describe(content: Content) -> Mapping[str, Any]:
    from prod9 import __version__

    made_by = {"Name": "prod9", "Version": __version__, "Description": str(content.about.get("text", ""))}
    if not content.synthetic:
        description = {"Name": "Scans", "BIDSVersion": VERSION, "DatasetType": "raw"}
        files: dict[str, Any] = {"dataset_description.json": description, "README.md": _README}
        if content.labels:
            derived = {"Name": "Lesions", "DatasetType": "derivative", "GeneratedBy": [made_by]}
            files[f"{_LESIONS}/dataset_description.json"] = description | derived
            files[f"{_LESIONS}/dseg.tsv"] = _table(content.labels)
        return files
    description = {
        "Name": "Synthetic patients",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
    }
    files = {"dataset_description.json": description, ".bidsignore": "manifest.json\n"}
    if content.labels:
        files["dseg.tsv"] = _table(content.labels)
    for name in content.names:
        seg = _seg(name, True)
        for modality in content.modalities:
            sidecar = {"Description": "Synthetic: it shows nobody.", "SkullStripped": True}
            sources = {"Sources": [f"bids::{seg}"]} if content.labels else {}
            image = _image(name, modality, (), True)
            files[image.removesuffix(".nii.gz") + ".json"] = sidecar | sources
    return files


_README = (
    "# Scans\n\nBrought into the form of BIDS by prod9. Segmentations are below `derivatives/lesions`.\n"
)


def _table(labels: Mapping[str, int]) -> str:
    """Return the table that says what each value of a segmentation shows."""
    rows = "".join(f"{value}\t{name}\n" for name, value in labels.items())
    return f"index\tname\n0\tbackground\n{rows}"


BIDS = Form(
    name="bids",
    modalities={name: suffix for name, (_, suffix) in _ENTITIES.items()},
    image=_image,
    seg=_seg,
    describe=_describe,
    card="README.md",
)
