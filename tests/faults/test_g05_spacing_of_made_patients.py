"""Real patients on other voxels than the made ones were cut to the grid of these, in voxels.

Segmenters were trained and tested on a part of the head, or on a small head in an empty box, and nothing was said. With
``--spacing``, voxels of another size filled a grid of the same number, which cut the heads of both sets; and steered
volumes kept their own voxels, whatever the scans had that their segmenter was trained on.
"""

import json

import numpy as np
import pytest

from prod9 import volumes
from prod9.evaluation.anatomy.agreement import evaluate_patients
from prod9.evaluation.sets.volume_sets import Preparation
from prod9.evaluation.utility import TrainedSettings, UtilitySettings, evaluate_utility
from tests.fixtures import write_brats_tree
from tests.harness import run


@pytest.fixture
def folders(tmp_path):
    """Return folders of real, held-out and made patients; the made ones have voxels of twice the side."""
    write_brats_tree(tmp_path / "real", 2, (24, 24, 24), spacing=4.0)
    write_brats_tree(tmp_path / "held", 2, (24, 24, 24), spacing=4.0, layout="brats2021", seed=1)
    write_brats_tree(tmp_path / "made", 2, (12, 12, 12), spacing=8.0, layout="brats2020", seed=2)
    return tmp_path


@pytest.mark.parametrize(
    ("evaluate", "kind", "own"),
    [(evaluate_utility, UtilitySettings, {"seeds": 1}), (evaluate_patients, TrainedSettings, {})],
)
def test_real_patients_are_brought_to_the_voxels_of_made_ones(folders, evaluate, kind, own):
    settings = {
        "heldout": str(folders / "held"),
        "steps": 1,
        "replicates": 0,
        "modalities": ("T1", "FLAIR"),
        **own,
    }
    default, said = (
        evaluate(folders / "real", folders / "made", kind(**settings, spacing=spacing))
        for spacing in (None, (8.0, 8.0, 8.0))
    )
    assert np.allclose(default.settings["spacing"], 8.0)
    assert default.cases == said.cases


def test_the_remedy_is_an_option_that_works(tmp_path):
    write_brats_tree(tmp_path / "real", 2, (24, 24, 24), spacing=4.0)
    write_brats_tree(tmp_path / "made", 2, (12, 12, 12), spacing=8.0, layout="brats2020", seed=2)
    command = ("prod9", "evaluate", "images", tmp_path / "real", tmp_path / "made", "-o", tmp_path / "out")
    refused = run(*command)
    assert refused.code == 1
    assert "--spacing X,Y,Z" in refused.err
    assert (
        run(*command, "--spacing", "8,8,8", "--no-denoised", "--replicates", "0", "--modality", "T1").code
        == 0
    )


def test_a_grid_of_other_voxels_holds_the_same_field_of_view(tmp_path):
    write_brats_tree(tmp_path / "real", 2, (12, 12, 12), spacing=8.0)
    write_brats_tree(tmp_path / "made", 2, (12, 10, 8), spacing=8.0, layout="brats2020", seed=2)
    command = ("prod9", "evaluate", "images", tmp_path / "real", tmp_path / "made", "-o", tmp_path / "out")
    options = ("--spacing", "4,5,8", "--no-denoised", "--replicates", "0", "--modality", "T1")
    assert run(*command, *options).code == 0
    settings = json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]
    assert settings["grid"] == [24, 16, 8]


def test_steered_volumes_and_their_labels_are_resampled_together(tmp_path):
    (case,) = write_brats_tree(tmp_path / "made", 1, (12, 12, 12), spacing=8.0)
    image, labels = (volumes.read(case / f"{case.name}-{kind}.nii.gz") for kind in ("t1n", "seg"))
    volume, seg = Preparation((24, 24, 24), (4.0, 4.0, 4.0)).place_with(image, labels)
    assert volume.shape[2:] == seg.shape == (24, 24, 24)
    wanted = 8 * np.count_nonzero(labels.data)
    assert 0.7 * wanted < np.count_nonzero(seg) < 1.4 * wanted
    assert (volume[0, 0].numpy()[seg > 0] > 0).mean() > 0.9
