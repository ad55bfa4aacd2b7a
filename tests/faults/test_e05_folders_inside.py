"""Results inside of the folder of real patients, a natural place for them, are not compared with themselves."""

from pathlib import Path

import numpy as np
import pytest

from prod9 import volumes
from prod9.errors import DataError
from prod9.evaluation.audit.sets import sets_of_folders
from prod9.evaluation.image_sets import ImageSettings, find_sets
from prod9.evaluation.sets.volume_sets import BadFiles
from prod9.evaluation.utility import TrainedSettings, real_cases
from tests.fixtures import write_brats_tree

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


@pytest.fixture
def real(tmp_path: Path) -> Path:
    root = tmp_path / "real"
    write_brats_tree(root, 2)
    return root


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volumes.write(path, np.pad(np.random.default_rng(0).uniform(0, 1, (8, 8, 8)), 4), AFFINE)


@pytest.mark.parametrize("place", ["made", "A_before_the_cases"])
def test_generated_volumes_are_none_of_the_real_ones(real: Path, place: str) -> None:
    """Each would be its own nearest real volume: distances fall, precision and coverage rise."""
    made, case = real / place, sorted(path.name for path in real.iterdir())[0]
    write(made / "T1_0000.nii.gz")
    write(made / case / f"{case}-t1n.nii.gz")
    bad = BadFiles(skip=False)
    there, ours = find_sets(real, made, ImageSettings(), bad)
    assert len(ours) == 2
    assert len(there) == 8
    assert not any(made in entry.path.parents for entry in there)
    assert any("with which the others are compared" in note.sentence() for note in bad.left_out)
    (real / "elsewhere").symlink_to(made)
    assert len(find_sets(real, real / "elsewhere", ImageSettings(), BadFiles(skip=False))[0]) == 8


def test_the_same_folder_twice_is_refused(real: Path) -> None:
    with pytest.raises(DataError, match="expected two folders, real and generated, got the same twice"):
        find_sets(real, real / ".." / "real", ImageSettings(), BadFiles(skip=False))


def test_an_audit_does_not_take_generated_volumes_for_training_data(real: Path, tmp_path: Path) -> None:
    write(real / "made" / "T1_0000.nii.gz")
    held_out = tmp_path / "held_out"
    write(held_out / "P9_t1.nii.gz")
    bad = BadFiles(skip=False)
    sets = sets_of_folders(real, held_out, real / "made", bad=bad)
    assert (len(sets.train), len(sets.generated)) == (8, 1)
    assert not bad.gaps


def test_made_patients_do_not_train_the_judges(real: Path, tmp_path: Path) -> None:
    write_brats_tree(real / "made", 3, layout="brats2021")
    write_brats_tree(tmp_path / "held_out", 1, layout="brats2020")
    settings = TrainedSettings(heldout=str(tmp_path / "held_out"))
    training, tested = real_cases(real, settings, without=real / "made", bad=BadFiles(skip=False))
    assert (len(training), len(tested)) == (2, 1)
