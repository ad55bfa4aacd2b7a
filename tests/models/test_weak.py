"""The weaker network of autoguidance is found beside its model, or refused by name."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from prod9.errors import CheckpointError
from prod9.models.checkpoint_header import Opened
from prod9.models.weak import find_weak, require_weaker

TOKENS = {
    "stage": "transformer",
    "step": 100,
    "inputs": {"autoencoder": {"sha256": "a" * 64}},
    "architecture": {"transformer": {"kind": "label_conditional", "groups": "balanced", "num_classes": 4}},
    "config": {},
    "data": {"label_map": {"T1": 0}},
}
FLOW = {
    **TOKENS,
    "stage": "maisi_diffusion",
    "architecture": {"diffusion": {"num_class_embeds": 8, "include_spacing_input": True}},
    "config": {"flow": {"num_train_timesteps": 1000}},
    "data": {"label_map": {"T1": 1}, "scale_factor": 1.0},
}


def opened(header, path="run/checkpoints/last.ckpt", sha256="1" * 64):
    return Opened(deepcopy(header), {}, Path(path), sha256)


def changed(header, path, value):
    copy = deepcopy(header)
    section = copy
    *parents, last = path.split(".")
    for name in parents:
        section = section[name]
    section[last] = value
    return copy


@pytest.mark.parametrize(
    ("header", "path", "value", "named"),
    [
        (TOKENS, "inputs.autoencoder.sha256", "b" * 64, "the autoencoder"),
        (TOKENS, "architecture.transformer.groups", "dense", r"the heads \(model.groups\)"),
        (TOKENS, "architecture.transformer.kind", "single_stream", "the kind"),
        (TOKENS, "architecture.transformer.num_classes", 5, "the number of classes"),
        (TOKENS, "data.label_map", {"T1": 0, "T2": 1}, "the labels"),
        (TOKENS, "config.context", {"source": "codes"}, "the context.source"),
        (FLOW, "architecture.diffusion.include_spacing_input", False, "the conditions"),
        (FLOW, "config.flow.num_train_timesteps", 500, "the flow.num_train_timesteps"),
        (FLOW, "data.scale_factor", 1.5, "the scale factor of latents"),
    ],
)
def test_a_network_of_other_tokens_or_conditions_is_refused_by_name(header, path, value, named):
    weak = opened(changed(header, path, value), "weak.ckpt", "2" * 64)
    with pytest.raises(CheckpointError, match=rf"weak.ckpt: expected a weak model with {named}"):
        require_weaker(opened(header), weak)


@pytest.mark.parametrize("header", [TOKENS, FLOW])
def test_an_earlier_or_smaller_network_is_taken(header):
    smaller = changed(header, f"architecture.{next(iter(header['architecture']))}.embed_dim", 8)
    require_weaker(opened(header), opened(smaller, "weak.ckpt", "2" * 64))


def test_the_model_itself_guides_nowhere():
    with pytest.raises(CheckpointError, match="got that model itself"):
        require_weaker(opened(TOKENS), opened(TOKENS, "copy.ckpt"))


def test_auto_takes_the_earliest_kept_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("best-step=000080.ckpt", "last.ckpt"):
        (folder / name).touch()
    model = opened(TOKENS, folder / "last.ckpt")
    with pytest.raises(
        CheckpointError, match=r"at most 50% of the model's 100 steps.*got step 80 as the earliest"
    ):
        find_weak(model)
    (folder / "best-step=000040.ckpt").touch()
    (folder / "early-step=000010.ckpt").touch()
    assert find_weak(model) == folder / "early-step=000010.ckpt"


def test_an_export_without_a_weak_model_says_how_to_get_one(tmp_path):
    with pytest.raises(CheckpointError, match="export the run again with --weak-model auto"):
        find_weak(opened(TOKENS, tmp_path))
    inner = tmp_path / "weak"
    inner.mkdir()
    (inner / "model.safetensors").touch()
    (inner / "config.json").write_text(json.dumps({}))
    assert find_weak(opened(TOKENS, tmp_path)) == inner
