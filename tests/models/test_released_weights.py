"""Published networks: exact counts on the meta device, MONAI's keys, strict import of files of their structure."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

from prod9.errors import CheckpointError
from prod9.models import released_weights
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.released import RELEASED
from prod9.models.released_weights import (
    build_released,
    check_released,
    import_released,
    read_released,
)
from prod9.pipelines.maisi import MAISIPipeline
from prod9.pipelines.maisi_control import MAISIControlPipeline
from tests.training.tiny_maisi import UNET, VAE

UNET_PUBLISHED = {
    "spatial_dims": 3,
    "in_channels": 4,
    "out_channels": 4,
    "num_channels": [64, 128, 256, 512],
    "attention_levels": [False, False, True, True],
    "num_head_channels": [0, 0, 32, 32],
    "num_res_blocks": 2,
    "include_spacing_input": True,
}
FLOW = {"num_class_embeds": 128, "resblock_updown": True, "include_fc": True}
REGIONS = {"include_top_region_index_input": True, "include_bottom_region_index_input": True}


def published(entry):
    """Return MONAI's own network of the published definition, on the meta device."""
    with torch.device("meta"):
        if entry.schedule is None:
            return AutoencoderKlMaisi(
                spatial_dims=3,
                in_channels=1,
                out_channels=1,
                latent_channels=4,
                num_channels=[64, 128, 256],
                num_res_blocks=[2, 2, 2],
                norm_num_groups=32,
                attention_levels=[False] * 3,
            )
        if entry.base is not None:
            own = FLOW if entry.schedule != "ddpm" else {}
            shared = {
                k: v for k, v in UNET_PUBLISHED.items() if k not in ("out_channels", "include_spacing_input")
            }
            planes = {"conditioning_embedding_in_channels": 8}
            return ControlNetMaisi(**shared, **own, **planes, conditioning_embedding_num_channels=(8, 32, 64))
        return DiffusionModelUNetMaisi(**UNET_PUBLISHED, **(FLOW if entry.schedule != "ddpm" else REGIONS))


@pytest.mark.parametrize("entry", RELEASED.values(), ids=RELEASED)
def test_the_shipped_config_builds_exactly_the_published_network(entry):
    network = build_released(entry)
    assert all(p.is_meta for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == entry.parameters
    assert len(network.state_dict()) == entry.tensors
    shapes = {name: t.shape for name, t in network.state_dict().items()}
    assert shapes == {name: t.shape for name, t in published(entry).state_dict().items()}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Entries of the same structure whose configs build small networks, and files of their weights."""
    labels = "{T1: 1, T1ce: 2, T2: 3, FLAIR: 4}"
    common = f"data: {{root: data, spacing: [4.0, 4.0, 4.0], grid: [16, 16, 16], label_map: {labels}}}\n"
    (tmp_path / "vae.yaml").write_text(
        f"stage: maisi_vae\noutput_dir: out\n{common}model: {VAE | {'latent_channels': 4}}\n".replace("'", "")
    )
    (tmp_path / "unet.yaml").write_text(
        f"stage: maisi_diffusion\noutput_dir: out\n{common}model: {UNET}\nsampler: {{steps: 1}}\n".replace(
            "'", ""
        )
        .replace("False", "false")
        .replace("True", "true")
    )
    entries = {
        "vae": replace(RELEASED["autoencoder_v1"], name="vae", config=str(tmp_path / "vae.yaml")),
        "flow": replace(RELEASED["rflow-ct"], name="flow", config=str(tmp_path / "unet.yaml")),
        "ddpm": replace(RELEASED["ddpm-ct"], name="ddpm", config=str(tmp_path / "unet.yaml")),
    }
    (tmp_path / "control.yaml").write_text(
        f"stage: maisi_controlnet\noutput_dir: out\n{common}model: {{encoder: maisi, channels: [4, 4, 4]}}\n"
        "condition: {num_mask_classes: 256, seg_planes: bits}\nsampler: {steps: 1}\n"
    )
    entries["control"] = replace(
        RELEASED["controlnet-rflow-ct"], name="control", config=str(tmp_path / "control.yaml"), base="flow"
    )
    # What a control network builds on is looked up by name.
    tiny_table = dict(RELEASED) | entries
    tiny_table["flow"] = entries["flow"] = replace(entries["flow"], autoencoder="vae")
    monkeypatch.setattr(released_weights, "RELEASED", tiny_table)
    torch.manual_seed(0)
    for name, entry in entries.items():
        state = {k: torch.randn(v.shape) * 0.1 for k, v in build_released(entry).state_dict().items()}
        content = state
        if name != "vae":
            state = {f"module.{k}": v for k, v in state.items()}
            content = {"epoch": 3, "loss": 0.5, "num_train_timesteps": 1000}
            content |= {"scale_factor": torch.tensor(0.97), "unet_state_dict": state}
        if name == "control":
            content = {"epoch": 3, "loss": 0.5, "controlnet_state_dict": state}
        torch.save(content, tmp_path / f"{name}.pt")
    return tmp_path, entries


def test_imported_weights_are_ready_for_use_and_pinned(tiny):
    folder, entries = tiny
    vae = import_released(entries["vae"], folder / "vae.pt", folder / "imported" / "vae")
    loaded = CheckpointManager.load_autoencoder(vae, stage="maisi_vae")
    flow = import_released(
        entries["flow"], folder / "flow.pt", folder / "imported" / "flow", autoencoder=loaded
    )
    network = CheckpointManager.load_diffusion(flow)
    saved = torch.load(folder / "flow.pt", weights_only=True)["unet_state_dict"]
    for name, tensor in network.network.state_dict().items():
        torch.testing.assert_close(tensor, saved[f"module.{name}"], rtol=0, atol=0)
    data = network.header["data"]
    assert data["scale_factor"] == pytest.approx(0.97)
    assert len(data["released"]["sha256"]) == 64
    pipeline = MAISIPipeline.from_checkpoint(flow)
    (volume,) = pipeline.generate("T1", num_samples=1)
    assert volume.data.shape == (16, 16, 16)
    weights = flow / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="SHA-256"):
        CheckpointManager.load_diffusion(flow)


def test_an_imported_control_network_steers_its_base(tiny):
    folder, entries = tiny
    vae = import_released(entries["vae"], folder / "vae.pt", folder / "vae")
    loaded = CheckpointManager.load_autoencoder(vae, stage="maisi_vae")
    flow = import_released(entries["flow"], folder / "flow.pt", folder / "flow", autoencoder=loaded)
    base = CheckpointManager.load_diffusion(flow)
    control = import_released(entries["control"], folder / "control.pt", folder / "control", base=base)
    pipeline = MAISIControlPipeline.from_checkpoint(control)
    saved = torch.load(folder / "control.pt", weights_only=True)["controlnet_state_dict"]
    for name, tensor in pipeline.controlnet.state_dict().items():
        torch.testing.assert_close(tensor, saved[f"module.{name}"], rtol=0, atol=0)
    seg = np.full((1, 16, 16, 16), 200, dtype=np.uint8)
    steered = pipeline.sample_label(1, segs=seg, seeds=[0])
    assert not torch.equal(steered, pipeline.generator.sample_label(1, [0], lambda share: None))
    with pytest.raises(CheckpointError, match="the imported flow as well, which control steers"):
        import_released(entries["control"], folder / "control.pt", folder / "out")


def test_a_ddpm_is_refused_by_the_flow_unless_it_is_asked_for(tiny):
    folder, entries = tiny
    vae = CheckpointManager.load_autoencoder(
        import_released(entries["vae"], folder / "vae.pt", folder / "vae"), stage="maisi_vae"
    )
    ddpm = import_released(entries["ddpm"], folder / "ddpm.pt", folder / "ddpm", autoencoder=vae)
    with pytest.raises(CheckpointError, match="schedule rectified_flow, got one trained with ddpm"):
        MAISIPipeline.from_checkpoint(ddpm)
    assert CheckpointManager.load_diffusion(ddpm, schedule="ddpm").network.latent_channels == 4


def test_weights_of_another_network_are_refused_by_their_first_keys(tiny):
    folder, entries = tiny
    with pytest.raises(CheckpointError, match=r"expected the 435 tensors of flow, got others .*is missing"):
        check_released(entries["flow"], read_released(folder / "vae.pt"), folder / "vae.pt")
    weights = torch.load(folder / "flow.pt", weights_only=True)
    weights["unet_state_dict"]["module.conv_in.conv.bias"] = torch.zeros(3)
    torch.save(weights, folder / "bent.pt")
    with pytest.raises(CheckpointError, match=r"conv_in.conv.bias has shape \(3,\), not \(8,\)"):
        import_released(entries["flow"], folder / "bent.pt", folder / "out")


def test_what_is_missing_is_named(tiny):
    folder, entries = tiny
    with pytest.raises(CheckpointError, match="the imported vae as well"):
        import_released(entries["flow"], folder / "flow.pt", folder / "out")
    torch.save({"epoch": 1}, folder / "empty.pt")
    with pytest.raises(CheckpointError, match="got no tensors"):
        read_released(folder / "empty.pt")
