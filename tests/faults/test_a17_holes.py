"""Inside and outside of a head are told apart by a mask: dark tissue is no hole."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prod9 import volumes
from prod9.cli.generate.outputs import OutputFolder
from prod9.cli.generate.patients import Places
from prod9.cli.generate.patients import _write as write_patient
from prod9.data.formats.brats import BRATS
from prod9.generator.refiner import Refiner
from prod9.pipelines.patients import PatientPipeline
from tests.pipelines.test_patients import build_first
from tests.pipelines.test_translation import GRID, build, sources

HEAD = np.zeros(GRID, dtype=bool)
HEAD[1:-1, 1:-1, 1:-1] = True
DARK = (slice(3, 5),) * 3


@pytest.mark.parametrize("decode", ["sample", "mean"])
def test_a17_translations_have_no_holes_where_the_sources_are_darkest(decode: str) -> None:
    given = {
        name: np.where(HEAD, np.maximum(volume, 0.1), 0.0) for name, volume in sources("T1", "T2").items()
    }
    given = {name: volume.astype(np.float32) for name, volume in given.items()}
    for volume in given.values():
        volume[DARK] = 0.0
    pipeline = build()
    pipeline.generator.decode_tokens = lambda _: np.ones(GRID, np.float32)  # type: ignore[method-assign]
    pipeline.generator.decode_latent = lambda _: np.ones(GRID, np.float32)  # type: ignore[method-assign]
    made = pipeline.translate(given, "FLAIR", head=HEAD, decode=decode).mean  # type: ignore[arg-type]
    np.testing.assert_array_equal(made, HEAD)
    without = pipeline.translate(given, "FLAIR", decode=decode).mean  # type: ignore[arg-type]
    assert not without[DARK].any(), "without a mask, the darkest voxels count as outside"


def test_a17_the_refiner_fills_the_mask() -> None:
    torch.manual_seed(0)
    refiner = Refiner(num_classes=2, num_channels=[8, 8], space_to_depth=2).eval()
    decoded, given = torch.rand(1, 1, *GRID), torch.rand(1, 2, *GRID)
    given[0, :, 3:5, 3:5, 3:5] = 0
    head, present = torch.ones(1, *GRID, dtype=torch.bool), torch.tensor([[True, True]])
    refined = refiner(decoded, given, present, torch.tensor([0]), head).volume
    torch.testing.assert_close(refined[0, 0, 3:5, 3:5, 3:5], decoded[0, 0, 3:5, 3:5, 3:5])
    assert not refiner(decoded, given, present, torch.tensor([0])).volume[0, 0, 3:5, 3:5, 3:5].any()


def test_a17_patients_have_no_holes(tmp_path: Path) -> None:
    """Also where the modality that is made first decodes to 0 inside of the head."""
    pipeline = PatientPipeline(first=build_first(), translator=build())
    volume = np.where(HEAD, 0.7, 0.02).astype(np.float32)
    volume[DARK] = 0.0
    pipeline.first.decode_tokens = lambda _: volume  # type: ignore[method-assign]
    pipeline.translator.generator.decode_tokens = lambda _: volume  # type: ignore[method-assign]
    (patient,) = pipeline.generate([0])
    np.testing.assert_array_equal(patient.head, HEAD)
    for image in patient.images.values():
        np.testing.assert_array_equal(image > 0, HEAD)
    places = Places(BRATS, tuple(patient.images), has_seg=False)
    write_patient(OutputFolder(tmp_path, {}), places, patient, None, {}, 1)
    files = list(tmp_path.rglob("*.nii.gz"))
    assert len(files) == len(patient.images)
    for file in files:
        np.testing.assert_array_equal(volumes.read(file).data != 0, HEAD)
