"""MSD, nnU-Net, BIDS and lists: what the finder makes of them, and that their voxels arrive canonical."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod9.data.layouts.find import MODALITIES, find_cases, scan_dataset
from prod9.data.splits import divide
from prod9.errors import DataError
from tests.data.trees import (
    WRITERS,
    brains,
    save,
    write_bids,
    write_datalist,
    write_json_list,
    write_msd,
    write_nnunet,
)

SHARES = {"train": 0.5, "val": 0.5, "test": 0.0, "seed": 0, "file": None}


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_gives_the_same_brains(
    tmp_path: Path, name: str, make_transforms: Callable[..., Any]
) -> None:
    root = WRITERS[name](tmp_path, 3) or tmp_path
    cases = find_cases(root, require_seg=True)
    assert len(cases) == len({case.patient_id for case in cases}) == 3
    assert all(list(case.images) == list(MODALITIES) for case in cases)
    volumes = make_transforms(grid=(16, 18, 14)).build_preprocessing(MODALITIES)(cases[1])
    assert set(np.unique(volumes.seg)) == {0, 1, 2, 3}
    ring = volumes.seg == 3
    assert 0 < (volumes.seg == 1).sum() < ring.sum() < (volumes.seg == 2).sum(), "core, rim, oedema by size"
    assert volumes.images.shape == (4, 16, 18, 14)


@pytest.mark.parametrize("name", ["msd", "nnunet", "bids", "datalist", "json list"])
def test_modalities_are_not_mixed_up(tmp_path: Path, name: str) -> None:
    from prod9.volumes import read

    root = WRITERS[name](tmp_path, 3) or tmp_path
    case = find_cases(root)[2]
    for k, modality in enumerate(MODALITIES):
        voxels = read(case.images[modality], channel=case.channels.get(modality)).data
        assert (voxels == brains(3)[2][0][k]).all(), modality


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    kinds = {
        name: scan_dataset(writer(tmp_path / name, 3) or tmp_path / name).layout
        for name, writer in WRITERS.items()
    }
    expected = {name: "brats" if name.startswith("brats") else name for name in WRITERS}
    assert kinds == expected | {"json list": "datalist"}


def test_label_schemes_are_detected(tmp_path: Path) -> None:
    schemes = {}
    for name, writer in WRITERS.items():
        root = writer(tmp_path / name, 3) or tmp_path / name
        schemes[name] = {case.label_scheme for case in scan_dataset(root).cases}.pop()
    assert schemes == {name: name for name in WRITERS if name.startswith("brats")} | {
        "msd": "msd_task01", "nnunet": "msd_task01", "bids": "canonical", "datalist": "canonical",
        "json list": "canonical",
    }  # fmt: skip


def test_a_scheme_said_aloud_wins(tmp_path: Path) -> None:
    write_bids(tmp_path, 1)
    (case,) = find_cases(tmp_path, label_scheme="1=2,2=1,3=3")
    assert case.label_scheme == "1=2,2=1,3=3"


# ---- the Decathlon ----


def test_channels_keep_apart_in_cache_keys(tmp_path: Path, make_builder: Callable[..., Any]) -> None:
    write_msd(tmp_path / "data", 1)
    (case,) = find_cases(tmp_path / "data")
    swapped = case.__class__(
        **{
            **case.__dict__,
            "channels": dict(zip(case.channels, reversed(case.channels.values()), strict=True)),
        }
    )
    builder = make_builder()
    assert builder.case_key(case) != builder.case_key(swapped)


def test_a_file_with_fewer_channels_is_refused(tmp_path: Path) -> None:
    from prod9.volumes import read_header

    write_msd(tmp_path, 1)
    (case,) = find_cases(tmp_path)
    save(np.ones((4, 5, 6, 2), dtype=np.int16), case.images["T1"])
    with pytest.raises(
        DataError, match=r"BRATS_000.nii.gz: expected 4 channels .* FLAIR .* got 4D of shape \(4, 5, 6, 2\)"
    ):
        read_header(case.images["FLAIR"], channel=case.channels["FLAIR"])


def test_listed_files_must_be_there_and_inside(tmp_path: Path) -> None:
    write_msd(tmp_path, 2)
    (tmp_path / "imagesTr/BRATS_001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"BRATS_001.nii.gz: listed in .*dataset.json, but no such file"):
        find_cases(tmp_path)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["training"][1]["image"] = "../../outside.nii.gz"
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="expected files inside"):
        find_cases(tmp_path)


def test_without_a_list_the_folder_counts(tmp_path: Path) -> None:
    write_msd(tmp_path, 2)
    description = json.loads((tmp_path / "dataset.json").read_text())
    del description["training"]
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert [case.case_id for case in find_cases(tmp_path, require_seg=True)] == ["BRATS_000", "BRATS_001"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"modality": {"1": "T1"}}', '{"modality": {"0": "T1", "1": "t1w"}}', '{"labels": {}}'],
)
def test_descriptions_that_say_too_little(tmp_path: Path, text: str) -> None:
    write_msd(tmp_path, 1)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset.json: expected"):
        find_cases(tmp_path)


def test_another_organ(tmp_path: Path) -> None:
    save(np.ones((4, 5, 6), dtype=np.int16), tmp_path / "imagesTr/liver_0.nii.gz")
    save(np.ones((4, 5, 6), dtype=np.uint8), tmp_path / "labelsTr/liver_0.nii.gz")
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    entry = {"image": "./imagesTr/liver_0.nii.gz", "label": "./labelsTr/liver_0.nii.gz"}
    content = {"modality": {"0": "CT"}, "labels": labels, "training": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (case,) = find_cases(tmp_path, modalities=["CT"], require_seg=True)
    assert (case.label_scheme, dict(case.channels)) == ("as_is", {})
    with pytest.raises(DataError, match="liver_0 lacks T1, T1ce"):
        find_cases(tmp_path)


def test_the_folder_above_is_pointed_down(tmp_path: Path) -> None:
    write_msd(tmp_path / "Task01_BrainTumour", 1)
    (tmp_path / "Task01_BrainTumour/imagesTr/BRATS_000.nii.gz").rename(
        tmp_path / "Task01_BrainTumour/imagesTr/x.nii.gz"
    )
    with pytest.raises(DataError, match=r"did you mean .*Task01_BrainTumour"):
        find_cases(tmp_path)


# ---- nnU-Net ----


def test_a_channel_too_many(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 1)
    save(np.ones((4, 5, 6), dtype=np.int16), tmp_path / "imagesTr/BraTS2021_00000_0004.nii.gz")
    with pytest.raises(DataError, match="expected channels 0000 to 0003"):
        find_cases(tmp_path)


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    write_nnunet(tmp_path, 2)
    (tmp_path / "imagesTr/BraTS2021_00001_0002.nii.gz").unlink()
    with pytest.raises(DataError, match="BraTS2021_00001 lacks T2"):
        find_cases(tmp_path)


# ---- BIDS ----


def test_sessions_are_time_points_of_a_subject(tmp_path: Path) -> None:
    for session in ("01", "02"):
        for suffix in ("T1w", "ce-gd_T1w", "T2w", "FLAIR"):
            path = tmp_path / f"sub-7/ses-{session}/anat/sub-7_ses-{session}_{suffix}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    cases = find_cases(tmp_path)
    assert [(c.case_id, c.patient_id, c.time_point) for c in cases] == [
        ("sub-7_ses-01", "sub-7", "01"), ("sub-7_ses-02", "sub-7", "02")
    ]  # fmt: skip


def test_repeats_are_passed_over_and_listed(tmp_path: Path) -> None:
    write_bids(tmp_path, 1)
    dataset = scan_dataset(tmp_path)
    assert [path.name for path in dataset.ignored] == ["sub-000_ses-01_run-2_T1w.nii.gz"]
    assert dataset.cases[0].images["T1"].name == "sub-000_ses-01_T1w.nii.gz"


def test_a_lesion_mask_keeps_its_values(tmp_path: Path) -> None:
    (tmp_path / "sub-1/anat").mkdir(parents=True)
    (tmp_path / "sub-1/anat/sub-1_T1w.nii").touch()
    for name in ("sub-1_desc-brain_mask.nii", "sub-1_label-lesion_mask.nii"):
        (tmp_path / "derivatives/x/sub-1/anat").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"derivatives/x/sub-1/anat/{name}").touch()
    (case,) = find_cases(tmp_path, modalities=["T1"])
    assert case.seg is not None
    assert (case.seg.name, case.label_scheme) == ("sub-1_label-lesion_mask.nii", "as_is")


# ---- lists ----


def test_the_split_of_a_list_is_kept(tmp_path: Path) -> None:
    split = divide(find_cases(write_datalist(tmp_path, 5)), SHARES)
    assert split.to_dict() == {"train": ["P0", "P1", "P2"], "val": ["P3"], "test": ["P4"]}


def test_a_patient_on_two_sides_is_refused(tmp_path: Path) -> None:
    path = write_datalist(tmp_path, 5)
    path.write_text(path.read_text(encoding="utf-8").replace("P4", "P0"), encoding="utf-8")
    with pytest.raises(DataError, match="got P0 in several"):
        divide(find_cases(path), SHARES)


def test_half_a_split_is_refused(tmp_path: Path) -> None:
    path = write_datalist(tmp_path, 5)
    path.write_text(path.read_text(encoding="utf-8").replace("P4,test", "P4,"), encoding="utf-8")
    with pytest.raises(DataError, match="scan4"):
        divide(find_cases(path), SHARES)


def test_a_json_list_without_a_split_is_divided(tmp_path: Path) -> None:
    cases = find_cases(write_json_list(tmp_path, 4))
    assert {case.part for case in cases} == {None}
    assert len(divide(cases, SHARES).train) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("scan1,P1", "scan0,P1"), "expected each case once, got scan0 twice"),
        (("train", "tain"), "row 2: expected split train, val or test, got tain"),
        (
            ("files/Müller 1/scan 2", "files/Müller 1/gone"),
            "gone.nii.gz: listed in .*list.csv, but no such file",
        ),
        (("T1,T1ce,T2,FLAIR", "T1,T1gd,T2,FLAIR"), None),
    ],
)
def test_lists_with_mistakes(tmp_path: Path, change: tuple[str, str], message: str | None) -> None:
    path = write_datalist(tmp_path, 3)
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    if message is None:
        assert set(find_cases(path)[0].images) == set(MODALITIES)
        return
    with pytest.raises(DataError, match=message):
        find_cases(path)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_tables_without_images(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match="expected a header with modalities"):
        find_cases(tmp_path / "list.csv")


@pytest.mark.parametrize(
    "content", [[], {"training": [{"label": "x"}]}, {"training": [{"image": ["a.nii", "b.nii"]}]}]
)
def test_json_without_images(tmp_path: Path, content: Any) -> None:
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"list.json: expected"):
        find_cases(tmp_path / "list.json")
