"""Perceptual losses: where weights are found, and the terms that need none."""

import pytest
import torch

from prod9.errors import ConfigError
from prod9.measures.perceptual import (
    LPIPS,
    FeatureMatching,
    FocalFrequencyLoss,
    MedicalNetDistance,
    RadImageNetDistance,
    build_perceptual,
)
from prod9.measures.weights import OFFLINE_NETWORKS, WEIGHT_FILES, resolve_perceptual


@pytest.fixture
def weights_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PROD9_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def _volumes(side):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, side, side, side, generator=generator)
    return x, (x + 0.1 * torch.rand(x.shape, generator=generator)).clamp(0, 1)


def test_every_choice_of_the_schema_is_known():
    from typing import get_args

    from prod9.config.schema import PerceptualConfig

    choices = get_args(PerceptualConfig.model_fields["network"].annotation)
    assert set(choices) == {*OFFLINE_NETWORKS, *WEIGHT_FILES}


@pytest.mark.parametrize("network", WEIGHT_FILES)
def test_a_missing_file_is_named_with_the_choices_that_need_none(network, weights_dir):
    with pytest.raises(ConfigError) as error:
        resolve_perceptual(network)
    message = str(error.value)
    for part in (WEIGHT_FILES[network][0], str(weights_dir), "PROD9_WEIGHTS_DIR", *OFFLINE_NETWORKS):
        assert part in message


def test_files_are_found_in_the_usual_caches(weights_dir, tmp_path):
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / WEIGHT_FILES["radimagenet_resnet50"][0]).touch()
    assert resolve_perceptual("radimagenet_resnet50").backbone.parent == hub
    snapshot = tmp_path / "hf/hub/models--TencentMedicalNet--MedicalNet-Resnet10/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "resnet_10_23dataset.pth").touch()
    assert resolve_perceptual("medicalnet_resnet10_23datasets").backbone.parent == snapshot


def test_unknown_networks_are_refused():
    with pytest.raises(ConfigError, match="perceptual network: expected none or"):
        resolve_perceptual("inception")


def test_terms_without_weights():
    assert build_perceptual("none") is None
    assert isinstance(build_perceptual("focal_frequency"), FocalFrequencyLoss)
    assert isinstance(build_perceptual("discriminator_features"), FeatureMatching)


def test_focal_frequency_of_one_wave_and_of_noise():
    # A single wave a·cos has two frequencies of equal distance, both of weight 1: Parseval gives a²/2.
    side, amplitude = 8, 0.4
    phase = 2 * torch.pi * torch.arange(side) / side
    wave = (amplitude * torch.cos(phase)).view(1, 1, side, 1, 1).expand(1, 1, side, side, side)
    zero = torch.zeros_like(wave)
    torch.testing.assert_close(FocalFrequencyLoss()(wave, zero), torch.tensor(amplitude**2 / 2))
    assert FocalFrequencyLoss()(wave, wave).item() == 0.0
    noise, other = _volumes(8)
    mse = (noise - other).square().mean()
    torch.testing.assert_close(FocalFrequencyLoss(alpha=0.0)(noise, other), mse)  # no focus: Parseval
    assert FocalFrequencyLoss()(noise, other) < mse


def test_focal_frequency_has_a_finite_gradient_at_zero():
    x = torch.rand(1, 1, 4, 4, 4, requires_grad=True)
    FocalFrequencyLoss()(x, x.detach().clone()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*pretrained.*:UserWarning", "ignore:Arguments other than.*:UserWarning")
def test_lpips_equals_the_package_slice_by_slice(weights_dir):
    lpips = pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision").models
    backbone = models.squeezenet1_1(weights=None)
    torch.save(backbone.state_dict(), weights_dir / WEIGHT_FILES["squeeze"][0])
    peer = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    slices = [getattr(peer.net, f"slice{i}") for i in range(1, 8)]
    for layers in slices:
        for index, layer in layers.named_children():
            layer.load_state_dict(backbone.features[int(index)].state_dict())
    x, y = _volumes(34)
    expected = []
    for axis in (2, 3, 4):
        planes = [v.movedim(axis, 2)[0, 0, ::2, None].expand(-1, 3, -1, -1) for v in (x, y)]
        expected.append(peer(*planes, normalize=True).mean())
    ours = LPIPS(weights=resolve_perceptual("squeeze"))
    assert ours(x, y).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert ours(x, x).item() == 0.0
    assert not any(p.requires_grad for p in ours.parameters())


def test_a_damaged_backbone_is_named(weights_dir):
    pytest.importorskip("torchvision")
    path = weights_dir / WEIGHT_FILES["alex"][0]
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=path.name):
        build_perceptual("alex")


def test_medicalnet_reads_the_published_layout(weights_dir):
    from monai.networks.nets.resnet import resnet10

    network = resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False
    )
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    state |= {"module.conv_seg.0.weight": torch.zeros(1)}
    torch.save({"state_dict": state}, weights_dir / "resnet_10_23dataset.pth")
    term = build_perceptual("medicalnet_resnet10_23datasets")
    assert isinstance(term, MedicalNetDistance)
    x, y = _volumes(16)
    assert term(x, x).item() == 0.0
    assert term(x, y).item() > 0.0
    # Standardisation makes it blind to gain and offset.
    assert term(0.5 * x + 0.1, x).item() == pytest.approx(0.0, abs=1e-5)


def test_radimagenet_reads_the_published_layout(weights_dir):
    models = pytest.importorskip("torchvision").models
    layers = torch.nn.Sequential(*list(models.resnet50(weights=None).children())[:-2])
    torch.save({f"backbone.{k}": v for k, v in layers.state_dict().items()}, weights_dir / "ResNet50.pt")
    term = build_perceptual("radimagenet_resnet50")
    assert isinstance(term, RadImageNetDistance)
    x, y = _volumes(8)
    assert term(x, x).item() == 0.0
    assert term(x, y).item() > 0.0
