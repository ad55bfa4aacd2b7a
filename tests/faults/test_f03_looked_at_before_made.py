"""Files that are made together: whether one would be lost was asked only up to the first that was missing."""

from pathlib import Path

import pytest

from prod9.cli.generate.infer import find_volumes
from prod9.cli.generate.outputs import OutputFolder
from prod9.errors import ConfigError, DataError
from tests.fixtures import write_brats_tree


def test_f03_no_file_of_the_user_is_replaced(tmp_path: Path) -> None:
    """A patient's scan was missing, its segmentation was the user's own, and making the scan replaced it."""
    own = tmp_path / "P0" / "P0_seg.nii.gz"
    own.parent.mkdir()
    own.write_text("mine")
    with (
        OutputFolder(tmp_path, {"seed": 0}) as folder,
        pytest.raises(ConfigError, match=r"P0_seg.nii.gz: exists, but manifest.json does not say how"),
    ):
        folder.are_done(["P0/P0_t1.nii.gz", "P0/P0_seg.nii.gz"])
    assert own.read_text() == "mine"


def test_f03_what_has_changed_is_named_once_per_patient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.nii.gz", "b.nii.gz"]
    with OutputFolder(tmp_path, {"seed": 0}) as folder:
        for name in names:
            with folder.writing(name, inputs={"scan": {"sha256": "1"}}) as place:
                place.write_text(name)
        assert folder.are_done(names, {"scan": {"sha256": "1"}})
        assert not folder.are_done(names, {"scan": {"sha256": "2"}})
    assert capsys.readouterr().err.count("is made again") == 1


def test_f03_results_beside_the_folder_hide_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``prod9 infer scans -o .`` left all inputs out as its own results, and said that their names were odd."""
    (case,) = write_brats_tree(tmp_path / "scans", 1)
    monkeypatch.chdir(tmp_path)
    found = find_volumes([Path("scans")], Path())
    assert sorted(found) == sorted(
        f"{case.name}/{path.name}" for path in case.iterdir() if "-seg" not in path.name
    )
    with pytest.raises(ConfigError, match="the output would replace its input"):
        find_volumes([Path("scans")], Path("scans"))
    (tmp_path / "scans" / "made").mkdir()
    (case / f"{case.name}-t1n.nii.gz").rename(tmp_path / "scans" / "made" / "t1.nii.gz")
    assert len(find_volumes([Path("scans")], Path("scans/made"))) == 3


def test_f03_nothing_to_place_is_an_error_of_ours() -> None:
    """A model that needs no source ended in StopIteration for a patient who has none."""
    from prod9.data.intensity import IntensityScaling
    from prod9.data.placement import GridPlacement

    placement = GridPlacement(spacing=None, grid=(8, 8, 8), intensity=IntensityScaling("percentile", 0, 100))
    with pytest.raises(DataError, match="expected at least one volume"):
        placement.place({})
