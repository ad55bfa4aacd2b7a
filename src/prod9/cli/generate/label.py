"""``prod9 generate label``: volumes of a class label, of either family.

Also ``prod9-train-transformer generate`` and ``prod9-train-maisi-diffusion generate``.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli.front.after import data_of, scoring
from prod9.cli.front.spacing import SPACING, checked_spacing, spacing_of
from prod9.cli.generate.options import Detail, LabelsOption, Model, Sampler, Samples, Target, grouped
from prod9.cli.generate.outputs import report_made
from prod9.cli.generate.run import (
    Series,
    build_pipeline,
    carry_out,
    detail_settings,
    disk_mb,
    make_series,
    require_models,
    sampler_report,
    sampling_settings,
)
from prod9.cli.naming import chosen_labels
from prod9.cli.parts.engine import Engine
from prod9.cli.stage import AutoencoderOption
from prod9.errors import ConfigError
from prod9.stages import GENERATORS

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.labels import AbstractLabelPipeline, GeneratedVolume


@grouped
def generate_labels(
    *,
    model: Model,
    label: LabelsOption = None,
    example: Annotated[
        list[Path] | None,
        typer.Option(
            "--example", metavar="FILE", help="Few-shot: another volume of the one label; repeatable."
        ),
    ] = None,
    autoencoder: AutoencoderOption = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            metavar=SPACING,
            callback=checked_spacing,
            help="MAISI: mm of a voxel; default: as trained.",
        ),
    ] = None,
    set_covariate: Annotated[
        list[str] | None,
        typer.Option(
            "--set-covariate",
            metavar="NAME=VALUE",
            help="Covariate of the patients, e.g. age=60, or age=40:80 for each its own; repeatable.",
        ),
    ] = None,
    samples: Samples,
    sampler: Sampler,
    detail: Detail,
    target: Target,
    engine: Engine,
) -> None:
    """Generate volumes of a class label: `T1_0000.nii.gz` and so on, with a manifest.

    The model is a transformer of MaskGiT or a diffusion network of MAISI; its checkpoint says which.
    Run it again with a larger --num-samples, or after an interruption, and only what is missing is made.
    """
    if example:
        from prod9.volumes import read_header

        for file in example:
            read_header(file)
    detail.check(detail.path)
    require_models(autoencoder, detail.path)
    load = partial(_load, autoencoder=autoencoder, spacing=spacing_of(spacing), detail=detail)
    pipeline, config = build_pipeline(GENERATORS, load, model, sampler.changes())
    covariates = _covariates(set_covariate or [])
    if covariates:
        pipeline.set_covariates(covariates)
    labels = chosen_labels(label, pipeline.label_names())
    shown = _shown(pipeline, labels, example or [])
    arguments = {"seed": samples.seed, "batch_size": samples.batch_size, **shown}
    count = samples.num_samples * len(labels)
    carry_out(
        target,
        describe=lambda: {
            "model": model.model or config.output_dir,
            "labels": ", ".join(labels),
            "volumes": count,
            **sampler_report(pipeline),
            "disk_mb": disk_mb(count, pipeline.grid),
        },
        settings=lambda: {
            **_settings(pipeline, config, samples.seed, spacing_of(spacing), example or []),
            **({"covariates": covariates} if covariates else {}),
        },
        make=lambda folder: make_series(
            folder,
            [
                Series(
                    title=name,
                    stem=name,
                    num_samples=samples.num_samples,
                    draw=partial(pipeline.generate, name, **arguments),
                    write=_write,
                    noted={"label": name},
                    batch_size=samples.batch_size,
                )
                for name in labels
            ],
        ),
        report=partial(report_made, total=count, then=scoring("images", real=data_of(config))),
    )


def _covariates(given: Sequence[str]) -> dict[str, str]:
    """Return name → value of ``--set-covariate NAME=VALUE`` each; ConfigError for other texts, or a name twice."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value) or name in found:
            raise ConfigError(
                f"--set-covariate: expected NAME=VALUE such as age=60, each name once, got {text!r}."
            )
        found[name] = value
    return found


def _load(
    source: "Source",
    *,
    settings: "RunConfig",
    spacing: tuple[float, float, float] | None,
    detail: Detail,
    **chosen: Any,
) -> "AbstractLabelPipeline":
    chosen["detail"] = detail.choice()
    if settings.stage == "maisi_diffusion":
        from prod9.pipelines.maisi import MAISIPipeline

        return MAISIPipeline.from_checkpoint(source, settings=settings, spacing=spacing, **chosen)
    if spacing is not None:
        raise ConfigError(
            "--spacing: expected a MAISI model, got a transformer, which has no spacing; leave it out"
        )
    from prod9.pipelines.maskgit import MaskGiTPipeline

    return MaskGiTPipeline.from_checkpoint(source, settings=settings, **chosen)


def _shown(pipeline: "AbstractLabelPipeline", labels: Sequence[str], files: Sequence[Path]) -> dict[str, Any]:
    """Return the examples of a few-shot model as an argument of ``generate``; they are prepared as in training."""
    if not files:
        return {}
    from prod9 import volumes
    from prod9.pipelines.maskgit import MaskGiTPipeline

    if not isinstance(pipeline, MaskGiTPipeline):
        raise ConfigError("--example: expected a transformer of kind single_stream, got a MAISI model")
    if len(labels) != 1:
        raise ConfigError(f"--example: expected one --label, that of the examples, got {', '.join(labels)}")
    placed = [pipeline.placement.place({labels[0]: volumes.read(file)}) for file in files]
    return {"examples": pipeline.encode_examples([one.images[labels[0]] for one in placed])}


def _settings(
    pipeline: "AbstractLabelPipeline",
    config: "RunConfig",
    seed: int,
    spacing: tuple[float, float, float] | None,
    examples: Sequence[Path],
) -> dict[str, Any]:
    from prod9.files import sha256

    return {
        "command": "generate label",
        "sha256": pipeline.sha256,
        "seed": seed,
        **sampling_settings(config),
        **detail_settings(pipeline.detail),
        **({"spacing": list(spacing)} if spacing is not None else {}),
        **({"examples": [sha256(file) for file in examples]} if examples else {}),
    }


def _write(path: Path, volume: "GeneratedVolume") -> None:
    from prod9 import volumes

    volumes.write(path, volume.data, volume.affine)
