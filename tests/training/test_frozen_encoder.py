"""A decoder that is tuned alone leaves latents, tokens and the models on them as they are."""

from pathlib import Path

import pytest
import torch

from prod9.errors import CheckpointError, ConfigError
from prod9.models.checkpoint_encoder import ENCODER_PARTS, encoder_digest
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training.run import train
from tests.training.tiny import AUTOENCODER, transformer_config, write_autoencoder

FROZEN = {
    "loss": {
        "perceptual": {"network": "discriminator_features", "weight": 0.1},
        "adversarial": {"weight": 0.5, "discriminator": {"channels": 4, "num_layers_d": 1}},
    },
    "freeze_encoder": True,
}


@pytest.fixture
def tuned(make_config, memory_data):
    """Return ``tune(stage, name, base, **sections)``, which trains a decoder alone and opens the result."""

    def tune(stage, name, base, **sections):
        config = make_config(stage, name, **(FROZEN | sections))
        train(config, init_from=base)
        return CheckpointManager.open(config.output_dir, stage=stage, prefer="last")

    return tune


def parts(opened, *, of_encoder):
    weights = {
        k.removeprefix("autoencoder."): v for k, v in opened.state_dict.items() if k.startswith("auto")
    }
    return {k: v for k, v in weights.items() if (k.partition(".")[0] in ENCODER_PARTS) == of_encoder}


@pytest.mark.parametrize("stage", ["autoencoder", "maisi_vae"])
def test_the_encoder_keeps_every_bit_and_has_no_state_of_an_optimizer(stage, make_config, tuned, last_state):
    first = make_config(stage, "first")
    train(first)
    base = CheckpointManager.open(first.output_dir, stage=stage)
    result = tuned(stage, "sharp", base.path)
    kept, changed = parts(base, of_encoder=True), parts(base, of_encoder=False)
    assert {k.partition(".")[0] for k in kept} <= set(ENCODER_PARTS)
    assert all(torch.equal(v, kept[k]) for k, v in parts(result, of_encoder=True).items())
    assert not any(torch.equal(v, changed[k]) for k, v in parts(result, of_encoder=False).items())
    trained = sum(
        len(group["params"])
        for group in last_state(result.path.parents[1])["optimizer_states"][0]["param_groups"]
    )
    assert trained == len(changed)
    loaded, before = (CheckpointManager.load_autoencoder(o, stage=stage).network for o in (result, base))
    x = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(loaded.encode_stage_2_inputs(x), before.encode_stage_2_inputs(x))
    assert result.header["data"]["encoder"] == {"sha256": encoder_digest(kept), "of": [base.sha256]}


def test_models_on_the_tokens_take_the_tuned_decoder_and_no_other(tmp_path, make_config, tuned):
    base = tmp_path / "base.ckpt"
    write_autoencoder(base)
    sharp = tuned("autoencoder", "sharp", base)
    sharper = tuned("autoencoder", "sharper", sharp.path)
    stage2 = transformer_config(tmp_path / "data", tmp_path / "stage2", base, training={"max_steps": 1})
    train(stage2)
    decoder = CheckpointManager.open(stage2.output_dir)
    for opened in (sharp, sharper):
        assert CheckpointManager.load_upstream(decoder, path=opened).sha256 == opened.sha256

    whole = make_config("autoencoder", "whole", loss=FROZEN["loss"])
    train(whole, init_from=sharp.path)
    with pytest.raises(CheckpointError, match="its tokens mean something else"):
        CheckpointManager.load_upstream(decoder, path=whole.output_dir)
    CheckpointManager.export(sharp.path, tmp_path / "full")
    assert CheckpointManager.load_upstream(decoder, path=tmp_path / "full").header["step"] == 6
    CheckpointManager.export(sharp.path, tmp_path / "half", dtype=torch.float16)
    with pytest.raises(CheckpointError, match="export in float16"):
        CheckpointManager.load_upstream(decoder, path=tmp_path / "half")


def test_a_run_that_went_on_still_knows_whose_encoder_it_has(tmp_path, make_config, memory_data, tuned):
    write_autoencoder(tmp_path / "base.ckpt")
    first = tuned("autoencoder", "sharp", tmp_path / "base.ckpt")
    longer = make_config("autoencoder", "sharp", **FROZEN | {"training": {"max_steps": 8}})
    train(longer, resume="auto")
    last = CheckpointManager.open(longer.output_dir, prefer="last")
    assert last.header["step"] == 8
    assert last.header["data"]["encoder"] == first.header["data"]["encoder"]
    thawed = make_config(
        "autoencoder", "sharp", **FROZEN | {"freeze_encoder": False, "training": {"max_steps": 9}}
    )
    with pytest.raises(
        CheckpointError, match="freeze_encoder: expected true, as in the checkpoint, got false"
    ):
        train(thawed, resume="auto")


def test_an_untrained_encoder_or_one_of_other_options_is_refused(tmp_path, make_config, memory_data):
    with pytest.raises(ConfigError, match="--init-from: expected a run or checkpoint whose encoder is kept"):
        train(make_config("autoencoder", "new", **FROZEN))
    write_autoencoder(tmp_path / "base.ckpt")
    for option, value in (("symmetric", True), ("front_end", "haar")):
        config = make_config("autoencoder", option, **FROZEN, model=AUTOENCODER | {option: value})
        with pytest.raises(CheckpointError, match=rf"model\.{option}: expected .*, got {value!r}"):
            train(config, init_from=tmp_path / "base.ckpt")
    assert not Path(config.output_dir, "checkpoints").exists()
