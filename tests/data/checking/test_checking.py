"""The parts of a check that the commands' tests do not look at: numbers, pictures, the fingerprint."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.data.checking import headers, voxels
from prod9.data.checking.fingerprint import fingerprint, fit_grid, read_fingerprint, write_fingerprint
from prod9.data.checking.page import write_page
from prod9.data.checking.report import check_dataset
from prod9.data.checking.thumbnails import planes, slices
from prod9.data.checking.voxels import BINS, image_stats
from prod9.data.labels import canonical_names
from prod9.errors import DataError
from prod9.volumes import VolumeHeader, read, read_header
from tests.data.trees import WRITERS
from tests.fixtures import write_brats_tree


def box_volume(path: Path) -> Path:
    """A box of 4×6×2 voxels in air, stored left, back and up, 1×2×3 mm."""
    data = np.zeros((10, 12, 8), dtype=np.int16)
    data[2:6, 3:9, 5:7] = np.arange(1, 49).reshape(4, 6, 2)
    nib.save(nib.Nifti1Image(data, np.diag([-1.0, -2.0, 3.0, 1.0])), path)
    return path


def test_statistics_are_those_of_the_foreground(tmp_path: Path) -> None:
    stats = image_stats(read(box_volume(tmp_path / "a.nii.gz")))
    assert stats.box == (4, 6, 2)
    assert stats.box_mm == (4.0, 12.0, 6.0)
    assert stats.foreground == 48 / 960
    assert stats.mean == pytest.approx(24.5)
    assert (stats.percentiles[0], stats.percentiles[2], stats.percentiles[4]) == (1, 24.5, 48)
    assert len(stats.histogram) == BINS
    assert 46 <= sum(stats.histogram) <= 48


def test_the_box_follows_the_axes_of_ras(tmp_path: Path) -> None:
    data = np.zeros((10, 12, 8), dtype=np.int16)
    data[2:6, 3:9, 5:7] = 5
    data[2, 3, 5] = 6
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1.0, -2.0, 3.0, 1.0  # stored S, L, A
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii")
    stats = image_stats(read(tmp_path / "a.nii"))
    assert (stats.box, stats.box_mm) == ((6, 2, 4), (12.0, 6.0, 4.0))


def test_three_planes_stand_upright() -> None:
    data = np.zeros((20, 20, 20), dtype=np.int16)
    data[10, 10, 15:] = 100  # what is above in RAS
    picture = planes(data, bright=100.0)
    assert (picture.shape, picture.dtype) == ((96, 288), np.uint8)
    coronal = picture[:, 96:192]
    assert coronal[:20].max() == 255
    assert coronal[60:].max() == 0


def test_every_scan_is_shown_where_the_mask_is_widest_and_the_mask_over_the_last() -> None:
    scan, labels = np.zeros((16, 16, 10)), np.zeros((16, 16, 10), dtype=np.uint8)
    scan[..., 7], labels[4:8, 10:12, 7], labels[0, 0, 2] = 1.0, 3, 1
    shown = slices({"T1": (scan, 2.0), "FLAIR": (scan, 1.0)}, labels)
    assert shown is not None
    assert shown.titles == ("T1", "FLAIR", "FLAIR with mask")
    picture = shown.picture
    assert picture.shape == (96, 3 * 96, 3)
    assert picture[:, :96].max() == 127
    coloured = (picture[..., 0] != picture[..., 2]).nonzero()
    # Voxels 4 to 8 of 16 from the left, 10 to 12 of 16 from posterior, six pixels each.
    assert (coloured[1].min() - 192, coloured[1].max() - 192) == (24, 47)
    assert (coloured[0].min(), coloured[0].max()) == (24, 35)
    assert slices({}, labels) is None
    other = slices({"T1": (scan, 1.0)}, np.zeros((3, 3, 3), dtype=np.uint8))
    assert other is not None
    assert other.titles == ("T1",), "a mask on other voxels is not drawn"


def test_a_thumbnail_keeps_its_proportions() -> None:
    axial = planes(np.ones((8, 16, 16)), bright=1.0)[:, :96]
    assert (axial > 0).any(axis=0).sum() == 48, "half as wide as high"


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_checked_deeply(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path, 4) or tmp_path
    report = check_dataset(root, deep=True)
    assert report.ok, report.findings
    facts = report.to_dict()
    assert (facts["cases"], facts["segmentations"]) == (4, 4)
    assert facts["modalities"] == dict.fromkeys(facts["modalities"], 4)
    assert set(facts["labels"]) == {"1", "2", "3"}, "canonical, whatever the file holds"
    json.dumps(facts, allow_nan=False)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "<cohort> & co", 3)
    write_page(tmp_path / "page.html", check_dataset(tmp_path / "<cohort> & co", deep=True))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;cohort&gt; &amp; co" in text
    assert text.count("data:image/png;base64,") == 3
    assert text.count("<svg") == 4
    for words in ("FLAIR with mask", "oedema", "enhancing tumour", "prod9 plan", "-o plan"):
        assert words in text
    assert "default-src 'none'" in text
    assert "script" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_what_is_wrong_stands_beside_its_case_which_comes_first(tmp_path: Path) -> None:
    write_brats_tree(tmp_path, 3)
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    bad = next((tmp_path / names[2]).glob("*t1n.nii.gz"))
    image = nib.load(bad)
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, dtype=np.int16), image.affine), bad)
    write_page(tmp_path / "page.html", check_dataset(tmp_path, deep=True))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    places = [text.index(f"<h3>{name}</h3>") for name in names]
    assert places[2] < places[0] < places[1]
    assert "expected different intensities" in text[places[2] : places[0]]
    assert "expected different intensities" not in text[places[0] :]
    assert "Repair 1 error" in text
    assert "prod9 plan" not in text


def test_labels_have_the_names_of_their_schemes() -> None:
    assert canonical_names({"brats2021"})[2] == "oedema"
    assert canonical_names({"whole_tumor"})[1] == "whole tumour"
    assert canonical_names({"as_is"}) == {}
    assert canonical_names({"whole_tumor", "brats2023"})[1] == "whole tumour, or necrotic core"


def test_without_deep_each_header_is_read_once_and_no_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_brats_tree(tmp_path, 3, (4, 4, 4))
    opened: list[Path] = []

    def counted(path: Path, **options: Any) -> VolumeHeader:
        opened.append(path)
        return read_header(path, **options)

    monkeypatch.setattr(headers, "read_header", counted)
    monkeypatch.setattr(headers, "read", None)
    monkeypatch.setattr(voxels, "read_channels", None)
    assert len(check_dataset(tmp_path).dataset.cases) == 3
    assert sorted(opened) == sorted(tmp_path.rglob("*.nii.gz"))


# ---- the fingerprint ----


def test_the_fingerprint_suggests_a_grid_that_holds_every_head(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 5, (20, 40, 18))
    report = check_dataset(tmp_path / "cohort", deep=True)
    content = fingerprint(report)
    assert content["spacing_mm"] == [4.0, 4.0, 4.0]
    assert not content["resample"]
    largest = np.asarray(content["head_mm"]["largest"]) / 4
    assert (np.asarray(content["grid"]) >= largest).all()
    assert (np.asarray(content["grid"]) < largest + 17).all()
    write_fingerprint(tmp_path / "fp" / "a.json", content)
    assert read_fingerprint(tmp_path / "fp" / "a.json") == content


@given(st.lists(st.floats(1, 400), min_size=3, max_size=3), st.floats(0.5, 4))
def test_a_grid_is_a_multiple_of_16(head: list[float], spacing: float) -> None:
    grid = fit_grid(head, [spacing] * 3)
    assert all(side % 16 == 0 and side * spacing >= mm for side, mm in zip(grid, head, strict=True))


def test_a_fingerprint_of_faulty_data_is_refused(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 3)
    bad = next((tmp_path / "cohort").rglob("*t1n.nii.gz"))
    nib.save(nib.Nifti1Image(np.zeros((16, 18, 14), dtype=np.int16), nib.load(bad).affine), bad)
    with pytest.raises(DataError, match=bad.name):
        fingerprint(check_dataset(tmp_path / "cohort", deep=True))


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "[]"])
def test_files_that_are_no_fingerprint(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="expected a fingerprint"):
        read_fingerprint(tmp_path / "a.json")
