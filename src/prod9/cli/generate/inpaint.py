"""``prod9 generate inpaint``: a region of a volume drawn anew."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.generate.options import (
    OrderOption,
    RemaskingOption,
    StepsOption,
    TemperatureOption,
    TopPOption,
    sampler_changes,
)
from prod9.cli.generate.outputs import OutputFolder, consecutive, inputs_of, report_made
from prod9.cli.naming import known_as
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
from prod9.cli.stage import AutoencoderOption, ModelOption, OptionalConfigOption, load_for_model, print_check
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.system.machine import expand

if TYPE_CHECKING:
    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.inpainting import InpaintingPipeline
    from prod9.volumes import VolumeFile


@dataclass(frozen=True)
class _Asked:
    """What is to be drawn, and where."""

    source: Path
    region: Path
    label: str
    seg: Path | None
    label_scheme: str
    healthy: bool
    resample: bool
    seed: int

    @property
    def files(self) -> dict[str, Path]:
        """The files that are given."""
        every = {"source": self.source, "region": self.region, "seg": self.seg}
        return {name: expand(file) for name, file in every.items() if file is not None}


def inpaint(
    source: Annotated[Path, typer.Option("--source", "-s", metavar="FILE", help="The volume.")],
    region: Annotated[
        Path, typer.Option("--region", "-r", metavar="FILE", help="Not 0 where to draw, on its voxels.")
    ],
    label: Annotated[str, typer.Option("--label", "-l", metavar="NAME", help="Its modality, e.g. T1.")],
    output_dir: OutputsOption,
    model: ModelOption = None,
    config: OptionalConfigOption = None,
    overrides: SetOption = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Volumes to make.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Volumes sampled together.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Volume k is drawn with this seed plus k.")] = 0,
    blend: Annotated[
        float, typer.Option("--blend", min=0.0, help="Voxels inwards that are levelled to the surroundings.")
    ] = 2.0,
    margin: Annotated[
        int, typer.Option("--margin", min=0, help="Tokens around the region that are drawn anew as well.")
    ] = 0,
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring a region of other voxels to those of the source.")
    ] = False,
    control: Annotated[
        str | None,
        typer.Option("--control", metavar="RUN", help="A control network of this model: follow --seg."),
    ] = None,
    seg: Annotated[
        Path | None,
        typer.Option("--seg", metavar="FILE", help="What shall be there, on the source's voxels."),
    ] = None,
    label_scheme: Annotated[
        str, typer.Option("--label-scheme", metavar="NAME|TABLE", help="What the values of --seg mean.")
    ] = "canonical",
    healthy: Annotated[
        bool, typer.Option("--healthy", help="With --control: no lesion within the region.")
    ] = False,
    steps: StepsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    order: OrderOption = None,
    remasking: RemaskingOption = None,
    autoencoder: AutoencoderOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
    print_config: PrintConfigOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw a region of a volume anew: `NAME_0000.nii.gz` and so on, with a manifest.

    Every voxel outside of the region is that of the source, bit for bit, on the source's own voxels. A control
    network decides what is drawn: `--healthy` for tissue without lesion, or a lesion where `--seg` says.
    """
    if (seg is not None or healthy) and control is None:
        raise ConfigError(
            f"{'--seg' if seg is not None else '--healthy'}: expected --control RUN with it, got none; without "
            "a control network the surroundings alone decide what is drawn"
        )
    changes = sampler_changes(
        overrides, steps=steps, temperature=temperature, top_p=top_p, order=order, remasking=remasking
    )
    run_config, opened = load_for_model("transformer", config, model, overrides=changes)
    if print_config:
        shared.print_config(run_config)
        return
    from prod9 import volumes

    asked = _Asked(source, region, label, seg, label_scheme, healthy, resample, seed)
    for file in asked.files.values():
        for text in volumes.cautions(volumes.read_header(file)).values():
            shared.warn(text)
    pipeline = _load_pipeline(opened, run_config, device, autoencoder, control, blend=blend, margin=margin)
    del opened  # its weights are in the networks now
    asked = replace(asked, label=known_as(label, pipeline.generator.label_names()))
    pipeline.check(asked.label, seg is not None or healthy)
    if check:
        where = model or run_config.output_dir
        print_check(_describe(pipeline, asked, where, num_samples), as_json)
        return
    settings = _settings(pipeline, run_config, asked)
    again = f"What was made is in {output_dir}; run the same command again for the rest."
    with OutputFolder(Path(output_dir), settings, overwrite=overwrite) as folder, shared.resumable(again):
        made = list(_generate(pipeline, folder, asked, num_samples, batch_size))
    report_made(folder, made, num_samples, as_json)


def _load_pipeline(
    source: "Source",
    config: "RunConfig",
    device: str,
    autoencoder: str | None,
    control: str | None,
    *,
    blend: float,
    margin: int,
) -> "InpaintingPipeline":
    from prod9.config.load import config_to_dict
    from prod9.pipelines.control import ControlPipeline
    from prod9.pipelines.inpainting import InpaintingPipeline
    from prod9.pipelines.maskgit import MaskGiTPipeline

    # The config was checked already, with the changes of the command line; only these sections matter here.
    values = config_to_dict(config)
    sections = [(name, values[name]) for name in ("sampler", "masking", "sliding_window")]
    chosen = torch_device(device)
    if control is None:
        generator = MaskGiTPipeline.from_checkpoint(
            source, device=chosen, autoencoder=autoencoder, overrides=sections
        )
        return InpaintingPipeline(generator=generator, blend=blend, margin=margin)
    # It refuses a transformer that it was not trained on.
    steered = ControlPipeline.from_checkpoint(
        control, device=chosen, transformer=source, autoencoder=autoencoder, overrides=sections
    )
    return InpaintingPipeline(generator=steered.generator, control=steered, blend=blend, margin=margin)


def _settings(pipeline: "InpaintingPipeline", config: "RunConfig", asked: _Asked) -> dict[str, Any]:
    from prod9.config.load import config_to_dict

    values = config_to_dict(config)
    return {
        "command": "generate inpaint",
        "sha256": pipeline.generator.sha256,
        "label": asked.label,
        "label_scheme": asked.label_scheme,
        "healthy": asked.healthy,
        "resample": asked.resample,
        "seed": asked.seed,
        "blend": pipeline.blend,
        "margin": pipeline.margin,
        **{name: values[name] for name in ("sampler", "masking", "sliding_window")},
    }


def _describe(pipeline: "InpaintingPipeline", asked: _Asked, model: str, num_samples: int) -> dict[str, Any]:
    from prod9.pipelines.inpainting import region_on

    source, region = _read(asked.source), _read(asked.region)
    return {
        "model": model,
        "label": asked.label,
        "volumes": num_samples,
        "shape": list(source.header.shape),
        "region": int(region_on(source, region, resample=asked.resample).sum()),
        "tokens": list(pipeline.generator.token_grid),
        "steps": pipeline.generator.sampler.steps,
        "device": str(pipeline.generator.device),
    }


def _generate(
    pipeline: "InpaintingPipeline", folder: OutputFolder, asked: _Asked, num_samples: int, batch_size: int
) -> Iterator[str]:
    import numpy as np

    from prod9 import volumes
    from prod9.nifti.voxels import fits
    from prod9.pipelines.inpainting import storage_dtype

    stem = asked.source.name.removesuffix(".gz").removesuffix(".nii")
    names = [f"{stem}_{k:04d}.nii.gz" for k in range(num_samples)]
    inputs = inputs_of(asked.files)
    missing = [k for k, name in enumerate(names) if not folder.is_done(name, inputs)]
    if not missing:
        return
    source, region, seg = _read(asked.source), _read(asked.region), _segmentation(asked)
    dtype, scaling, done = storage_dtype(source), source.header.scaling, 0
    with shared.progress() as bar:
        task = bar.add_task(stem, total=len(missing))
        for start, count in consecutive(missing):

            def report(share: float, done: int = done, count: int = count) -> None:
                bar.update(task, completed=done + share * count)

            for volume in pipeline.inpaint(
                source,
                region,
                asked.label,
                seg=seg,
                num_samples=count,
                seed=asked.seed,
                start=start,
                batch_size=batch_size,
                resample=asked.resample,
                report=report,
            ):
                name = names[volume.index]
                # As the source is stored, unless what was drawn is beyond its range.
                kept = np.issubdtype(dtype, np.integer) and fits(volume.data, dtype, scaling)
                stored = {"dtype": dtype, "scaling": scaling} if kept else {}
                noted = {"label": asked.label, "index": volume.index, "seed": volume.seed}
                with folder.writing(name, inputs=inputs, **noted) as target:
                    volumes.write(target, volume.data, source.header, **stored)
                yield name
            done += count


def _segmentation(asked: _Asked) -> "VolumeFile | None":
    """Return canonical labels of what shall be there; cleared within the region for healthy tissue."""
    if asked.seg is None and not asked.healthy:
        return None
    import numpy as np

    from prod9.data.labels import canonical_seg
    from prod9.pipelines.inpainting import region_on
    from prod9.pipelines.placement import align
    from prod9.volumes import VolumeFile

    source = _read(asked.source)
    if asked.seg is None:
        return VolumeFile(np.zeros_like(source.data), source.header)
    file = _read(asked.seg)
    align({"source": source, "seg": file})
    labels = canonical_seg(file.data, asked.label_scheme, file.header.path).astype(np.float32)
    if asked.healthy:
        labels[region_on(source, _read(asked.region), resample=asked.resample)] = 0
    return VolumeFile(labels, file.header)


def _read(path: Path) -> "VolumeFile":
    from prod9 import volumes

    return volumes.read(expand(path))
