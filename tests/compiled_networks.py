"""What a process of its own does in the tests of compilation: the shape checks of the tests cannot be compiled."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from prod9.training import run
from tests.networks import examples
from tests.training import tiny_maisi
from tests.training.tiny import MemoryData, autoencoder_config, transformer_config, write_autoencoder
from tests.training.tiny_control import control_config, write_transformer
from tests.training.tiny_refiner import refiner_config, write_translator

# Compilers of the last step take a minute a network; what a network may not do, the first ones see.
_compile = partial(nn.Module.compile, backend="aot_eager")


def results(network: nn.Module, call: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
    """Return outputs and, where there are any, gradients of all parameters."""
    outputs = call()
    if not torch.is_grad_enabled():
        return list(outputs)
    network.zero_grad()
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    # Compiled code fills what has no gradient with zeros.
    return [*outputs, *(p.detach() * 0 if p.grad is None else p.grad.clone() for p in network.parameters())]


def compare(name: str, training: bool) -> dict[str, Any]:
    """Return how many breaks a network has, and how far compiled and plain results are apart."""
    example = examples(batch=1)[name]()
    network = example.network.train(training and name != "kl")  # in training it draws
    torch._dynamo.reset()
    with torch.set_grad_enabled(training):
        wanted = results(network, example.call)
        torch._dynamo.utils.counters.clear()
        _compile(network)
        got = results(network, example.call)
    differences = [
        float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-3))
        for a, b in zip(got, wanted, strict=True)
    ]
    counters = torch._dynamo.utils.counters
    return {
        "breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
        "difference": max(differences),
        "keys_kept": not any("_orig_mod" in key for key in network.state_dict()),
    }


def stages(folder: Path, **training: Any) -> dict[str, Any]:
    """Return a small configuration of every stage, and write the untrained networks that they build on."""
    upstream, base = folder / "upstream.ckpt", folder / "base.ckpt"
    if not upstream.exists():
        write_autoencoder(upstream)
        write_transformer(base, upstream)
        (folder / "translator").mkdir()
        write_translator(folder / "translator")
    how = {
        "training": {"max_steps": 1, "validate_every_steps": 1, **training},
        "callbacks": {"num_samples": 0},
        "trainer": {"loggers": []},
    }
    data, out = folder / "data", folder / f"compile-{training.get('compile', False)}"
    single = {"kind": "single_stream", "embed_dim": 24, "num_blocks": 2, "num_heads": 2}
    return {
        "autoencoder": autoencoder_config(data, out / "stage1", **how),
        "single_stream": transformer_config(data, out / "in-context", upstream, model=single, **how),
        "maskgit_controlnet": control_config(data, out / "stage3", base, **how),
        "refiner": refiner_config(data, folder / "translator" / f"refiner-{out.name}", **how),
        **{
            stage: tiny_maisi.make(stage, folder, f"{out.name}/{stage}", **how)
            for stage in ("maisi_vae", "maisi_diffusion", "maisi_controlnet")
        },
    }


def train(folder: Path) -> dict[str, Any]:
    """Train every stage plain and compiled; return their last metrics and what differs in their weights' names."""
    run.build_data_module = lambda config, *_, **__: MemoryData(config)  # type: ignore[assignment]
    nn.Module.compile = lambda self: _compile(self)  # type: ignore[method-assign]
    plain, compiled = stages(folder), stages(folder, compile=True)
    found: dict[str, Any] = {}
    for name in plain:
        results = []
        for config in (plain[name], compiled[name]):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            trained = run.train(config)
            state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            breaks = torch._dynamo.utils.counters["graph_break"]
            results.append((trained.metrics, sorted(state), graphs, {k[:90]: v for k, v in breaks.items()}))
        (before, names, none, _), (after, new_names, graphs, breaks) = results
        found[name] = {
            "metrics": [before, after],
            "same_names": names == new_names,
            "graphs": [none, graphs],
            "breaks": breaks,
        }
    return found


def main(folder: Path) -> None:
    """Write ``report.json`` into ``folder``."""
    # A batch of one takes kernels of its own; the other networks are compiled where they are trained.
    networks = {
        "fsq": compare("fsq", training=True),
        "fsq, without gradients": compare("fsq", training=False),
    }
    report = {"networks": networks, "stages": train(folder)}
    (folder / "report.json").write_text(json.dumps(report))
