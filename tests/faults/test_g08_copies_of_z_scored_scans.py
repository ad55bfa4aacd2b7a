"""The copy audit passed copies of scans that are z-scored on a background of 0, which it took for grey tissue."""

from dataclasses import replace

import numpy as np
import pytest

from prod9 import volumes
from prod9.evaluation.audit.embeddings import VoxelEmbedding
from tests.fixtures import write_brats_tree


@pytest.fixture
def scans(tmp_path):
    """Return the T1 scans of three patients."""
    return [
        volumes.read(case / f"{case.name}-t1n.nii.gz")
        for case in write_brats_tree(tmp_path / "scans", 3, (26, 28, 24))
    ]


def z_scored(scan):
    head = scan.data > 0
    values = scan.data[head]
    return replace(
        scan, data=np.where(head, (scan.data - values.mean()) / values.std(), 0).astype(np.float32)
    )


def moved(scan):
    """Return a copy in [0, 1], as a model makes it, moved by a voxel."""
    return replace(scan, data=np.roll(scan.data / scan.data.max(), 1, axis=0))


def test_a_moved_copy_is_nearest_to_its_scan(scans):
    trained = [z_scored(scan) for scan in scans]
    embed = VoxelEmbedding.fit(trained)
    rows = np.concatenate([embed(scan, mirrored=False).numpy() for scan in trained])
    for k, scan in enumerate(scans):
        alike = rows @ embed(moved(scan), mirrored=False).numpy()[0]
        assert alike.argmax() == k
        assert alike[k] > 0.7, alike
        assert np.delete(alike, k).max() < 0.5, alike


def test_scans_of_intensities_from_0_on_are_seen_as_before(scans):
    embed = VoxelEmbedding.fit(scans)
    one, other = (embed(scan, mirrored=False) for scan in (scans[0], moved(scans[0])))
    assert float((one * other).sum()) > 0.95
