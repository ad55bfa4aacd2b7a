"""Exact inference in slabs against the whole pass and against sliding windows: decoding, memory and time.

Every arm runs in a process of its own, one after another; memory is the peak of the resident set while
decoding over what was resident before. All arms decode the same latent with the same random weights, whose
statistics differ along the volume. Windows overlap by half, as is usual, and cover ``roi`` voxels.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import _harness
import torch

from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.autoencoder.inference import AutoencoderInferenceWrapper, SlidingWindowConfig

ARM = "PROD9_BENCH_EXACT_ARM"
QUICK = {"num_channels": (16, 32, 64), "num_res_blocks": (2, 2, 2), "norm_num_groups": 16, "side": 96}
FULL = {"num_channels": (32, 64, 128), "num_res_blocks": (2, 2, 2), "norm_num_groups": 32, "side": 128}
ARMS = {
    "whole": {"strategy": "whole"},
    "exact": {"strategy": "exact", "num_slabs": 32},
    "exact_bf16": {"strategy": "exact", "num_slabs": 32, "keep_dtype": "bfloat16"},
    "sliding_window": {"strategy": "sliding_window", "overlap": 0.5},
}


def build(setting: dict, arm: str) -> tuple[AutoencoderInferenceWrapper, torch.Tensor]:
    """Return the wrapper of ``arm`` and a latent that drifts along every axis."""
    torch.manual_seed(0)
    network = {name: value for name, value in setting.items() if name != "side"}
    autoencoder = AutoencoderKlMaisi(latent_channels=4, **network).eval()
    side = setting["side"] // 4
    ramp = torch.linspace(-1, 1, side)
    latent = torch.randn(1, 4, side, side, side) * (1 + ramp.view(1, 1, -1, 1, 1)) + ramp.view(1, 1, 1, -1, 1)
    options = dict(ARMS[arm])
    if arm == "sliding_window":
        options["roi_size"] = (setting["side"] // 2,) * 3
    return AutoencoderInferenceWrapper(autoencoder, SlidingWindowConfig(**options)), latent


def status(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def run_arm(arm: str, setting: dict, threads: int, clock: str, rounds: int) -> None:
    """Decode once for memory and the output, then ``rounds`` times for time; print JSON."""
    torch.set_num_threads(threads)
    now = _harness.CLOCKS[clock]
    wrapper, latent = build(setting, arm)
    wrapper.decode(latent[..., :8, :8, :8])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    volume = wrapper.decode(latent)
    peak = status("VmHWM") - before
    torch.save(volume, sys.argv[2])
    del volume
    seconds = []
    for _ in range(rounds):
        start_time = now()
        wrapper.decode(latent)
        seconds.append(now() - start_time)
    print(json.dumps({"peak": peak, "seconds": statistics.median(seconds)}))


def measure(bench: _harness.Bench, setting: dict, rounds: int) -> None:
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    results, volumes = {}, {}
    for arm in ARMS:
        path = folder / f"bench_exact_{os.getpid()}_{arm}.pt"
        spec = json.dumps([arm, setting, bench.threads, bench.clock, rounds])
        command = [sys.executable, __file__, "--arm", str(path)]
        ran = subprocess.run(
            command, env={**os.environ, ARM: spec}, capture_output=True, text=True, check=True
        )
        results[arm] = json.loads(ran.stdout.splitlines()[-1])
        volumes[arm] = torch.load(path, weights_only=True)
        path.unlink()
        peak, seconds = results[arm]["peak"] / 2**20, results[arm]["seconds"]
        print(f"{bench.name}: {arm:<20} {peak:10.0f} MiB {seconds:10.2f} s", flush=True)
    whole = results["whole"]
    bench.seconds = {arm: result["seconds"] for arm, result in results.items()}
    bench.runs = rounds
    bench.value("max_rel_diff", _harness.max_rel_diff(volumes["whole"], volumes["exact"]))
    bench.value("max_rel_diff_bf16", _harness.max_rel_diff(volumes["whole"], volumes["exact_bf16"]))
    bench.value("peak_memory_over_whole", results["exact"]["peak"] / whole["peak"])
    bench.value("peak_memory_over_whole_bf16", results["exact_bf16"]["peak"] / whole["peak"])
    bench.value("time_over_whole", results["exact"]["seconds"] / whole["seconds"])
    bench.value(
        "sliding_window_time_over_ours", results["sliding_window"]["seconds"] / results["exact"]["seconds"]
    )
    bench.value(
        "sliding_window_max_rel_diff", _harness.max_rel_diff(volumes["whole"], volumes["sliding_window"])
    )


def main() -> None:
    if ARM in os.environ:
        arm, setting, threads, clock, rounds = json.loads(os.environ[ARM])
        run_arm(arm, setting, threads, clock, rounds)
        return
    bench = _harness.start("bench_exact", __doc__)
    setting = QUICK if bench.quick else FULL
    bench.sizes["network"] = setting
    measure(bench, setting, rounds=1 if bench.quick else 3)
    bench.report(["monai"])


if __name__ == "__main__":
    main()
