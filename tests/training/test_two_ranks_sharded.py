"""Stage 2 in slices over two gloo processes computes and saves what it does in copies."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from prod9.models.checkpoint_manager import CheckpointManager
from prod9.training import run
from tests.processes import run as run_process
from tests.processes import run_ranks
from tests.training.tiny import MemoryData, write_autoencoder
from tests.training.tiny_maisi import write_vae
from tests.training.two_ranks_sharded import MODELS, RESUMED, build, main

NAMES = [*MODELS, "flow"]
LOSS_TOLERANCE = {"prefix": 1e-3}
"""1e-5 elsewhere. bf16 rounds at 4e-3: sums in another order may fall on the other side."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    write_autoencoder(folder / "upstream.ckpt")
    write_vae(folder / "vae.ckpt")
    codes, logs = run_ranks(main, folder)
    assert codes == [0, 0], "\n".join(logs)
    return folder


def read(folder, name: str) -> dict[str, Any]:
    return torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)


def leaves(content: Any, path: str = "") -> dict[str, Any]:
    """Return what a nested dictionary or list holds, by its path, in order."""
    if not isinstance(content, dict | list | tuple):
        return {path: content}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return {key: leaf for name, value in items for key, leaf in leaves(value, f"{path}/{name}").items()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare two checkpoints, less the settings and the times that they record."""
    first, second = (
        {**c, "prod9": c["prod9"]["architecture"], "loops": None, "global_step": None} for c in (one, other)
    )
    found, wanted = leaves(first), leaves(second)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            assert type(found[name]) is Tensor
            assert found[name].dtype == value.dtype
            assert found[name].device.type == "cpu"
            # Momenta of small gradients are sums of what nearly cancels; keys' biases, which change no attention,
            # have rounding alone, 1e-15.
            near = 1e-3 * float(value.abs().max()) + 1e-12
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=near, msg=name)
        elif "callbacks" not in name:
            assert found[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_weights_averages_and_optimizer_state_are_those_of_copies(folder, name):
    assert_same(read(folder, f"{name}-fsdp"), read(folder, f"{name}-ddp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_validations_are_those_of_copies(folder, name):
    logs = [
        [json.loads(line) for line in (folder / run / "logs" / "metrics.jsonl").read_text().splitlines()]
        for run in (f"{name}-fsdp", f"{name}-ddp")
    ]
    assert {"train/total", "val/loss", "val/sample_distance"} <= {key for row in logs[0] for key in row}
    for found, wanted in zip(*logs, strict=True):
        assert found == pytest.approx(wanted, rel=LOSS_TOLERANCE.get(name, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pair"), [(name, pair) for name, pairs in RESUMED.items() for pair in pairs]
)
def test_a_run_goes_on_from_the_checkpoint_of_either(folder, name, pair):
    resumed = read(folder, f"{name}-{pair}")
    assert resumed["prod9"]["step"] == 6
    assert_same(resumed, read(folder, f"{name}-ddp"))


@pytest.mark.slow
def test_a_process_holds_half_and_all_of_them_everything(folder):
    shares = [json.loads((folder / f"rank-{rank}.json").read_text())["shares"] for rank in "01"]
    for name in NAMES:
        assert [share[f"{name}-ddp"] for share in shares] == [1.0, 1.0]
        assert sum(share[f"{name}-fsdp"] for share in shares) == pytest.approx(1.0)
        assert shares[0][f"{name}-fsdp"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_a_bad_step_of_one_rank_is_skipped_by_both(folder):
    for name in NAMES:
        assert read(folder, f"{name}-fsdp")["prod9_run"]["skipped_steps"] == 1


@pytest.mark.slow
def test_weights_that_are_not_finite_on_one_rank_are_saved_by_none(folder):
    assert [json.loads((folder / f"rank-{rank}.json").read_text())["refused"] for rank in "01"] == [
        True,
        True,
    ]
    assert not list((folder / "label-broken").rglob("*.ckpt"))


@pytest.mark.slow
def test_one_process_loads_what_two_saved_and_goes_on(folder, monkeypatch):
    saved = read(folder, "label-fsdp")["state_dict"]
    loaded = CheckpointManager.load_transformer(folder / "label-fsdp", prefer="last").network.state_dict()
    for name, value in loaded.items():
        assert torch.equal(saved[f"decoder.{name}"], value)
    CheckpointManager.load_diffusion(folder / "flow-fsdp")
    monkeypatch.setattr(run, "build_data_module", lambda config, *_, **__: MemoryData(config))
    config = build(folder, "label-fsdp", strategy="auto", devices=1, max_steps=8)
    assert run.train(config, resume="auto").step == 8


@pytest.mark.slow
def test_one_device_is_a_slice_that_is_the_whole(folder):
    run_process(main, folder, log=folder / "alone.log")
    assert read(folder, "label-alone")["prod9"]["step"] == 6
