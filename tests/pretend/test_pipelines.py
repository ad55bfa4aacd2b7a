"""Pipelines and what evaluation computes on the pretend device: the results are those of the CPU."""

import numpy as np
import pytest
import torch

from prod9.evaluation.judges import file_features
from prod9.evaluation.judges.classifier import train_classifier
from prod9.evaluation.judges.features import RandomFeatures, extract
from prod9.evaluation.judges.lesions import LesionCases, train_lesion_detector
from prod9.evaluation.judges.regressor import train_reader
from prod9.evaluation.judges.segmenter import dice, train_segmenter
from prod9.evaluation.sets.appearance import histogram
from prod9.measures.denoise import denoised
from prod9.measures.metrics import (
    fit_intensities,
    foreground,
    frechet_distance,
    level_histogram,
    ms_ssim3d,
    psnr,
    ssim3d,
)
from prod9.measures.noise import noise_level
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.maskgit import MaskGiTPipeline
from tests.evaluation.test_file_features import Stub2D, Stub3D
from tests.pipelines import test_maskgit, test_translation
from tests.pretend import pretend_cuda
from tests.training import tiny_maisi
from tests.training.tiny import write_autoencoder
from tests.training.tiny_control import write_transformer


def volumes(seed=0, side=24):
    """Two noisy balls."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 3, indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.7
    return (torch.rand(2, 1, side, side, side, generator=generator) * 0.5 + 0.4) * inside


MEASURES = {
    "psnr": lambda x, y: psnr(x, y, mask=foreground(y)),
    "ssim": ssim3d,
    "ms_ssim": ms_ssim3d,
    "fit": lambda x, y: fit_intensities(x, y, mask=foreground(y)),
    "noise": lambda x, y: noise_level(x, foreground(y)),
    "no_noise": lambda x, y: noise_level(x, foreground(y) & False),
    "denoised": lambda x, y: denoised(x, foreground(y)),
    "levels": lambda x, y: level_histogram((x[:, 0] * 19).long(), (5, 4)),
    "frechet": lambda x, y: frechet_distance(
        x.flatten().reshape(-1, 4)[::40], y.flatten().reshape(-1, 4)[::40]
    ),
    "histogram": lambda x, y: histogram(x[0, 0]),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_that_of_the_cpu(name):
    x, y = volumes(0), volumes(1)
    wanted = MEASURES[name](x, y)
    with pretend_cuda():
        found = MEASURES[name](x.to("cuda"), y.to("cuda")).cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_features_and_judges_work_on_the_device():
    x, wanted = volumes(), extract(RandomFeatures(), volumes())
    with pretend_cuda():
        there = x.to("cuda")
        features = RandomFeatures()
        features.network.to("cuda")
        torch.testing.assert_close(extract(features, there), wanted, rtol=1e-4, atol=1e-5)
        classifier = train_classifier(x, torch.tensor([0, 1]), num_classes=2, steps=1, seed=0)
        classifier.to("cuda")
        assert classifier.predict(there).is_cuda
        segmenter = train_segmenter(there, there > 0.8, steps=1, seed=0)
        assert dice(segmenter.predict(there), there > 0.8).cpu().shape == (2,)
        numbers = torch.tensor([[1.0, float("nan")], [2.0, 3.0]]).to("cuda")
        assert train_reader(there, numbers, steps=1, seed=0).read(there).cpu().isfinite().all()
        cases = LesionCases(there, torch.zeros(2, dtype=torch.int64).to("cuda"), there > 0.8)
        detector = train_lesion_detector(cases, cases, modality=0, seed=0, steps=1)
        assert 0.0 <= detector.accuracy(cases) <= 1.0


@pytest.mark.parametrize("name", ["medicalnet_resnet10_23datasets", "radimagenet_resnet50"])
def test_published_networks_follow_the_volumes(name, monkeypatch, tmp_path):
    monkeypatch.setattr(file_features, "MedicalNetDistance", Stub3D)
    monkeypatch.setattr(file_features, "RadImageNetDistance", Stub2D)
    (tmp_path / "weights").write_bytes(b"weights")
    torch.manual_seed(0)
    extractor, x = file_features.load_file_features(f"{name}={tmp_path / 'weights'}"), volumes()
    with torch.no_grad():
        wanted = [extractor(x), *extractor.planes(x)]
        with pretend_cuda():
            there = x.to("cuda")
            found = [values.cpu() for values in (extractor(there), *extractor.planes(there))]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_label_becomes_a_volume_and_waits_once_for_it():
    wanted = [v.data for v in test_maskgit.build(order="halton").generate("T1", num_samples=2, seed=3)]
    with pretend_cuda() as device:
        pipeline = test_maskgit.build(order="halton")
        on_device(pipeline)
        found = [v.data for v in pipeline.generate("T1", num_samples=2, seed=3)]
        with device.counted() as waits:
            list(pipeline.generate("T1", num_samples=2, seed=3))
    assert [volume.shape for volume in found] == [volume.shape for volume in wanted]
    # For each volume: its range, and the copy to the host.
    assert sum(waits.values()) <= 3 * len(found), waits


@pytest.mark.parametrize("decode", ["sample", "mean"])
def test_a_patient_is_translated_on_the_device(decode):
    with pretend_cuda():
        pipeline = test_translation.build()
        on_device(pipeline.generator)
        found = pipeline.translate(test_translation.sources("T1", "T2"), "FLAIR", seed=1, decode=decode)
    assert found.mean.shape == test_translation.GRID
    assert np.isfinite(found.mean).all()


def test_runs_are_loaded_onto_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    write_autoencoder(tmp_path / "stage1.ckpt")
    write_transformer(tmp_path / "stage2.ckpt", tmp_path / "stage1.ckpt")
    tiny_maisi.write_vae(tmp_path / "vae.ckpt")
    tiny_maisi.write_flow(tmp_path / "flow.ckpt", tmp_path / "vae.ckpt")
    with pretend_cuda():
        for kind, path in ((MaskGiTPipeline, "stage2.ckpt"), (MAISIPipeline, "flow.ckpt")):
            pipeline = kind.from_checkpoint(tmp_path / path, device="cuda:0")
            assert pipeline.device.type == "cuda"
            (volume,) = pipeline.generate("T1", num_samples=1, seed=0)
            assert np.isfinite(volume.data).all()


def on_device(pipeline):
    """Bring the networks of a MaskGiTPipeline to the device."""
    pipeline.decoder.to("cuda")
    pipeline.autoencoder.to("cuda")
    pipeline.device = torch.device("cuda", 0)
