"""Small datasets in every layout, with real voxels, in the names that the real ones use."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.fixtures import write_brats_tree

SHAPE = (16, 18, 14)
MSD_LABELS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def brains(num: int, *, seg_labels: tuple[int, int, int] = (1, 3, 2)) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (images [4 H W D] in the order T1, T1ce, T2, FLAIR, seg [H W D]) of ``num`` patients.

    seg_labels: values of necrosis, enhancing tumour and oedema.
    """
    patients = []
    for patient in range(num):
        rng = np.random.default_rng(patient)
        axes = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
        brain = (((axes - np.asarray(SHAPE) / 2) / (0.4 * np.asarray(SHAPE))) ** 2).sum(-1) <= 1
        distance = np.sqrt(((axes - np.asarray(SHAPE) / 2) ** 2).sum(-1))
        seg = np.select([distance < 1.2, distance < 2.0, distance < 3.0], seg_labels, 0)
        tissue = np.asarray([500, 620, 380, 300])[:, None, None, None]
        images = np.where(brain, tissue + 60 * (seg > 0) + rng.normal(0, 40, (4, *SHAPE)), 0).clip(0)
        patients.append((images.astype(np.int16), seg.astype(np.int16)))
    return patients


def save(data: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])), path)


def write_msd(root: Path, num: int) -> None:
    """Task01 of the Decathlon: one 4D file a patient, FLAIR first."""
    for k, (images, seg) in enumerate(brains(num, seg_labels=(2, 3, 1))):
        save(
            np.stack([images[3], images[0], images[1], images[2]], -1),
            root / f"imagesTr/BRATS_{k:03d}.nii.gz",
        )
        save(seg, root / f"labelsTr/BRATS_{k:03d}.nii.gz")
    (root / "imagesTr" / "._BRATS_000.nii.gz").write_bytes(b"macOS leaves these")
    training = [
        {"image": f"./imagesTr/BRATS_{k:03d}.nii.gz", "label": f"./labelsTr/BRATS_{k:03d}.nii.gz"}
        for k in range(num)
    ]
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    description = {
        "name": "BRATS",
        "modality": modality,
        "labels": MSD_LABELS,
        "training": training,
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(description))


def write_nnunet(root: Path, num: int) -> None:
    """An nnU-Net raw folder: one numbered file a channel."""
    for k, (images, seg) in enumerate(brains(num, seg_labels=(2, 3, 1))):
        for channel in range(4):
            save(images[channel], root / f"imagesTr/BraTS2021_{k:05d}_{channel:04d}.nii.gz")
        save(seg, root / f"labelsTr/BraTS2021_{k:05d}.nii.gz")
    description = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
        "numTraining": num,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))


def write_bids(root: Path, num: int) -> None:
    """BIDS with one session a subject and segmentations in derivatives."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "brains", "BIDSVersion": "1.9.0"}')
    names = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")
    for k, (images, seg) in enumerate(brains(num)):
        stem = f"sub-{k:03d}_ses-01"
        for channel, name in enumerate(names):
            save(images[channel], root / f"sub-{k:03d}/ses-01/anat/{stem}_{name}.nii.gz")
        save(seg, root / f"derivatives/manual/sub-{k:03d}/ses-01/anat/{stem}_desc-tumor_dseg.nii.gz")
    save(images[0], root / "sub-000/ses-01/anat/sub-000_ses-01_run-2_T1w.nii.gz")


def write_datalist(root: Path, num: int) -> Path:
    """A CSV list with a split of its own, files with names of no challenge; return the list."""
    lines = ["case,patient,split,T1,T1ce,T2,FLAIR,seg,hospital"]
    for k, (images, seg) in enumerate(brains(num)):
        files = [f"files/Müller {k}/scan {channel}.nii.gz" for channel in range(4)]
        for channel, name in enumerate(files):
            save(images[channel], root / name)
        save(seg, root / f"files/Müller {k}/labels.nii")
        part = "train" if k < num - 2 else ("val", "test")[k - num + 2]
        lines.append(",".join([f"scan{k}", f"P{k}", part, *files, f"files/Müller {k}/labels.nii", "north"]))
    path = root / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_json_list(root: Path, num: int) -> Path:
    """A datalist as MONAI reads it; return it."""
    entries = []
    for k, (images, seg) in enumerate(brains(num)):
        names = [f"{k}_{name}.nii" for name in ("t1", "t1ce", "t2", "flair")]
        for channel, name in enumerate(names):
            save(images[channel], root / name)
        save(seg, root / f"{k}_seg.nii")
        entries.append({"image": names, "label": f"{k}_seg.nii", "fold": k % 5})
    path = root / "datalist.json"
    path.write_text(json.dumps({"training": entries}))
    return path


def _brats(layout: str) -> Callable[[Path, int], None]:
    return lambda root, num: write_brats_tree(root, num, SHAPE, layout=layout) and None


WRITERS: dict[str, Callable[[Path, int], Path | None]] = {
    **{year: _brats(year) for year in ("brats2018", "brats2019", "brats2020", "brats2021", "brats2023")},
    "msd": write_msd,
    "nnunet": write_nnunet,
    "bids": write_bids,
    "datalist": write_datalist,
    "json list": write_json_list,
}
"""Each writes ``num`` patients below a folder; a list is returned, and is the root then."""
