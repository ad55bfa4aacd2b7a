"""Nothing becomes the segmentation of a lesion that does not say so, and what is left out is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prod9.cli.generate.infer import find_volumes
from prod9.data.checking.report import check_dataset
from prod9.data.layouts.find import find_cases, scan_dataset
from prod9.data.layouts.names import parse_modality, shows_labels
from prod9.errors import DataError

TOKENS = ("t1", "t1ce", "t2", "flair")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def bids(root: Path) -> Path:
    for suffix in ("T1w", "ce-gd_T1w", "T2w", "FLAIR"):
        touch(root / f"sub-01/anat/sub-01_{suffix}.nii.gz")
    return root


def plain(root: Path) -> Path:
    for token in TOKENS:
        touch(root / f"P1/P1_{token}.nii.gz")
    return root


def assert_no_lesion(root: Path, path: Path) -> None:
    dataset = scan_dataset(root)
    assert [case.seg for case in dataset.cases] == [None]
    assert path in dataset.ignored
    notes = [f.message for f in check_dataset(root).findings if f.code == "ignored"]
    assert any(str(path.relative_to(root)) in note for note in notes), notes


@pytest.mark.parametrize(
    "name",
    [
        "derivatives/fmriprep/sub-01/anat/sub-01_dseg",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-aseg_dseg",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-aparcaseg_dseg",
        "derivatives/fmriprep/sub-01/anat/sub-01_label-GM_probseg",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask",
        "derivatives/fmriprep-lesion/sub-01/anat/sub-01_dseg",
        "derivatives/tumor/sub-01/anat/sub-01_desc-brain_mask",
        "derivatives/freesurfer/sub-01/mri/aseg",
        "derivatives/synthseg/sub-01/anat/sub-01_dseg",
        "derivatives/manual/sub-01/anat/sub-01_dseg",
        "derivatives/manual/sub-01/anat/sub-01_label-lesion_probseg",
        "sub-01/anat/sub-01_dseg",
        "sub-01/anat/sub-01_mask",
        "sub-01/anat/sub-01_roi",
    ],
)
def test_a9_label_maps_of_bids(tmp_path: Path, name: str) -> None:
    assert_no_lesion(tmp_path, touch(bids(tmp_path) / f"{name}.nii.gz"))


@pytest.mark.parametrize(
    "name",
    [
        "derivatives/manual/sub-01/anat/sub-01_desc-tumor_dseg",
        "derivatives/manual/sub-01/anat/sub-01_label-lesion_mask",
        "derivatives/manual/sub-01/anat/sub-01_label-lesion_roi",
        "derivatives/lesion_masks/sub-01/anat/sub-01_dseg",
        "derivatives/lesion_masks/sub-01/anat/sub-01_mask",
        "sub-01/anat/sub-01_desc-tumour_dseg",
    ],
)
def test_a9_lesions_of_bids(tmp_path: Path, name: str) -> None:
    path = touch(bids(tmp_path) / f"{name}.nii.gz")
    assert [case.seg for case in scan_dataset(tmp_path).cases] == [path]


def test_a9_a_subject_called_so_says_nothing_of_its_files(tmp_path: Path) -> None:
    for suffix in ("T1w", "dseg"):
        touch(tmp_path / f"sub-glioma01/anat/sub-glioma01_{suffix}.nii.gz")
    (case,) = scan_dataset(tmp_path).cases
    assert case.seg is None


@pytest.mark.parametrize(
    "name",
    [
        "P1/P1_tissue_seg", "P1/P1_aseg", "P1/P1_aparc+aseg", "P1/P1_parc", "P1/P1_brainmask", "P1/P1_brain_mask",
        "P1/P1_brain_seg", "P1/P1_probseg", "P1/P1_synthseg", "P1/P1_synth_seg", "P1/P1_dseg", "P1/P1_hippocampus_seg",
        "P1/P1_fast_seg", "P1/P1_pveseg", "P1/P1_wm_seg", "P1/P1_brain_segmentation", "P1/P1_mask", "P1/other_seg",
        "P1/freesurfer/seg", "P1/synthseg/P1_seg", "P1/tissue/P1_seg", "fmriprep/P1/P1_seg", "P1/P1_vessels_seg",
    ],
)  # fmt: skip
def test_a9_label_maps_in_plain_folders(tmp_path: Path, name: str) -> None:
    assert_no_lesion(tmp_path, touch(plain(tmp_path) / f"{name}.nii.gz"))


@pytest.mark.parametrize(
    "name",
    [
        "P1/P1_seg",
        "P1/seg",
        "P1/P1_tumor_seg",
        "P1/P1_tumor_segmentation",
        "P1/GT_seg",
        "P1/manual_seg",
        "P1/P1_segm",
    ],
)
def test_a9_lesions_in_plain_folders(tmp_path: Path, name: str) -> None:
    path = touch(plain(tmp_path) / f"{name}.nii.gz")
    assert [case.seg for case in scan_dataset(tmp_path).cases] == [path]


def test_a9_segmentations_of_many_cases_in_one_folder(tmp_path: Path) -> None:
    """They took the name of the folder, and were lost."""
    for case in ("a", "b"):
        for token in (*TOKENS, "seg"):
            touch(tmp_path / f"{case}_{token}.nii.gz")
    assert [case.seg is not None for case in find_cases(tmp_path, require_seg=True)] == [True, True]


def test_a9_a_list_is_not_believed_against_the_name_of_the_file(tmp_path: Path) -> None:
    touch(tmp_path / "a_t1.nii.gz")
    touch(tmp_path / "a_brainmask.nii.gz")
    (tmp_path / "list.csv").write_text("case,T1,mask\na,a_t1.nii.gz,a_brainmask.nii.gz\n")
    with pytest.raises(DataError, match=r"a_brainmask.nii.gz: listed in .*says something else"):
        find_cases(tmp_path / "list.csv", modalities=["T1"])


@pytest.mark.parametrize(
    "name", ["x_tissue_seg", "x_brainmask", "x_dseg", "x_seg", "x_aseg", "lesion_mask", "labels"]
)
def test_a9_label_maps_are_no_images_either(tmp_path: Path, name: str) -> None:
    assert shows_labels(f"{name}.nii.gz")
    touch(tmp_path / "in" / f"{name}.nii.gz")
    touch(tmp_path / "in" / "x_t1.nii.gz")
    assert list(find_volumes([tmp_path / "in"], tmp_path / "out")) == ["x_t1.nii.gz"]


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_a9_letters_of_any_case(spell: Callable[[str], str]) -> None:
    assert parse_modality(spell("p1_tissue_seg") + ".nii.gz") is None
    assert parse_modality(spell("p1_tumor_seg") + ".nii.gz") == "seg"
