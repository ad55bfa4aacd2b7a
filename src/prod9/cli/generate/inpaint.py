"""``prod9 generate inpaint``: a region of a volume drawn again."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.generate.options import (
    Detail,
    LabelSchemeOption,
    Model,
    ResampleOption,
    Samples,
    Target,
    TokenSampler,
    grouped,
    require_seg,
)
from prod9.cli.generate.outputs import inputs_of, report_made
from prod9.cli.generate.run import (
    Series,
    build_pipeline,
    carry_out,
    detail_settings,
    make_series,
    require_models,
    sampling_settings,
)
from prod9.cli.naming import known_as
from prod9.cli.parts.engine import Engine
from prod9.cli.stage import AutoencoderOption
from prod9.errors import ConfigError
from prod9.system.machine import expand

if TYPE_CHECKING:
    import numpy as np

    from prod9.models.checkpoint_manager import Source
    from prod9.pipelines.inpainting import Inpainted, InpaintingPipeline
    from prod9.volumes import VolumeFile


@dataclass(frozen=True)
class _Asked:
    """What is to be drawn, and where. Each file is read once, when it is needed."""

    files: dict[str, Path]
    label: str
    label_scheme: str
    healthy: bool
    resample: bool

    def _read(self, name: str) -> "VolumeFile":
        from prod9 import volumes

        return volumes.read(self.files[name])

    @cached_property
    def source(self) -> "VolumeFile":
        """The volume."""
        return self._read("source")

    @cached_property
    def region(self) -> "VolumeFile":
        """Where to draw, as its file has it."""
        return self._read("region")

    @cached_property
    def drawn(self) -> "np.ndarray":
        """Where to draw: bool on the voxels of the source."""
        from prod9.pipelines.inpainting import region_on

        return region_on(self.source, self.region, resample=self.resample)

    @cached_property
    def seg(self) -> "VolumeFile | None":
        """Canonical labels of what is wanted there; without lesion inside the region for healthy tissue."""
        if "seg" not in self.files and not self.healthy:
            return None
        import numpy as np

        from prod9.data.labels import canonical_seg
        from prod9.pipelines.placement import align
        from prod9.volumes import VolumeFile

        if "seg" not in self.files:
            return VolumeFile(np.zeros_like(self.source.data), self.source.header)
        file = self._read("seg")
        align({"source": self.source, "seg": file})
        labels = canonical_seg(file.data, self.label_scheme, file.header.path).astype(np.float32)
        if self.healthy:
            labels[self.drawn] = 0
        return VolumeFile(labels, file.header)


@grouped
def inpaint(
    *,
    model: Model,
    source: Annotated[
        str,
        typer.Option(
            "--source", "-s", metavar="NAME=FILE", help="The volume and its modality, e.g. T1=t1.nii.gz."
        ),
    ],
    region: Annotated[
        Path, typer.Option("--region", "-r", metavar="FILE", help="Not 0 where to draw, on the same voxels.")
    ],
    label: Annotated[
        str | None,
        typer.Option("--label", "-l", metavar="NAME", help="Its modality, if --source names only the file."),
    ] = None,
    blend: Annotated[
        float, typer.Option("--blend", min=0.0, help="Voxels inwards over which the border is blended.")
    ] = 2.0,
    margin: Annotated[
        int, typer.Option("--margin", min=0, help="Tokens around the region that are drawn again as well.")
    ] = 0,
    resample: ResampleOption = False,
    control: Annotated[
        str | None,
        typer.Option("--control", metavar="NAME|PATH", help="A control network of this model, for --seg."),
    ] = None,
    seg: Annotated[
        Path | None,
        typer.Option("--seg", metavar="FILE", help="What is wanted there, on the source's voxels."),
    ] = None,
    label_scheme: LabelSchemeOption = "canonical",
    healthy: Annotated[
        bool, typer.Option("--healthy", help="With --control: no lesion within the region.")
    ] = False,
    autoencoder: AutoencoderOption = None,
    samples: Samples,
    sampler: TokenSampler,
    detail: Detail,
    target: Target,
    engine: Engine,
) -> None:
    """Draw a region of a volume again: `NAME_0000.nii.gz` and so on, with a manifest.

    Every voxel outside of the region is that of the source, bit for bit, on the source's own voxels. A control
    network decides what is drawn: `--healthy` for tissue without lesion, or a lesion where `--seg` says.
    """
    if (seg is not None or healthy) and control is None:
        raise ConfigError(
            f"{'--seg' if seg is not None else '--healthy'}: expected --control RUN with it, got none; without "
            "a control network the surroundings alone decide what is drawn"
        )
    require_seg(label_scheme, "canonical", seg)
    from prod9 import volumes

    label, file = _named(source, label)
    given = {"source": file, "region": region, "seg": seg}
    files = {name: expand(file) for name, file in given.items() if file is not None}
    for each in files.values():
        for text in volumes.cautions(volumes.read_header(each)).values():
            shared.warn(text)
    detail.check(detail.path)
    require_models(control, autoencoder, detail.path)
    load = partial(_load, autoencoder=autoencoder, control=control, blend=blend, margin=margin, detail=detail)
    pipeline, config = build_pipeline("transformer", load, model, sampler.changes())
    generator = pipeline.generator
    asked = _Asked(files, known_as(label, generator.label_names()), label_scheme, healthy, resample)
    pipeline.check(asked.label, seg is not None or healthy)
    carry_out(
        target,
        describe=lambda: {
            "model": model.model or config.output_dir,
            "label": asked.label,
            "volumes": samples.num_samples,
            "shape": list(asked.source.header.shape),
            "region": int(asked.drawn.sum()),
            "tokens": list(generator.latent_grid),
            "steps": generator.steps,
            "device": str(generator.device),
            **detail_settings(generator.detail),
        },
        settings=lambda: {
            "command": "generate inpaint",
            "sha256": generator.sha256,
            "label": asked.label,
            "label_scheme": label_scheme,
            "healthy": healthy,
            "resample": resample,
            "seed": samples.seed,
            "blend": blend,
            "margin": margin,
            **sampling_settings(config),
            **detail_settings(generator.detail),
        },
        make=lambda folder: make_series(folder, [_series(pipeline, asked, samples)]),
        report=partial(
            report_made,
            total=samples.num_samples,
            then=lambda made: ("app", "--model", model.model or config.output_dir, "-o", f"{made}_app"),
            note="to draw and look in the browser",
        ),
    )


def _named(source: str, label: str | None) -> tuple[str, Path]:
    """Return modality and file of ``NAME=FILE``, or of a file and ``--label``; ConfigError for both and for neither."""
    name, equals, file = source.partition("=")
    if not equals or expand(source).exists():
        name, file = "", source
    if bool(name) == (label is not None) or not file:
        got = f"{source} and --label {label}" if label is not None else source
        raise ConfigError(
            f"--source: expected NAME=FILE such as T1=t1.nii.gz, or a file with --label NAME, got {got}; correct it"
        )
    return name or str(label), Path(file)


def _load(
    source: "Source", *, control: str | None, blend: float, margin: int, detail: Detail, **chosen: Any
) -> "InpaintingPipeline":
    from prod9.pipelines.control import ControlPipeline
    from prod9.pipelines.inpainting import InpaintingPipeline
    from prod9.pipelines.maskgit import MaskGiTPipeline

    chosen["detail"] = detail.choice()
    if control is None:
        generator = MaskGiTPipeline.from_checkpoint(source, **chosen)
        return InpaintingPipeline(generator=generator, blend=blend, margin=margin)
    # It refuses a transformer that it was not trained on.
    steered = ControlPipeline.from_checkpoint(control, transformer=source, **chosen)
    return InpaintingPipeline(generator=steered.generator, control=steered, blend=blend, margin=margin)


def _series(pipeline: "InpaintingPipeline", asked: _Asked, samples: Samples) -> Series:
    def draw(**numbers: Any) -> "Iterator[Inpainted]":
        return pipeline.inpaint(
            asked.source,
            asked.region,
            asked.label,
            seg=asked.seg,
            resample=asked.resample,
            seed=samples.seed,
            batch_size=samples.batch_size,
            **numbers,
        )

    stem = asked.files["source"].name.removesuffix(".gz").removesuffix(".nii")
    return Series(
        title=stem,
        stem=stem,
        num_samples=samples.num_samples,
        draw=draw,
        write=partial(_write, asked=asked),
        noted={"label": asked.label},
        inputs=inputs_of(asked.files),
        batch_size=samples.batch_size,
    )


def _write(path: Path, volume: "Inpainted", *, asked: _Asked) -> None:
    """Write a sample as the source is stored, unless the drawn values are beyond its range."""
    from prod9 import volumes

    volumes.write(path, volume.data, asked.source.header, **storage_of(asked.source, volume.data))


def storage_of(source: "VolumeFile", drawn: "np.ndarray") -> dict[str, Any]:
    """Return how to store drawn values: as the source is stored, or empty where they are beyond its range."""
    import numpy as np

    from prod9.nifti.voxels import fits
    from prod9.pipelines.inpainting import storage_dtype

    dtype, scaling = storage_dtype(source), source.header.scaling
    kept = np.issubdtype(dtype, np.integer) and fits(drawn, dtype, scaling)
    return {"dtype": dtype, "scaling": scaling} if kept else {}
