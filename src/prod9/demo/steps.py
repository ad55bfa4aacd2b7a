"""The demo step by step; each can be interrupted and goes on, or is skipped, the next time.

The steps call what the commands call: the simulated folder is read by the code that reads BraTS, stages are
trained by ``training.run``, volumes come from the pipeline.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.data.layouts import find_cases
from prod9.data.simulation import simulate_cohort
from prod9.demo.pictures import write_pictures
from prod9.demo.plan import VARIANT, DemoPlan
from prod9.demo.scores import Metrics, VolumeSet, load_volumes, score_stage1, score_stage2
from prod9.files import atomic_write
from prod9.pipelines.maskgit import MaskGiTPipeline
from prod9.training.brats_data import BraTSDataModule
from prod9.training.config_schema import AutoencoderConfig
from prod9.training.model.checkpoint_manager import CheckpointManager
from prod9.training.run import train
from prod9.training.run_folder import peak_memory_gib
from prod9.volumes import read, write

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reporter:
    """How the demo speaks. say: one line. bar: opens a progress bar with time left for a named step."""

    say: Callable[[str], None]
    bar: Callable[[str], Any]


def run_demo(plan: DemoPlan, *, report: Reporter, device: str = "auto") -> Metrics:
    """Do whatever of ``plan`` is not done yet and return its block of metrics.

    Writes ``volumes/``, ``checkpoints/`` of both stages under ``plan.run_dir``, ``montage.png``,
    ``generated.png`` and, last, ``metrics.json`` in ``plan.output_dir``.
    """
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    _simulate(plan, report)
    stage1 = plan.stage1()
    stage1_dir = _train(stage1, plan, "stage1", report, device)
    stage2 = plan.stage2(stage1_dir)
    stage2_dir = _train(stage2, plan, "stage2_label", report, device)
    generated, labels = _generate(plan, stage2_dir, report, device)
    stages = _score(plan, stage1, stage1_dir, stage2_dir, generated, labels, report)
    block = {
        "seconds": round(_seconds(plan, time.monotonic() - began), 1),
        "peak_rss_gib": round(peak_memory_gib(), 2),
        "patients": plan.num_patients,
        "seed": plan.seed,
        "stages": stages,
    }
    _write_metrics(plan, block)
    return block


def _simulate(plan: DemoPlan, report: Reporter) -> None:
    with report.bar(f"Simulating {plan.num_patients} patients") as progress:
        simulate_cohort(
            plan.data_dir,
            num_subjects=plan.num_patients,
            spacing_mm=plan.spacing_mm,
            seed=plan.seed,
            progress=progress,
        )
    # Read back at once: a folder that training would refuse should be refused before anything is trained.
    find_cases(plan.data_dir)


def _train(config: Any, plan: DemoPlan, stage: str, report: Reporter, device: str) -> Path:
    output_dir = Path(config.output_dir)
    report.say(f"Training {stage}: {config.training.max_steps} steps")
    train(config, resume="auto", device=device)
    return output_dir


def _generate(
    plan: DemoPlan, stage2_dir: Path, report: Reporter, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate what is not there yet; return all volumes ``[N 1 H W D]`` and their labels."""
    pipeline = MaskGiTPipeline.from_checkpoint(stage2_dir, device=_torch_device(device))
    names = pipeline.label_names()
    total = len(names) * plan.volumes_per_modality
    folder = plan.run_dir / "volumes"
    folder.mkdir(parents=True, exist_ok=True)
    volumes, labels = [], []
    with report.bar(f"Generating {total} volumes") as progress:
        for position, name in enumerate(names):
            paths = [folder / f"{name}_{k:04d}.nii.gz" for k in range(plan.volumes_per_modality)]
            start = next((k for k, path in enumerate(paths) if not path.exists()), len(paths))
            if start < len(paths):
                for volume in pipeline.generate(
                    name, num_samples=len(paths) - start, start=start, seed=plan.seed, batch_size=8
                ):
                    write(paths[volume.index], volume.data, volume.affine)
                    progress(position * len(paths) + volume.index + 1, total)
            volumes += [torch.from_numpy(read(path).data)[None] for path in paths]
            labels += [pipeline.label_map[name]] * len(paths)
            progress((position + 1) * len(paths), total)
    return torch.stack(volumes), torch.tensor(labels)


def _score(
    plan: DemoPlan,
    stage1: AutoencoderConfig,
    stage1_dir: Path,
    stage2_dir: Path,
    generated: torch.Tensor,
    labels: torch.Tensor,
    report: Reporter,
) -> Metrics:
    sets = _load_sets(stage1)
    autoencoder = CheckpointManager.load_autoencoder(stage1_dir).network
    assert isinstance(autoencoder, AutoencoderFSQ)
    report.say("Scoring reconstructions of held-out patients")
    stages: Metrics = {"stage1": score_stage1(autoencoder, sets["train"], sets["test"])}
    stages["stage2_label"] = score_stage2(
        autoencoder, sets, generated, labels, seed=plan.seed, judge_steps=plan.judge_steps, say=report.say
    )
    report.say("Drawing")
    write_pictures(
        plan.output_dir, autoencoder=autoencoder, held_out=sets["test"], generated=generated, labels=labels,
        label_map=stage1.data.label_map,
    )  # fmt: skip
    return stages


def _load_sets(config: AutoencoderConfig) -> dict[str, VolumeSet]:
    data = BraTSDataModule(config)
    return {
        part: load_volumes(data.build_patients(part), config.data.label_map)
        for part in ("train", "val", "test")
    }


def _seconds(plan: DemoPlan, this_session: float) -> float:
    """Add this session's time to that of interrupted ones, and keep the sum."""
    path = plan.run_dir / "seconds.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(before + this_session), encoding="utf-8")
    return before + this_session


def _write_metrics(plan: DemoPlan, block: Metrics) -> None:
    path = plan.output_dir / "metrics.json"
    content = {**block, VARIANT: block}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _torch_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
