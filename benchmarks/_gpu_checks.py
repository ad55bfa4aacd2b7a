"""Parts of the GPU suite that check: numerics, tokens, waits, types, second derivatives, compilation, commands."""

import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

Found = dict[str, Any]
COMPILED = (
    "fsq",
    "kl",
    "unet",
    "flow_controlnet",
    "decoder",
    "single_stream",
    "single_stream_full",
    "token_controlnet",
    "refiner",
)
_WAITING = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
FAMILIES = {
    "maskgit": ("stage1", "stage2_label", "stage2", "stage2_refiner", "stage3"),
    "maisi": ("maisi_vae", "maisi_diffusion", "maisi_controlnet"),
}
"""Names of the demo's configs, in the order in which they build on each other."""


def rel_diff(a: Any, b: Any) -> float:
    """Return max|a − b| / max|b|."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


def without_tf32() -> None:
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


# -- parts ----------------------------------------------------------------------------------------------


def numerics(device: str) -> Found:
    """Outputs and gradients of every network equal those of the CPU."""
    import torch
    from tests.networks import examples

    without_tf32()
    torch.manual_seed(0)
    worst: dict[str, dict[str, float]] = {}
    for name in COMPILED:
        results = []
        for where in ("cpu", device):
            example = examples(where)[name]()
            # Draws of the latent come from other generators on other devices.
            example.network.train(name != "kl")
            outputs = example.call()
            sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
            gradients = [p.grad for p in example.network.parameters() if p.grad is not None]
            norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            results.append(([*outputs], norm))
        (ours, our_norm), (theirs, their_norm) = results
        worst[name] = {
            "outputs": max(rel_diff(b, a) for a, b in zip(ours, theirs, strict=True)),
            "gradient_norm": rel_diff(their_norm, our_norm),
        }
    return {"networks": worst, "ok": all(max(d.values()) < 1e-3 for d in worst.values())}


def tokens(device: str) -> Found:
    """Under the default settings the layers before the quantiser give the tokens of float64."""
    import torch
    from tests.networks import LEVELS, STAGE1, shaken

    from prod9.autoencoder.native.full_precision import apply_in_full, full_float32

    from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ  # isort: skip

    cudnn: Any = torch.backends.cudnn
    side = 96 if device == "cuda" else 16
    network = shaken(AutoencoderFSQ(levels=LEVELS, **STAGE1), device).eval()
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    network.calibrate(x)
    last, head = network.encoder.blocks[-1], network.quant_conv_mu
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    found: Found = {"tokens": 0}
    with torch.no_grad():
        whole = network(x).tokens
        hook.remove()
        h = seen[0]
        found["tokens"] = whole.numel()
        ours = network.quantizer(apply_in_full(last, [head], h)[0])[1]
        plain = network.quantizer(head(last(h)))[1]
        with full_float32(device):
            inside = cudnn.conv.fp32_precision
        network.double()
        exact = network.quantizer(head(last(h.double())))[1]
        network.float()
        found |= {
            "changed_by_float32": int((ours != exact).sum()),
            "changed_by_defaults": int((plain != exact).sum()),
            "whole_network_equals_layers": bool(torch.equal(ours, whole)),
            "precision_inside": inside,
            "precision_after": cudnn.conv.fp32_precision,
        }
        # The effect of TF32 in the layers before them, for the record.
        without_tf32()
        found["changed_by_tf32_before"] = int((network(x).tokens != whole).sum())
    few = max(1, whole.numel() // 10_000)
    found["ok"] = found["changed_by_float32"] <= few and found["whole_network_equals_layers"]
    return found


def waits(device: str) -> Found:
    """Losses, gradients and sampling runs wait for nothing; a whole step waits once, for whether it is finite.

    Without a GPU, on the pretend device of the tests.
    """
    if device == "cuda":
        return _counted("cuda", _waits_of)
    from tests.pretend import pretend_cuda

    with pretend_cuda() as pretended:

        def of(step: Callable[[], Any]) -> Counter[str]:
            with pretended.counted() as found:
                step()
            return Counter(found)

        return _counted("cuda", of)


def _counted(device: str, waits_of: Callable[[Callable[[], Any]], Counter[str]]) -> Found:
    from tests.networks import sampling_runs, training_steps

    places: dict[str, dict[str, int]] = {}
    for name, build in {**training_steps(device), **sampling_runs(device)}.items():
        step = build()
        for _ in range(2):
            step()
        places[name] = dict(waits_of(step))
    excess = {name: sum(found.values()) for name, found in places.items() if found}
    return {"places": places, "excess": excess, "ok": not excess}


def _waits_of(step: Callable[[], Any]) -> Counter[str]:
    import torch

    torch.cuda.synchronize()
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            found[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    return found + _profiled(step)


def _profiled(step: Callable[[], Any]) -> Counter[str]:
    """Return what the profiler sees the host wait for in a step, beside the wait at its own end."""
    from torch.profiler import ProfilerActivity, profile

    def events(call: Callable[[], Any]) -> Counter[str]:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
        return Counter(event.name for event in seen.events() if event.name in _WAITING)

    return events(step) - events(lambda: None)


def types(device: str) -> Found:
    """Group normalisation keeps the type of what it is given, under autocast too."""
    import torch
    from torch import nn

    from prod9.autoencoder.native.norm import group_norm

    norm, found = nn.GroupNorm(2, 8).to(device), {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.rand(2, 8, 6, 6, 6, device=device).to(dtype)
        for silu in (False, True):
            with torch.autocast(device, dtype=torch.bfloat16):
                found[f"{dtype}, silu {silu}"] = str(group_norm(x, norm, silu=silu).dtype)
    return {"dtypes": found, "ok": all(name.startswith(f"{value},") for name, value in found.items())}


def double_backward(device: str) -> Found:
    """Gradients of gradients equal those of torch's own operators in float64, whatever needs a gradient."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from prod9.autoencoder.autoencoder_fsq import FiniteScalarQuantizer
    from prod9.autoencoder.native.conv import convolve
    from prod9.autoencoder.native.norm import group_norm

    without_tf32()
    norm, conv = nn.GroupNorm(2, 4), nn.Conv3d(4, 3, 3, padding=1)
    quantizer = FiniteScalarQuantizer((8, 6, 5, 7))
    pairs: dict[str, tuple[nn.Module, Callable[..., Any], Callable[..., Any]]] = {
        "norm": (norm, lambda x, m: group_norm(x, m, silu=True), lambda x, m: F.silu(m(x))),
        "conv": (conv, lambda x, m: convolve(m, x), lambda x, m: m(x)),
        "fsq": (quantizer, lambda x, m: m.quantize(x), lambda x, m: m.quantize(x)),
    }

    def second(call: Callable[..., Any], module: nn.Module, x: Any) -> Any:
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(call(x, module).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    found: dict[str, float] = {}
    for name, (module, ours, theirs) in pairs.items():
        x = torch.rand(1, 4, 6, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        for frozen in (False, True):
            for layout in (torch.contiguous_format, torch.channels_last_3d):
                module.float().to(device).requires_grad_(not frozen)
                got = second(ours, module, x.to(device, memory_format=layout))
                module.double().cpu()
                want = second(theirs, module, x.double())
                found[f"{name}, frozen {frozen}, {str(layout).removeprefix('torch.')}"] = rel_diff(got, want)
    return {"differences": found, "ok": max(found.values()) < 1e-3}


def compiled(name: str, device: str) -> Found:
    """One network compiles with at most two breaks and gives the same numbers and gradients."""
    import torch
    import torch._dynamo
    from tests.networks import examples

    without_tf32()
    example = examples(device)[name]()
    network = example.network.train(name != "kl")

    def run() -> tuple[list[Any], list[Any]]:
        network.zero_grad()
        outputs = [output.detach().clone() for output in example.call()]
        sum(output.square().mean() for output in example.call()).backward()  # type: ignore[union-attr]
        # Compiled code fills what has no gradient with zeros.
        return outputs, [
            p.grad.clone() if p.grad is not None else 0.0 * p.detach() for p in network.parameters()
        ]

    wanted, wanted_gradients = run()
    torch._dynamo.reset()
    network.compile()
    keys = list(network.state_dict())
    start = time.perf_counter()
    torch._dynamo.utils.counters.clear()
    got, gradients = run()
    counted = torch._dynamo.utils.counters["graph_break"]
    breaks = {reason.partition("\n")[0]: count for reason, count in counted.items()}
    scale = max(float(g.abs().max()) for g in wanted_gradients)
    worst = max(float((a - b).abs().max()) / scale for a, b in zip(gradients, wanted_gradients, strict=True))
    found = {
        "seconds": time.perf_counter() - start,
        "breaks": breaks,
        "outputs": max(rel_diff(a, b) for a, b in zip(got, wanted, strict=True)),
        "gradients": worst,
        "keys_kept": not any("_orig_mod" in key for key in keys),
    }
    close = found["outputs"] < 1e-3 and worst < 1e-3
    return found | {"ok": close and sum(breaks.values()) <= 2 and found["keys_kept"]}


def training(family: str, device: str, *, compile: bool = False) -> Found:
    """The commands of a family train each stage for two steps, with the demo's configs shrunk."""
    missing = [
        name for name in ("typer", "nibabel", "lightning", "yaml") if not importlib.util.find_spec(name)
    ]
    if missing:
        return {"ok": True, "skipped": f"needs {', '.join(missing)}"}
    import yaml
    from tests.fixtures import write_brats_tree
    from tests.harness import run

    from prod9.config.load import merge_config, shipped_configs
    from prod9.stages import STAGES

    shrinks = yaml.safe_load((ROOT / "tests" / "architecture" / "shrinks.yaml").read_text(encoding="utf-8"))
    stages = FAMILIES[family][:2] if compile else FAMILIES[family]
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_brats_tree(Path("outputs/demo/data"), 7)
        for stage in stages:
            name = f"demo/{stage}"
            changes = [f"--set={change}" for group in shrinks[name].values() for change in group]
            more = ["training.max_steps=2", "training.validate_every_steps=2", "trainer.precision=auto"]
            more += [f"training.compile={str(compile).lower()}", "trainer.loggers=[csv]"]
            command = STAGES[merge_config(shipped_configs()[name])["stage"]].command
            settings = [*changes, *(f"--set={change}" for change in more)]
            start = time.perf_counter()
            ran = run(command, "train", "--config", name, *settings, "--device", device, "--json")
            found[stage] = {"code": ran.code, "seconds": time.perf_counter() - start}
            if ran.code:
                found[stage]["error"] = ran.err[-1500:]
                break
            found[stage] |= {"step": ran.json["step"], "metrics": ran.json.get("metrics")}
        os.chdir(ROOT)
    return {"stages": found, "ok": len(found) == len(stages) and not any(s["code"] for s in found.values())}


PARTS: dict[str, Callable[[str], Found]] = {
    # What takes longest comes first.
    **{
        f"training_{family}_compiled": lambda d, family=family: training(family, d, compile=True)
        for family in FAMILIES
    },
    **{f"training_{family}": lambda d, family=family: training(family, d) for family in FAMILIES},
    **{f"compiled_{name}": lambda d, name=name: compiled(name, d) for name in COMPILED},
    "numerics": numerics,
    "tokens": tokens,
    "waits": waits,
    "types": types,
    "double_backward": double_backward,
}
