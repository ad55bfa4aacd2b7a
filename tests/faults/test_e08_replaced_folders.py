"""A folder that is filled again holds the results of one command: neither those of other settings, nor fewer named."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prod9.cli.generate.outputs import OutputFolder
from prod9.cli.generate.patients import Places, _generate, case_id
from prod9.cli.masks.followed import GivenSegmentations
from prod9.data.formats.table import form_of
from prod9.pipelines.patients import GeneratedPatient


def fill(folder: Path, seed: int, names: Sequence[str], *, overwrite: bool = False) -> None:
    with OutputFolder(folder, {"seed": seed}, overwrite=overwrite) as out:
        for name in names:
            with out.writing(name) as place:
                place.write_text(str(seed))


def test_results_of_other_settings_do_not_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation counts every volume in a folder: those of the other model, too."""
    folder = tmp_path / "made"
    fill(folder, 1, ["T1_0000.nii.gz", "T1_0001.nii.gz", "P1/P1_flair.nii.gz"])
    (folder / "notes.txt").write_text("mine")
    (folder / "own.nii.gz").write_text("mine")
    fill(folder, 2, ["T1_0000.nii.gz"], overwrite=True)
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert left == ["T1_0000.nii.gz", "manifest.json", "notes.txt", "own.nii.gz"]
    assert "3 results of other settings removed" in " ".join(capsys.readouterr().err.split())
    assert (folder / "T1_0000.nii.gz").read_text() == "2"


def test_results_of_the_same_settings_stay(tmp_path: Path) -> None:
    fill(tmp_path, 1, ["T1_0000.nii.gz", "T1_0001.nii.gz"])
    fill(tmp_path, 1, ["T1_0000.nii.gz"], overwrite=True)
    assert (tmp_path / "T1_0001.nii.gz").is_file()
    assert len(json.loads((tmp_path / "manifest.json").read_text())["files"]) == 2


class Painter:
    """Makes patients of one colour, as a pipeline makes them of models."""

    def generate(self, indices: Sequence[int], **how: Any) -> Iterator[GeneratedPatient]:
        head = np.ones((8, 8, 8), dtype=bool)
        for index in indices:
            images = {"T1": np.full(head.shape, 0.5, np.float32)}
            yield GeneratedPatient(
                images=images, seg=None, head=head, affine=np.eye(4), index=index, seed=index
            )


def test_a_description_counts_the_patients_that_are_there(tmp_path: Path) -> None:
    """nnU-Net reads the number of cases and which are synthetic from dataset.json."""
    places = Places(form_of("nnunet"), ("T1",), False)
    for num in (3, 2):
        if num == 2:
            (tmp_path / "imagesTr" / f"{case_id(0)}_0000.nii.gz").unlink()  # so that something is made again
        with OutputFolder(tmp_path, {"seed": 0}) as folder:
            nobody = GivenSegmentations([], [])
            list(_generate(Painter(), folder, places, nobody, num, 0))  # pyrefly: ignore[bad-argument-type]
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["numTraining"] == 3
    assert len(described["synthetic_cases"]) == 3
