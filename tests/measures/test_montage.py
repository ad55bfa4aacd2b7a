"""Pictures of volumes in three planes."""

import numpy as np
from matplotlib.image import imread

from prod9.measures.montage import three_planes, write_montage


def test_three_planes_shows_the_middle_of_each_axis_with_up_on_top():
    volume = np.zeros((4, 6, 8), dtype=np.float32)
    volume[2, 3, 7] = 1.0  # the top voxel in the middle column
    image = three_planes(volume)

    assert image.shape == (8, 4 + 4 + 6)
    coronal, sagittal = image[:, 4:8], image[:, 8:]
    assert np.argwhere(coronal).tolist() == [[0, 2]]
    assert np.argwhere(sagittal).tolist() == [[0, 3]]


def test_write_montage_makes_one_picture_of_uneven_rows(tmp_path):
    volume = np.random.default_rng(0).random((6, 7, 5), dtype=np.float32)
    path = tmp_path / "samples" / "step-000001.png"
    write_montage(path, [[("real", volume), ("rebuilt", volume)], [("sampled", volume)]], title="step 1")

    picture = imread(path)
    assert picture.ndim == 3
    assert picture[..., :3].std() > 0.05
    assert [file.name for file in path.parent.iterdir()] == [path.name]
