"""BraTS 2023: ``CASE/CASE-t1n.nii.gz`` and so on, the segmentation as ``CASE/CASE-seg.nii.gz``."""

from collections.abc import Mapping, Sequence
from typing import Any

from prod9.data.formats.form import Content, Form, Name

WORDS = {"T1": "t1n", "T1ce": "t1c", "T2": "t2w", "FLAIR": "t2f"}


def _image(name: Name, modality: str, order: Sequence[str], synthetic: bool) -> str:
    del order, synthetic
    return f"{name.case_id}/{name.case_id}-{WORDS[modality]}.nii.gz"


def _seg(name: Name, synthetic: bool) -> str:
    del synthetic
    return f"{name.case_id}/{name.case_id}-seg.nii.gz"


def _describe(content: Content) -> Mapping[str, Any]:
    del content  # names say everything
    return {}


BRATS = Form(name="brats", modalities=WORDS, image=_image, seg=_seg, describe=_describe)
