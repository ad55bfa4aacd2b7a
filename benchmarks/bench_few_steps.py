"""What the steps of a flow cost and are worth: 1, 2, 4, 10 and 30 steps of a run, and those that a student knows.

Always: ``flow_over_decoder_N_steps``, the time of N steps of a flow without guidance over that of decoding its sample
(random weights of the demo's sizes). With ``--flow RUN --scans DIR`` a table: for each number of steps the kernel
distance (KID), the spectrum distance and the diversity against the scans, with 95% interval and floor (scans against
scans), and the kernel distance against the flow's own 30 steps. ``--student RUN`` adds a distilled network.

    python benchmarks/bench_few_steps.py [--quick] [--threads N]
    python benchmarks/bench_few_steps.py --flow RUN --student RUN --scans DIR --split SPLIT.json -n 32 -o OUT
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import _harness
import torch

from prod9 import volumes
from prod9.config.load import load_config
from prod9.config.schema import MaisiDiffusionConfig, MaisiVAEConfig
from prod9.diffusion.condition import FlowCondition
from prod9.diffusion.sampler import RectifiedFlowSampler
from prod9.diffusion.scheduler import RectifiedFlowSchedulerRF
from prod9.evaluation.images import ImageSettings, evaluate_images
from prod9.models.factory import ModelFactory
from prod9.pipelines.maisi import MAISIPipeline

STEPS = (1, 2, 4, 10, 30)
_METRICS = {"kid": "KID", "spectrum_distance_db": "spectrum, dB", "ms_ssim_pairs": "MS-SSIM of pairs"}


def cost(bench: _harness.Bench) -> None:
    """Time steps of the demo's network beside the decoding of what they make."""
    config = cast(MaisiDiffusionConfig, load_config("demo/maisi_diffusion"))
    vae = cast(MaisiVAEConfig, load_config("demo/maisi_vae"))
    torch.manual_seed(0)
    autoencoder = ModelFactory.create_autoencoder(vae.model).eval()
    network = ModelFactory.create_diffusion(config.model, latent_channels=autoencoder.latent_channels).eval()
    grid = config.data.grid if not bench.quick else (32, 32, 32)
    shape = (1, autoencoder.latent_channels, *(side // autoencoder.downsampling_factor for side in grid))
    condition = FlowCondition.of_heads(torch.ones(1, dtype=torch.int64), torch.full((1, 3), 3.75))

    def sample(steps: int) -> torch.Tensor:
        sampler = RectifiedFlowSampler(scheduler=RectifiedFlowSchedulerRF(), steps=steps)
        return sampler.sample(network.predict, shape, condition, torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        return autoencoder.decode(torch.zeros(shape))

    arms: dict[str, Any] = {f"{steps}_steps": lambda steps=steps: sample(steps) for steps in STEPS}
    seconds = bench.time(arms | {"decoder": decode}, rounds=3)
    for steps in STEPS:
        bench.value(f"flow_over_decoder_{steps}_steps", seconds[f"{steps}_steps"] / seconds["decoder"])
    bench.sizes |= {"latent": list(shape), "image": list(grid)}


@dataclass(frozen=True)
class Made:
    """Volumes of ``steps`` steps of a ``model`` in ``folder``."""

    model: str
    steps: int
    folder: Path


def make_sets(args: argparse.Namespace) -> Iterator[Made]:
    """Yield the sets: those of the flow with 30 steps come first. Volumes that are there already are kept."""
    runs = [("flow", args.flow, tuple(reversed(STEPS)))]
    if args.student:
        known = MAISIPipeline.from_checkpoint(args.student).diffusion.num_step_sizes or 0
        runs.append(("student", args.student, tuple(2**k for k in range(known))))
    for model, path, numbers in runs:
        for steps in numbers:
            pipeline = MAISIPipeline.from_checkpoint(path, overrides=[f"sampler.steps={steps}"])
            folder = Path(args.output) / f"{model}_{steps}"
            folder.mkdir(parents=True, exist_ok=True)
            for name in pipeline.label_names():
                there = len(list(folder.glob(f"{name}_*.nii.gz")))
                if there >= args.number:
                    continue
                how = {"seed": args.seed, "batch_size": 8, "start": there}
                for volume in pipeline.generate(name, num_samples=args.number - there, **how):
                    volumes.write(folder / f"{name}_{volume.index:04d}.nii.gz", volume.data, volume.affine)
            yield Made(model, steps, folder)


def quality(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each set; print them as a table in Markdown."""
    how: dict[str, Any] = {}
    if args.autoencoder:
        how = {"extractors": ("autoencoder",), "autoencoder": args.autoencoder}
    settings = ImageSettings(split=args.split, replicates=args.replicates, **how)
    rows, reference = [], Path(args.output) / f"flow_{STEPS[-1]}"
    for made in list(make_sets(args)):
        row: dict[str, Any] = {"model": made.model, "steps": made.steps}
        scores = evaluate_images(Path(args.scans), made.folder, settings).evaluation.scores
        row |= _picked(scores, _METRICS)
        row["volumes"] = next(score["num_generated"] for score in scores if score["modality"] == "all")
        if made.folder != reference:
            own = evaluate_images(
                reference, made.folder, ImageSettings(replicates=0, **how)
            ).evaluation.scores
            row["kid_to_flow_30"] = _picked(own, {"kid": "KID"})["kid"]["value"]
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _picked(scores: Any, names: dict[str, str]) -> dict[str, dict[str, float]]:
    keys = ("value", "low", "high", "floor", "matched")
    return {
        score["metric"]: {key: score[key] for key in keys}
        for score in scores
        if score["metric"] in names and score["modality"] == "all"
    }


def _line(row: dict[str, Any]) -> str:
    cells = [row["model"], str(row["steps"])]
    for name in _METRICS:
        found = row[name]
        ends = "" if found["low"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
        cells.append(f"{found['value']:.4g}{ends} ({found['floor']:.3g})")
    cells.append(f"{row['kid_to_flow_30']:.4g}" if "kid_to_flow_30" in row else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--flow", help="run or checkpoint of a flow")
    parser.add_argument("--student", help="run or checkpoint that was distilled from it")
    parser.add_argument("--scans", help="folder of real volumes")
    parser.add_argument(
        "--autoencoder", help="stage 1 whose features KID compares, instead of a random network's"
    )
    parser.add_argument("--split", help="a split.json: only its test patients are compared")
    parser.add_argument("-n", "--number", type=int, default=32, help="volumes of each modality")
    parser.add_argument("-o", "--output", default="few_steps", help="folder of the volumes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replicates", type=int, default=100, help="bootstrap samples of the intervals")
    args, rest = parser.parse_known_args()
    bench = _harness.start("bench_few_steps", f"{__doc__}\n{parser.format_help()}", rest)
    cost(bench)
    if args.flow:
        if not args.scans:
            parser.error("--flow: expected --scans DIR too, a folder of real volumes to compare with")
        print(f"| model | steps | {' | '.join(_METRICS.values())} | KID to flow 30 |", flush=True)
        rows = quality(args)
        (Path(args.output) / "few_steps.json").write_text(json.dumps(rows, indent=2))
    bench.report(["monai"])


if __name__ == "__main__":
    main()
