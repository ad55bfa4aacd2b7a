"""``prod9.load``: models by name, called as users do."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import prod9
from prod9 import volumes
from prod9.data.intensity import IntensityScaling
from prod9.errors import CheckpointError, ConfigError, DataError
from prod9.pipelines.loaded.volumes import save_all


@pytest.fixture(scope="module")
def labels():
    return prod9.load("demo/label", device="cpu", overrides=["sampler.steps=2"])


@pytest.fixture(scope="module")
def translator():
    return prod9.load("demo/translate", device="cpu", overrides=["sampler.steps=2"])


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of noise on voxels of 3 mm, stored left to right."""
    inside = (
        np.linalg.norm(np.indices((50, 60, 50)) - np.array([25, 30, 25])[:, None, None, None], axis=0) < 20
    )
    data = np.where(inside, np.random.default_rng(0).uniform(300, 900, inside.shape), 0)
    path = tmp_path_factory.mktemp("scan") / "t1.nii.gz"
    volumes.write(path, data, np.diag([-3.0, -3.0, 3.0, 1.0]))
    return path


def test_labels_in_any_case_give_the_volume_of_the_pipeline(labels, tmp_path: Path) -> None:
    first, second = labels("flair", num_samples=2, seed=4)
    (again,) = labels("t2f", seed=5)
    assert (first.label, first.seed, second.seed) == ("FLAIR", 4, 5)
    np.testing.assert_array_equal(second.data, again.data)
    (expected,) = labels.pipeline.generate("FLAIR", seed=4)
    np.testing.assert_array_equal(np.asarray(first), expected.data)
    saved = volumes.read(first.save(tmp_path / "new" / "made.nii.gz"))
    np.testing.assert_array_equal(saved.data, first.data)
    np.testing.assert_allclose(saved.header.affine, first.affine)


def test_steps_change_the_volume_and_are_checked(labels) -> None:
    assert not np.array_equal(labels("T1").pop().data, labels("T1", steps=3).pop().data)
    np.testing.assert_array_equal(labels("T1").pop().data, labels("T1", steps=2).pop().data)
    with pytest.raises(ConfigError, match="steps"):
        labels("T1", steps=0)


def test_repr_says_what_it_is_and_how_it_is_called(labels) -> None:
    text = repr(labels)
    assert "demo/label" in text
    assert "T1, T1ce, T2, FLAIR" in text
    assert "on cpu" in text
    assert labels.to("cpu") is labels
    with pytest.raises(ConfigError, match="cuda"):
        labels.to("cuda:99")


def test_sources_as_path_pair_image_and_array_give_the_same(translator, scan: Path) -> None:
    file = volumes.read(scan)
    image = nib.load(scan)
    results = [
        translator(sources={"t1n": given}, target="flair").pop()
        for given in (scan, str(scan), (file.data, file.header.affine), image)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result.data, results[0].data, atol=1e-3)
    assert results[0].label == "FLAIR"
    assert results[0].data.shape == file.data.shape
    np.testing.assert_allclose(results[0].affine, file.header.affine)


def test_a_result_is_a_source_again(translator, scan: Path, tmp_path: Path) -> None:
    (flair,) = translator(sources={"T1": scan}, target="FLAIR")
    (t2,) = translator(sources={"T1": scan, "FLAIR": flair}, target="T2")
    saved = nib.load(t2.save(tmp_path / "t2.nii.gz"))
    np.testing.assert_allclose(saved.affine, nib.load(scan).affine)


def test_a_region_is_drawn_again_and_nothing_else(labels, scan: Path) -> None:
    file = volumes.read(scan)
    region = np.zeros_like(file.data)
    region[22:28, 28:34, 22:28] = 1
    (made,) = labels.inpaint(scan, (region, file.header.affine), "t1")
    np.testing.assert_array_equal(made.data[region == 0], file.data[region == 0])
    assert not np.array_equal(made.data, file.data)


def test_a_region_alone_lies_on_the_voxels_of_its_source(labels, scan: Path) -> None:
    (made,) = labels("T1")
    region = np.zeros(made.data.shape, dtype=bool)
    region[20:24, 20:24, 20:24] = True
    (again,) = labels.inpaint(made, region, "T1")
    np.testing.assert_array_equal(again.data[~region], made.data[~region])
    file = volumes.read(scan)
    region = np.zeros(file.data.shape)
    region[22:28, 28:34, 22:28] = 1
    (one,), (other,) = (labels.inpaint(scan, given, "T1") for given in (region, (region, file.header.affine)))
    np.testing.assert_array_equal(one.data, other.data)
    with pytest.raises(ConfigError, match="region: expected an array of the 50×60×50 voxels of the source"):
        labels.inpaint(scan, region[1:], "T1")


def test_what_is_set_on_the_pipeline_holds_for_any_number_of_steps(labels) -> None:
    """A model that samples in other steps must not forget what was set, and holds its weights once."""
    pipeline = labels.pipeline
    there = pipeline.placement
    (stripped,) = labels("T1", steps=3)
    pipeline.placement = replace(there, intensity=IntensityScaling(mode="range", lower=0.0, upper=1.0))
    try:
        assert not pipeline.is_stripped
        (whole,) = labels("T1", steps=np.int64(3))
    finally:
        pipeline.placement = there
    assert (whole.data > 0).sum() > (stripped.data > 0).sum(), "what was set is forgotten"
    assert labels._with_steps(3).decoder is pipeline.decoder
    assert pipeline.steps == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"seed": 1.5}, "seed: expected a whole number of at least 0, got 1.5"),
        ({"seed": None}, "seed: expected a whole number"),
        ({"num_samples": 1.0}, "num_samples: expected a whole number of at least 1, got 1.0"),
        ({"num_samples": "2"}, "num_samples: expected a whole number"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"label": np.array([0, 1])}, "label: expected one of T1"),
    ],
)
def test_what_is_no_number_or_label_is_named(labels, given: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        labels(**{"label": "T1", **given})


def test_numbers_of_numpy_count_as_numbers(labels) -> None:
    (expected,) = labels("T1", seed=3)
    (made,) = labels(np.int64(0), num_samples=np.int32(1), seed=np.uint8(3))
    np.testing.assert_array_equal(made.data, expected.data)


def test_sources_that_are_none_are_named(labels, translator, scan: Path) -> None:
    with pytest.raises(ConfigError, match="sources: expected a dictionary, name: volume, got NoneType"):
        translator(sources=None, target="T2")
    with pytest.raises(ConfigError, match="decode: expected sample or mean, got 'median'"):
        translator(sources={"T1": scan}, target="T2", decode="median")
    with pytest.raises(ConfigError, match=r"expected modalities among .* got None"):
        translator(sources={"T1": scan}, target=None)
    with pytest.raises(ConfigError, match="real numbers"):
        translator(sources={"T1": np.ones((9, 9, 9)) * 1j}, target="T2")
    with pytest.raises(ConfigError, match="blend: expected a number of voxels"):
        labels.inpaint(scan, np.ones((50, 60, 50)), "T1", blend=-1)


@pytest.mark.parametrize("side", [1e-5, 400.0])
def test_arrays_are_as_large_as_a_patient(translator, side: float) -> None:
    """As files are: in metres or micrometres, what is made is nonsense."""
    array = np.random.default_rng(0).uniform(1, 2, (8, 8, 8))
    with pytest.raises(DataError, match=r"sources\['T1'\]: expected a volume of 1 cm to 1 m"):
        translator(sources={"T1": (array, np.diag([side, side, side, 1.0]))}, target="T2")


def test_results_of_one_name_are_not_written_over_each_other(labels, tmp_path: Path) -> None:
    one, other = labels("T1"), labels("T1", steps=3)
    with pytest.raises(ConfigError, match=r"got two that would become T1_0000\.nii\.gz"):
        save_all([*one, *other], tmp_path)
    assert not list(tmp_path.iterdir())
    assert [path.name for path in save_all([*one, *labels("T1", seed=1)], tmp_path)] == [
        "T1_0000.nii.gz",
        "T1_0001.nii.gz",
    ]


def test_an_autoencoder_reconstructs(scan: Path) -> None:
    model = prod9.load("demo/autoencoder", device="cpu")
    (made,) = model(scan)
    file = volumes.read(scan)
    assert made.data.shape == file.data.shape
    assert np.corrcoef(made.data.ravel(), file.data.ravel())[0, 1] > 0.8
    (again,) = model((file.data, file.header.affine))
    np.testing.assert_array_equal(again.data, made.data)
    with pytest.raises(ConfigError, match="volume: expected"):
        model(None)


def test_what_is_wrong_is_said(labels, translator, scan: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean demo/label"):
        prod9.load("demo/labels")
    with pytest.raises(ConfigError, match="corrects"):
        prod9.load("demo/stage2_refiner")
    with pytest.raises(ConfigError, match="expected one of T1"):
        labels("CT")
    with pytest.raises(ConfigError, match="got 'FLIAR'; did you mean 'FLAIR'"):
        labels("FLIAR")
    with pytest.raises(ConfigError, match="at least 1"):
        labels("T1", num_samples=0)
    with pytest.raises(ConfigError, match="twice"):
        translator(sources={"t1": scan, "T1": scan}, target="T2")
    with pytest.raises(ConfigError, match=r"sources\['T1'\]: expected an array"):
        translator(sources={"T1": np.zeros((3, 3))}, target="T2")
    with pytest.raises(ConfigError, match="got list"):
        translator(sources={"T1": ["a"]}, target="T2")


def test_every_public_name_is_there_and_importing_is_light() -> None:
    for name in prod9.__all__:
        assert getattr(prod9, name).__doc__, name
    assert set(prod9.__all__) <= set(dir(prod9))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prod9.nothing  # noqa: B018
    code = "import sys, prod9; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
