"""``prod9 generate control``: volumes that follow a segmentation or source images, of either family.

Also ``prod9-train-maskgit-controlnet generate`` and ``prod9-train-maisi-controlnet generate``.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli.front.after import data_of, scoring
from prod9.cli.generate.inputs import find_segmentations, named_files, warn_of
from prod9.cli.generate.options import (
    ControlStrengthOption,
    Detail,
    LabelSchemeOption,
    LabelsOption,
    Model,
    Sampler,
    Samples,
    SegsOption,
    Target,
    grouped,
    require_seg,
)
from prod9.cli.generate.outputs import Inputs, OutputFolder, digest_of, report_made, require_distinct
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
from prod9.cli.naming import chosen_labels, spelt
from prod9.cli.parts.engine import Engine
from prod9.cli.stage import AutoencoderOption
from prod9.errors import ConfigError
from prod9.stages import CONTROLS

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.labels import GeneratedVolume
    from prod9.pipelines.segmentation import PlacedSegmentation
    from prod9.pipelines.steering import AbstractControlPipeline


NO_SEG = "sample"
"""What results are named after when no segmentation steers them."""


@grouped
def generate_control(
    *,
    model: Model,
    seg: SegsOption = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="FILE", help="The scan of a single --seg; it locates the head."),
    ] = None,
    label_scheme: LabelSchemeOption = "auto",
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            "-s",
            metavar="NAME=FILE",
            help="MAISI: a source image, e.g. T1=t1.nii.gz; repeatable.",
        ),
    ] = None,
    label: LabelsOption = None,
    control_strength: ControlStrengthOption = None,
    control_guidance_scale: Annotated[
        float | None,
        typer.Option("--control-guidance-scale", help="How far to go beyond control; 0 for none."),
    ] = None,
    stage2: Annotated[
        str | None,
        typer.Option(
            "--transformer",
            "--diffusion",
            metavar="NAME|PATH",
            help="Where stage 2 is now, if it has moved.",
        ),
    ] = None,
    autoencoder: AutoencoderOption = None,
    samples: Samples,
    sampler: Sampler,
    detail: Detail,
    target: Target,
    engine: Engine,
) -> None:
    """Generate volumes with lesions where a segmentation has them: `NAME_T1ce_0000.nii.gz` and so on.

    A segmentation of any orientation, size and spacing is brought to the model's grid as in training, and is written
    beside its volumes as `NAME_seg.nii.gz`. The model is stage 3 of either family; its checkpoint says which. Run it
    again after an interruption, and only what is missing is made.
    """
    strength = {"control_strength": control_strength, "control_guidance_scale": control_guidance_scale}
    changes = [(f"control.{key}", value) for key, value in strength.items() if value is not None]
    require_seg(label_scheme, "auto", seg)
    files, images = find_segmentations(seg or []), named_files(source or [])
    if reference is not None and len(files) != 1:
        raise ConfigError(f"--reference: expected a single segmentation to go with it, got {len(files)}")
    if images and len(files) > 1:
        raise ConfigError(f"--source: expected a single segmentation to go with it, got {len(files)}")
    detail.check(detail.path)
    require_models(stage2, autoencoder, detail.path)
    load = partial(_load, stage2=stage2, autoencoder=autoencoder, detail=detail)
    pipeline, config = build_pipeline(CONTROLS, load, model, [*sampler.changes(), *changes])
    labels = chosen_labels(label, pipeline.generator.label_names())
    images = spelt("--source", images, pipeline.source_modalities)
    for name in labels:
        pipeline.check(name, bool(files), bool(images))
    placed = _placed(pipeline, files, images, reference, label_scheme)
    inputs = {name: _inputs(one, files.get(name)) for name, one in placed.items()}
    series = [
        Series(
            title=f"{name} {wanted}",
            stem=f"{name}_{wanted}",
            num_samples=samples.num_samples,
            draw=partial(
                pipeline.generate, wanted, seg=one, seed=samples.seed, batch_size=samples.batch_size
            ),
            write=partial(_write, space=1 if one is None else one.space),
            noted={"source": name, "label": wanted},
            inputs=inputs[name],
            batch_size=samples.batch_size,
        )
        for name, one in placed.items()
        for wanted in labels
    ]
    require_distinct((_seg_name(name), files.get(name, name)) for name in placed)
    require_distinct((name, files.get(one.noted["source"], "")) for one in series for name in one.names)

    count = len(series) * samples.num_samples
    carry_out(
        target,
        describe=lambda: {
            "model": model.model or config.output_dir,
            "condition": pipeline.condition_type,
            "segmentations": len(placed) if pipeline.needs_seg else 0,
            "labels": ", ".join(labels),
            "volumes": count,
            **sampler_report(pipeline.generator),
            "disk_mb": disk_mb(count, pipeline.generator.grid),
        },
        settings=lambda: {
            "command": "generate control",
            "sha256": pipeline.generator.sha256,
            "seed": samples.seed,
            **sampling_settings(config),
            **detail_settings(pipeline.generator.detail),
        },
        make=lambda folder: _make(folder, placed, inputs, series),
        report=partial(report_made, total=count, then=scoring("control", real=data_of(config))),
        described=lambda: {"segmentations": _hashes({**files, **images})},
    )


def _make(
    folder: OutputFolder,
    placed: "dict[str, PlacedSegmentation | None]",
    inputs: dict[str, Inputs],
    series: list[Series],
) -> Iterator[str]:
    per_source = len(series) // len(placed)
    # The part that draws the first volume of a segmentation writes it.
    segs = {
        name: (one, folder.part.owns(place * per_source))
        for place, (name, one) in enumerate(placed.items())
        if one is not None and one.has_seg
    }
    mine = {name: one for name, (one, is_mine) in segs.items() if is_mine}
    folder.expect([_seg_name(name) for name in mine], of=[_seg_name(name) for name in segs], count=0)
    for name, one in mine.items():
        _write_seg(folder, _seg_name(name), one, inputs[name])
    return make_series(folder, series)


def _placed(
    pipeline: "AbstractControlPipeline",
    files: dict[str, Path],
    images: dict[str, Path],
    reference: Path | None,
    label_scheme: str,
) -> "dict[str, PlacedSegmentation | None]":
    """Return by name what steers: the segmentations on the model's grid, or the images alone."""
    if not files:
        return {NO_SEG: pipeline.place(None, sources=images) if images else None}
    placed: dict[str, PlacedSegmentation | None] = {}
    for name, file in files.items():
        placed[name] = one = pipeline.place(
            file, reference=reference, label_scheme=label_scheme, sources=images
        )
        warn_of(one, file)
    return placed


def _load(
    source: "Source", *, settings: "RunConfig", stage2: str | None, detail: Detail, **chosen: Any
) -> "AbstractControlPipeline":
    chosen["detail"] = detail.choice()
    if settings.stage == "maisi_controlnet":
        from prod9.pipelines.maisi_control import MAISIControlPipeline

        return MAISIControlPipeline.from_checkpoint(source, settings=settings, diffusion=stage2, **chosen)
    from prod9.pipelines.control import ControlPipeline

    return ControlPipeline.from_checkpoint(source, settings=settings, transformer=stage2, **chosen)


def _inputs(seg: "PlacedSegmentation | None", file: Path | None) -> Inputs:
    """Return the content of a source on the model's grid, whichever files and options it came from."""
    if seg is None:
        return {}
    content = {"sha256": digest_of(seg.seg if seg.has_seg else None, seg.affine, seg.images)}
    return {"segmentation": content if file is None else {**content, "path": str(file.absolute())}}


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    from prod9.files import sha256

    return {name: sha256(file) for name, file in files.items()}


def _seg_name(source: str) -> str:
    return f"{source}_seg.nii.gz"


def _write(path: Path, volume: "GeneratedVolume", *, space: int) -> None:
    from prod9 import volumes

    volumes.write(path, volume.data, volume.affine, space=space)


def _write_seg(folder: OutputFolder, name: str, seg: "PlacedSegmentation", inputs: Inputs) -> None:
    from prod9 import volumes

    if not folder.is_done(name, inputs):
        noted = {"kind": "segmentation", "found_by": seg.found_by, "cut": round(seg.cut, 4)}
        with folder.writing(name, inputs=inputs, **noted) as target:
            volumes.write(target, seg.seg, seg.affine, dtype="uint8", space=seg.space)
