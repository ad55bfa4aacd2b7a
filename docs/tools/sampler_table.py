"""Measure a trained model under different sampler settings and print the table of the docs.

    python docs/tools/sampler_table.py --model outputs/demo/from_scratch/stage2_label --data outputs/demo/data

Every setting draws the same number of volumes of each modality, with the same seeds. They are scored as in the demo:
Fréchet distance to held-out reconstructions in a few principal directions, within modalities, over that of as many
training volumes (1: as near to held-out patients as those are), diversity over
that of held-out patients, and the share whose modality a classifier recognises, trained on real volumes and
reconstructions.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prod9.config.load import config_from_dict
from prod9.config.schema import AutoencoderConfig, MaskingConfig, SamplerConfig
from prod9.demo.sets import VolumeSet, load_sets, reconstruct
from prod9.evaluation.judges.classifier import ModalityClassifier, train_classifier
from prod9.evaluation.judges.features import AutoencoderFeatures, extract
from prod9.evaluation.sets.distribution import FrechetRatio, diversity_ratio, frechet_ratio
from prod9.generator.condition import MaskGiTCondition
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.factory import ModelFactory
from prod9.pipelines.maskgit import MaskGiTPipeline, derived_seed

BASE: dict[str, Any] = {"steps": 12, "order": "halton", "temperature": 0.9}
SETTINGS: dict[str, dict[str, Any]] = {
    "4 steps": {"steps": 4},
    "8 steps": {"steps": 8},
    "**12 steps, halton, temperature 0.9**": {},
    "the same, other seeds": {"seed": 1000},
    "24 steps": {"steps": 24},
    "48 steps": {"steps": 48},
    "order random": {"order": "random"},
    "order confidence": {"order": "confidence"},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "remasking 0.2": {"remasking": 0.2},
    "24 steps, remasking 0.2": {"steps": 24, "remasking": 0.2},
    "48 steps, remasking 0.2": {"steps": 48, "remasking": 0.2},
    "guidance 1": {"guidance_scale": 1.0},
    "guidance 1, linear": {"guidance_scale": 1.0, "guidance_schedule": "linear"},
    "guidance 1, cosine": {"guidance_scale": 1.0, "guidance_schedule": "cosine"},
}


@dataclass(frozen=True)
class Judge:
    """Scores a set: holds real volumes, features of reconstructions, and the classifier."""

    test: VolumeSet
    train: VolumeSet
    train_features: Tensor
    test_features: Tensor
    extractor: AutoencoderFeatures
    classifier: ModalityClassifier

    def scores(self, volumes: Tensor, labels: Tensor) -> tuple[FrechetRatio, float, float]:
        """Return Fréchet ratio, diversity ratio and modality accuracy."""
        frechet = frechet_ratio(
            extract(self.extractor, volumes),
            self.train_features,
            self.test_features,
            generator=torch.Generator().manual_seed(0),
            generated_labels=labels,
            training_labels=self.train.labels,
            held_out_labels=self.test.labels,
            training_patients=self.train.patients,
            held_out_patients=self.test.patients,
            replicates=100,
        )
        diversity = diversity_ratio(
            volumes, self.test.volumes, generated_labels=labels, held_out_labels=self.test.labels
        )
        return frechet, diversity, self.classifier.accuracy(volumes, labels)


def make_judge(pipeline: MaskGiTPipeline, model: str, data: str, *, steps: int) -> Judge:
    """Train the classifier and take the features of the cohort in ``data``."""
    upstream = CheckpointManager.load_upstream(CheckpointManager.open(model))
    config = config_from_dict(upstream.header["config"], source=model, overrides=[f"data.root={data}"])
    assert isinstance(config, AutoencoderConfig)
    sets = load_sets(config)
    again = {
        part: sets[part].replaced(reconstruct(upstream.network, sets[part].volumes))
        for part in ("train", "test")
    }
    mixed = sets["train"].joined(again["train"])
    classifier = train_classifier(
        mixed.volumes, mixed.labels, num_classes=len(pipeline.label_map), seed=0, steps=steps
    )
    extractor = AutoencoderFeatures(upstream.network)
    return Judge(
        test=sets["test"],
        train=again["train"],
        train_features=extract(extractor, again["train"].volumes),
        test_features=extract(extractor, again["test"].volumes),
        extractor=extractor,
        classifier=classifier,
    )


def draw(pipeline: MaskGiTPipeline, per_label: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Return volumes ``[N 1 H W D]``, labels ``[N]`` and the CPU seconds of sampling per volume."""
    volumes, labels, seconds = [], [], 0.0
    for name in pipeline.label_names():
        label = pipeline.label_map[name]
        started = time.process_time()
        tokens = pipeline.sample_tokens(
            MaskGiTCondition(torch.full((per_label,), label)),
            seeds=[derived_seed(seed + k, label) for k in range(per_label)],
        )
        seconds += time.process_time() - started
        volumes += [torch.from_numpy(pipeline.decode_tokens(one[None])) for one in tokens]
        labels += [label] * per_label
    return torch.stack(volumes)[:, None], torch.tensor(labels), seconds / len(labels)


def rows(pipeline: MaskGiTPipeline, judge: Judge, masking: MaskingConfig, per_label: int) -> Iterator[str]:
    """Yield the lines of the table."""
    columns = ("Fréchet ratio (95% interval; N patients, D)", "diversity ratio", "modality accuracy")
    yield f"| setting | {' | '.join(columns)} | CPU seconds per volume |"
    yield "|---|---|---|---|---|"
    for name, change in SETTINGS.items():
        values = {**BASE, **change}
        seed = values.pop("seed", 0)
        pipeline.sampler = ModelFactory.create_sampler(SamplerConfig(**values), masking)
        volumes, labels, seconds = draw(pipeline, per_label, seed)
        frechet, diversity, accuracy = judge.scores(volumes, labels)
        low, high = frechet.interval or (float("nan"), float("nan"))
        mark = "" if frechet.reliable else " ?"
        ratio = f"{frechet.ratio:.2f}{mark} ({low:.2f} to {high:.2f}; {frechet.num_patients}, {frechet.dimensions})"
        yield f"| {name} | {ratio} | {diversity:.2f} | {accuracy:.0%} | {seconds:.2f} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="label-conditional run")
    parser.add_argument("--data", required=True, help="the cohort it was trained on")
    parser.add_argument("--volumes", type=int, default=8, help="volumes per modality and setting")
    parser.add_argument("--judge-steps", type=int, default=150, help="training steps of the classifier")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = MaskGiTPipeline.from_checkpoint(args.model)
    assert pipeline.config is not None
    judge = make_judge(pipeline, args.model, args.data, steps=args.judge_steps)
    known = judge.classifier.accuracy(judge.test.volumes, judge.test.labels)
    print(f"classifier on held-out real volumes: {known:.0%}", file=sys.stderr, flush=True)
    for line in rows(pipeline, judge, pipeline.config.masking, args.volumes):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
