"""The demo's stage 2b: every modality of held-out patients made from the three others."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prod9.demo.scores import Metrics
from prod9.demo.sets import VolumeSet
from prod9.evaluation.judges.segmenter import Segmenter
from prod9.evaluation.translation import (
    BOTH,
    SOURCES,
    TOKENS,
    Translations,
    TranslationSet,
    score_translation,
)
from prod9.pipelines.translation import TranslationPipeline
from prod9.system.progress import Progress
from prod9.volumes import write

NUM_SAMPLES = 4
"""Samples per deviation."""
READ_BACK = ("T1ce", "FLAIR")
"""Targets in which a segmenter looks for the tumour."""

SegmenterOf = Callable[[int], Segmenter]


def score_translations(
    pipeline: TranslationPipeline,
    training: VolumeSet,
    held_out: VolumeSet,
    *,
    segmenter_of: SegmenterOf,
    folder: Path,
    seed: int,
    progress: Progress,
) -> Metrics:
    """Make each modality of every held-out patient from the others and score it beside the baselines.

    Args:
        pipeline: the translator.
        training: volumes that the baselines are fitted to.
        held_out: volumes of patients that no stage was trained on.
        segmenter_of: gives a segmenter trained on real volumes of a class label.
        folder: where the volumes go.
        seed: of the samples.
        progress: called with the patients done and their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = pipeline.generator.label_names()
    count = len(held_out.of(pipeline.generator.label_map[names[0]]).volumes)
    scores: Metrics = {}
    for position, target in enumerate(names):
        made = _translate(
            pipeline,
            held_out,
            target,
            seed,
            lambda k, p=position: progress(p * count + k, count * len(names)),
        )
        label = pipeline.generator.label_map[target]
        real = _patients(pipeline, held_out, target)
        scores[target] = score_translation(
            _patients(pipeline, training, target),
            real,
            made,
            segmenter=segmenter_of(label) if target in READ_BACK else None,
        )
        for k, volume in enumerate(made.rows[made.result]):
            write(folder / f"{target}_{k:04d}.nii.gz", volume[0].numpy(), pipeline.generator.affine)
    return scores


def _sources(pipeline: TranslationPipeline, target: str) -> list[str]:
    return [name for name in pipeline.generator.label_names() if name != target]


def _patients(pipeline: TranslationPipeline, volumes: VolumeSet, target: str) -> TranslationSet:
    labels = pipeline.generator.label_map
    others = [volumes.of(labels[name]).volumes for name in _sources(pipeline, target)]
    own = volumes.of(labels[target])
    return TranslationSet(torch.cat(others, dim=1), own.volumes, own.lesions, own.patients)


def _translate(
    pipeline: TranslationPipeline, held_out: VolumeSet, target: str, seed: int, done: Callable[[int], None]
) -> Translations:
    """Return the expected volume of each patient in every row, and mean and deviation over samples."""
    patients = _patients(pipeline, held_out, target)
    names = _sources(pipeline, target)
    rows: dict[str, list[np.ndarray]] = {TOKENS: [], SOURCES: [], BOTH: []}
    means, deviations = [], []
    for k, volumes in enumerate(patients.sources.numpy()):
        sources = dict(zip(names, volumes, strict=True))
        tokens = pipeline.translate(sources, target, decode="mean", refine=False).mean
        rows[TOKENS].append(tokens)
        rows[SOURCES].append(pipeline.refined(np.zeros_like(tokens), sources, target)[0])
        rows[BOTH].append(pipeline.refined(tokens, sources, target)[0])
        drawn = pipeline.translate(
            sources, target, num_samples=NUM_SAMPLES, seed=seed + k * NUM_SAMPLES, batch_size=NUM_SAMPLES
        )
        assert drawn.deviation is not None  # there are several samples
        means.append(drawn.mean)
        deviations.append(drawn.deviation)
        done(k + 1)
    return Translations(
        {name: _stack(made) for name, made in rows.items()},
        deviation=_stack(deviations),
        sampled_mean=_stack(means),
    )


def _stack(volumes: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(volumes))[:, None]
