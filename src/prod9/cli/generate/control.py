"""``prod9 generate control``: volumes that follow a segmentation or source images, of either family.

Also ``prod9-train-maskgit-controlnet generate`` and ``prod9-train-maisi-controlnet generate``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.generate.options import (
    GuidanceScaleOption,
    GuidanceScheduleOption,
    OrderOption,
    RemaskingOption,
    StepsOption,
    TemperatureOption,
    TopPOption,
    sampler_changes,
)
from prod9.cli.generate.outputs import (
    Inputs,
    OutputFolder,
    consecutive,
    digest_of,
    report_made,
    require_distinct,
)
from prod9.cli.naming import chosen_labels, spelt
from prod9.cli.shared import (
    CheckOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OutputsOption,
    OverwriteOption,
    PrintConfigOption,
    SetOption,
)
from prod9.cli.stage import (
    AutoencoderOption,
    ModelOption,
    OptionalConfigOption,
    load_for_model,
    print_check,
)
from prod9.devices import torch_device
from prod9.errors import ConfigError, DataError
from prod9.stages import CONTROLS
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.segmentation import PlacedSegmentation
    from prod9.pipelines.steering import AbstractControlPipeline

SAMPLING = ("control", "sampler", "masking", "sliding_window")
"""Sections of a config that decide what is sampled, where it has them."""
NO_SEG = "sample"
"""What results are named after when no segmentation steers them."""
_CUT = 0.001
"""Share of a segmentation beyond the grid that is worth a warning."""


def generate_control(
    output_dir: OutputsOption,
    model: ModelOption = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    seg: Annotated[
        list[Path] | None,
        typer.Option("--seg", metavar="FILE|DIR", help="Segmentation, or a folder of them; repeatable."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="FILE", help="The scan a single --seg lies on; finds the head."),
    ] = None,
    label_scheme: Annotated[
        str,
        typer.Option(
            "--label-scheme", metavar="NAME|TABLE", help="What its values mean, e.g. brats2021 or `1=2, 2=1`."
        ),
    ] = "auto",
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source", metavar="NAME=FILE", help="MAISI: a source image, e.g. T1=t1.nii.gz; repeatable."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="NAME|all", help="Modality, e.g. T1ce; repeatable. [all]"),
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Volumes of each segmentation and label.")
    ] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Volumes sampled together.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Volume k is drawn with this seed plus k.")] = 0,
    control_strength: Annotated[
        float | None, typer.Option("--control-strength", help="Factor of what control adds; 0 is the base.")
    ] = None,
    control_guidance_scale: Annotated[
        float | None,
        typer.Option("--control-guidance-scale", help="How far to go beyond control; 0 for none."),
    ] = None,
    steps: StepsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    order: OrderOption = None,
    remasking: RemaskingOption = None,
    guidance_scale: GuidanceScaleOption = None,
    guidance_schedule: GuidanceScheduleOption = None,
    solver: Annotated[
        str | None, typer.Option("--solver", metavar="euler|heun", help="MAISI: how the flow is integrated.")
    ] = None,
    stage2: Annotated[
        str | None,
        typer.Option(
            "--transformer", "--diffusion", metavar="PATH", help="Where stage 2 is now, if it has moved."
        ),
    ] = None,
    autoencoder: AutoencoderOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Generate volumes whose lesions lie where a segmentation says: `NAME_T1ce_0000.nii.gz` and so on.

    A segmentation of any orientation, size and spacing is brought to the model's grid as in training, and lies
    beside its volumes as `NAME_seg.nii.gz`. The model is stage 3 of either family; its checkpoint says which. Run it
    again after an interruption, and only what is missing is made.
    """
    changes = sampler_changes(
        overrides,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        order=order,
        remasking=remasking,
        guidance_scale=guidance_scale,
        guidance_schedule=guidance_schedule,
        solver=solver,
    )
    strength = {"control_strength": control_strength, "control_guidance_scale": control_guidance_scale}
    changes += [(f"control.{key}", value) for key, value in strength.items() if value is not None]
    run_config, opened = load_for_model(CONTROLS, config, model, overrides=changes)
    if print_config:
        shared.print_config(run_config)
        return
    files, shown = find_segmentations(seg or []), find_sources(source or [])
    if reference is not None and len(files) != 1:
        raise ConfigError(f"--reference: expected a single segmentation to go with it, got {len(files)}")
    if shown and len(files) > 1:
        raise ConfigError(f"--source: expected a single segmentation to go with it, got {len(files)}")
    pipeline = _load_pipeline(opened, run_config, device, stage2, autoencoder)
    del opened  # its weights are in the networks now
    labels = chosen_labels(label, pipeline.generator.label_names())
    shown = spelt("--source", shown, pipeline.source_modalities)
    for name in labels:
        pipeline.check(name, bool(files), bool(shown))
    placed = {
        name: pipeline.place(file, reference=reference, label_scheme=label_scheme, sources=shown)
        for name, file in files.items()
    }
    if shown and not files:
        placed = {NO_SEG: pipeline.place(None, sources=shown)}
    _warn(placed, files)
    sources = placed or {NO_SEG: None}
    if check:
        where = model or run_config.output_dir
        print_check(_describe(pipeline, labels, len(sources), num_samples, where), as_json)
        return
    from prod9.files import sha256

    require_distinct(
        (name, files.get(source, source))
        for source in sources
        for name in (
            _seg_name(source),
            *(_name(source, one, k) for one in labels for k in range(num_samples)),
        )
    )
    settings = _settings(pipeline, run_config, seed)
    inputs = {name: _inputs(seg, files.get(name)) for name, seg in sources.items()}
    described = {"segmentations": {name: sha256(file) for name, file in {**files, **shown}.items()}}
    again = f"What was made is in {output_dir}; run the same command again for the rest."
    with (
        OutputFolder(Path(output_dir), settings, described=described, overwrite=overwrite) as folder,
        shared.resumable(again),
    ):
        made = list(_generate(pipeline, folder, sources, inputs, labels, num_samples, seed, batch_size))
    report_made(folder, made, len(sources) * len(labels) * num_samples, as_json)


def find_segmentations(given: Sequence[Path]) -> dict[str, Path]:
    """Return output name → segmentation file.

    Of a folder's files those whose names say ``seg``, or all where no name does and none names a modality.
    Raises DataError when there is nothing, ConfigError when two would get one name.
    """
    from prod9.data.layouts.names import SEG, parse_modality
    from prod9.data.layouts.scan import find_volumes as walk_volumes
    from prod9.data.layouts.scan import no_volumes, unreachable

    files: dict[str, Path] = {}
    for path in (expand(p) for p in given):
        found = [path]
        if path.is_dir():
            inside = walk_volumes(path)
            kinds = {p: parse_modality(p.name) for p in inside}
            named = [p for p in inside if kinds[p] == SEG]
            found = named or [p for p in inside if kinds[p] is None]
        if not found or not found[0].exists():
            if path.is_symlink() and (message := unreachable(path)) is not None:
                raise DataError(message)
            got = no_volumes(path) if path.is_dir() else "got nothing there"
            raise DataError(f"{path}: expected a segmentation (.nii or .nii.gz) or a folder of them, {got}")
        for file in found:
            name = _stem(file.name)
            if name in files:
                raise ConfigError(f"{files[name]} and {file} would both become {name}; give one at a time")
            files[name] = file
    return files


def find_sources(given: Sequence[str]) -> dict[str, Path]:
    """Return modality → file of ``NAME=FILE`` each; ConfigError for anything else, DataError for no file."""
    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in files:
            raise ConfigError(f"--source: expected NAME=FILE such as T1=t1.nii.gz, each once, got {text!r}")
        files[name] = expand(path)
        if not files[name].is_file():
            raise DataError(f"{files[name]}: expected a source image, got nothing there; check the path")
    return files


def _stem(name: str) -> str:
    """Return a file's name without its suffix and a trailing ``seg``."""
    from prod9.data.layouts.names import bare

    stem = bare(name)
    for word in ("segm", "seg"):
        if stem.lower().endswith(word) and stem[: -len(word)].rstrip("-_. "):
            return stem[: -len(word)].rstrip("-_. ")
    return stem


def _load_pipeline(
    source: "Source", config: "RunConfig", device: str, stage2: str | None, autoencoder: str | None
) -> "AbstractControlPipeline":
    from prod9.config.load import config_to_dict

    # The config was checked already, with the changes of the command line; only these sections matter here.
    values = config_to_dict(config)
    sections, chosen = (
        [(name, values[name]) for name in SAMPLING if name in values],
        torch_device(device),
    )
    if config.stage == "maisi_controlnet":
        from prod9.pipelines.maisi_control import MAISIControlPipeline

        return MAISIControlPipeline.from_checkpoint(
            source, device=chosen, diffusion=stage2, autoencoder=autoencoder, overrides=sections
        )
    from prod9.pipelines.control import ControlPipeline

    return ControlPipeline.from_checkpoint(
        source, device=chosen, transformer=stage2, autoencoder=autoencoder, overrides=sections
    )


def _warn(placed: "Mapping[str, PlacedSegmentation]", files: Mapping[str, Path]) -> None:
    for name, one in placed.items():
        for text in _doubts(one) if one.has_seg else ():
            shared.warn(f"{files[name]}: {text}.")


def _doubts(placed: "PlacedSegmentation") -> Iterator[str]:
    """Yield what of a segmentation may not be what the user thinks it is."""
    from prod9.data.seg_loss import describe_loss

    if not placed.seg.any():
        yield "nothing is segmented: the volumes will show a brain without lesion"
    elif placed.found_by == "field":
        yield (
            "no scan beside it, so its field of view is centred on the grid where training centres the "
            "head; --reference SCAN does better"
        )
    if placed.cut > _CUT:
        yield f"{placed.cut:.1%} of what is segmented lies beyond the model's grid and is lost"
    if placed.doubt is not None:
        yield placed.doubt
    loss = describe_loss(placed.kept)
    if loss is not None:
        yield f"some of it falls between the voxels of the model ({loss})"


def _describe(
    pipeline: "AbstractControlPipeline", labels: list[str], sources: int, num_samples: int, model: str
) -> dict[str, Any]:
    generator = pipeline.generator
    count = sources * len(labels) * num_samples
    voxels = generator.grid[0] * generator.grid[1] * generator.grid[2]
    return {
        "model": model,
        "condition": pipeline.condition_type,
        "segmentations": sources if pipeline.needs_seg else 0,
        "labels": ", ".join(labels),
        "volumes": count,
        "grid": list(generator.grid),
        "tokens": list(generator.latent_grid),
        "steps": generator.steps,
        "device": str(generator.device),
        "disk_mb": round(count * voxels * 4 / 1e6, 1),
    }


def _settings(pipeline: "AbstractControlPipeline", config: "RunConfig", seed: int) -> dict[str, Any]:
    from prod9.config.load import config_to_dict

    values = config_to_dict(config)
    return {
        "command": "generate control",
        "sha256": pipeline.generator.sha256,
        "seed": seed,
        **{name: values[name] for name in SAMPLING if name in values},
    }


def _inputs(seg: "PlacedSegmentation | None", file: Path | None) -> Inputs:
    """Return what a source is to the model: the content on its grid, whichever files and options it came from."""
    if seg is None:
        return {}
    content = {"sha256": digest_of(seg.seg if seg.has_seg else None, seg.affine, seg.images)}
    return {"segmentation": content if file is None else {**content, "path": str(file.absolute())}}


def _name(source: str, label: str, index: int) -> str:
    return f"{source}_{label}_{index:04d}.nii.gz"


def _seg_name(source: str) -> str:
    return f"{source}_seg.nii.gz"


def _generate(
    pipeline: "AbstractControlPipeline",
    folder: OutputFolder,
    sources: "Mapping[str, PlacedSegmentation | None]",
    inputs: Mapping[str, Inputs],
    labels: list[str],
    num_samples: int,
    seed: int,
    batch_size: int,
) -> Iterator[str]:
    from prod9 import volumes

    with shared.progress() as bar:
        for source, seg in sources.items():
            if seg is not None and seg.has_seg:
                _write_seg(folder, _seg_name(source), seg, inputs[source])
            for label in labels:
                names = [_name(source, label, k) for k in range(num_samples)]
                missing = [k for k, name in enumerate(names) if not folder.is_done(name, inputs[source])]
                task = bar.add_task(f"{source} {label}", total=len(missing), visible=bool(missing))
                done = 0
                for start, count in consecutive(missing):

                    def report(share: float, _: int, task: Any = task, done: int = done) -> None:
                        bar.update(task, completed=done + share)

                    for volume in pipeline.generate(
                        label,
                        seg=seg,
                        num_samples=count,
                        seed=seed,
                        batch_size=batch_size,
                        start=start,
                        progress=report,
                    ):
                        name = names[volume.index]
                        noted = {"source": source, "label": label, "index": volume.index, "seed": volume.seed}
                        space = 1 if seg is None else seg.space
                        with folder.writing(name, inputs=inputs[source], **noted) as target:
                            volumes.write(target, volume.data, volume.affine, space=space)
                        yield name
                    done += count


def _write_seg(folder: OutputFolder, name: str, seg: "PlacedSegmentation", inputs: Inputs) -> None:
    from prod9 import volumes

    if not folder.is_done(name, inputs):
        noted = {"kind": "segmentation", "found_by": seg.found_by, "cut": round(seg.cut, 4)}
        with folder.writing(name, inputs=inputs, **noted) as target:
            volumes.write(target, seg.seg, seg.affine, dtype="uint8", space=seg.space)
