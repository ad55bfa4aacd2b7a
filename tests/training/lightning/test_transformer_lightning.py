"""The adapters of stage 2 (MaskGiT): labels, in-context translation, resuming."""

import pytest
import torch

from prod9.errors import CheckpointError
from prod9.training import run
from prod9.training.lightning.in_context_lightning import InContextTransformerLightning
from prod9.training.lightning.label_conditional_lightning import LabelConditionalTransformerLightning
from prod9.training.lightning.transformer_lightning import TransformerLightning
from prod9.training.recipes.transformers import level_distance
from prod9.training.run import train
from tests.training.tiny import MemoryData

TRANSLATION = {"kind": "decoder", "embed_dim": 24, "num_blocks": 2, "num_heads": 2}
IN_CONTEXT = TRANSLATION | {"kind": "single_stream", "patch_size": 2}


def batches(config, count=2):
    loader = iter(MemoryData(config).val_dataloader())
    return [next(loader) for _ in range(count)]


def test_the_kind_picks_the_adapter(make_config):
    assert type(run.build_module(make_config("transformer", "a"))) is LabelConditionalTransformerLightning
    assert type(run.build_module(make_config("transformer", "b", model=TRANSLATION))) is TransformerLightning
    in_context = make_config("transformer", "c", model=IN_CONTEXT)
    assert type(run.build_module(in_context)) is InContextTransformerLightning


def test_the_frozen_autoencoder_is_neither_trained_nor_in_the_tree(make_config):
    module = run.build_module(make_config("transformer", "run"))
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"decoder"}
    assert not module.recipe.autoencoder.wrapper.training


def test_modalities_are_asked_for_in_turn(make_config):
    data = {"modalities": ["T2", "T1"], "label_map": {"T1": 3, "T2": 1}}
    config = make_config("transformer", "run")
    config = make_config("transformer", "run", data=config.data.model_dump(mode="json") | data)
    condition, real, titles = run.build_module(config).recipe.sample_requests(3)
    assert condition.label.tolist() == [1, 3, 1]
    assert titles == ["T2", "T1", "T2"]
    assert real == []


def test_translation_asks_for_held_out_targets_from_their_own_sources(make_config):
    config = make_config("transformer", "run", model=TRANSLATION)
    module = run.build_module(config)
    module.recipe.examples = batches(config)
    condition, real, titles = module.recipe.sample_requests(5)
    assert len(condition) == len(real) == len(titles) == 2
    expected = torch.cat([batch["source_latent"] for batch in module.recipe.examples])
    assert torch.equal(condition.source_latent, expected)
    assert condition.source_label.tolist() == [0, 0]


def test_in_context_asks_for_held_out_targets_from_any_number_of_sources(make_config):
    config = make_config("transformer", "run", model=IN_CONTEXT)
    module = run.build_module(config)
    module.recipe.examples = batches(config)
    condition, real, titles = module.recipe.sample_requests(5)
    assert len(condition) == len(real) == len(titles) == 2
    assert titles == ["T1ce+T2 → T1", "T2+FLAIR+T1 → T1ce"]
    expected = torch.cat([batch["source_labels"] for batch in module.recipe.examples])
    assert torch.equal(condition.source_labels, expected)
    assert len(module.recipe.sample_requests(1)[0]) == 1


def test_in_context_training_resumes_bit_for_bit(make_config, memory_data, last_state):
    from pathlib import Path

    def trained(name):
        return make_config("transformer", name, model=IN_CONTEXT)

    result = train(trained("whole"))
    memory_data["stop_before"] = 5
    with pytest.raises(RuntimeError, match="the power went"):
        train(trained("parts"))
    memory_data.clear()
    resumed = train(trained("parts"), resume="auto")
    assert resumed.metrics["val/sample_distance"] == result.metrics["val/sample_distance"]
    whole, parts = (last_state(Path(trained(name).output_dir)) for name in ("whole", "parts"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name


def test_in_context_training_starts_from_a_label_conditional_run(make_config, memory_data, last_state):
    from pathlib import Path

    label = make_config("transformer", "label", training={"ema": None, "max_steps": 2})
    train(label)
    size = label.model.model_dump(mode="json", include={"embed_dim", "num_blocks", "num_heads", "patch_size"})
    tiny = {"ema": None, "max_steps": 1, "learning_rate": 1e-12}
    config = make_config("transformer", "c", model=IN_CONTEXT | size, training=tiny)
    train(config, init_from=label.output_dir)

    before, after = (last_state(Path(run.output_dir))["state_dict"] for run in (label, config))
    shared = [name for name in after if name in before and not name.startswith("decoder.condition.")]
    assert len(shared) > 20
    for name in shared:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)

    wider = make_config("transformer", "d", model=IN_CONTEXT | size | {"num_blocks": 4}, training=tiny)
    with pytest.raises(CheckpointError, match="same size"):
        train(wider, init_from=label.output_dir)


def test_samples_depend_on_the_weights_and_the_seed_only(make_config):
    module = run.build_module(make_config("transformer", "run")).eval()
    condition, _, _ = module.recipe.sample_requests(4)
    torch.manual_seed(5)
    first = module.recipe.sample_tokens(condition, module.draws)
    alone, _, _ = module.recipe.sample_requests(1)
    assert torch.equal(first, module.recipe.sample_tokens(condition, module.draws))
    assert torch.equal(first[:1], module.recipe.sample_tokens(alone, module.draws))
    assert first.shape == (4, 4, 4, 4)
    assert module.recipe.autoencoder.decode_tokens(first[:1]).shape == (16, 16, 16)


def test_validation_hides_the_same_tokens_each_time(make_config):
    config = make_config("transformer", "run")
    module = run.build_module(config).eval()
    (batch,) = batches(config, 1)
    one, two = (module.recipe.tally(batch, 3, module.draws).averages() for _ in range(2))
    assert one["loss"] == two["loss"]


def test_sampling_is_logged_at_every_validation(make_config, memory_data, logged):
    from pathlib import Path

    config = make_config("transformer", "run")
    result = train(config)
    rows = [row for row in logged(Path(config.output_dir)) if row.get("val/sample_distance")]
    assert [int(row["step"]) for row in rows] == [4, 6]
    assert float(rows[-1]["val/sample_distance"]) == pytest.approx(result.metrics["val/sample_distance"])


@pytest.mark.parametrize(("sampled", "expected"), [([0, 1, 5, 6], 0.0), ([2, 2, 2, 2], 1.0)])
def testlevel_distance_compares_shares_of_each_level(sampled, expected):
    # Levels (5, 5): tokens 0, 1, 5, 6 have digits 0 and 1 in both channels; token 2 has digit 2, and 0.
    real = torch.tensor([0, 1, 5, 6]).view(1, 4, 1, 1)
    distance = level_distance(torch.tensor(sampled).view(1, 4, 1, 1), real, (5, 5))
    assert float(distance) == pytest.approx(expected if expected == 0.0 else (1.0 + 0.5) / 2)
