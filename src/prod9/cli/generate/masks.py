"""``prod9 generate masks``: lesion masks that nobody had, drawn by a model or made from those you have."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import PATIENTS
from prod9.cli.generate.inputs import find_segmentations
from prod9.cli.generate.options import LabelSchemeOption, SampleSeedOption, Target, TokenSampler, grouped
from prod9.cli.generate.outputs import Inputs, OutputFolder, inputs_of, report_made
from prod9.cli.generate.run import carry_out, sampler_report
from prod9.cli.masks.drawing import Drawing, missing_masks
from prod9.cli.parts.engine import Engine
from prod9.cli.shared import DeviceOption
from prod9.cli.stage import AutoencoderOption
from prod9.devices import torch_device
from prod9.errors import ConfigError, DataError, Prod9Error

if TYPE_CHECKING:
    from prod9.data.lesions import LesionFile


@grouped
def generate_masks(
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME|PATH", help="Model of label maps that draws the masks."),
    ] = None,
    vary: Annotated[
        list[Path] | None,
        typer.Option(
            "--vary",
            metavar="FILE|DIR",
            help="Segmentation to vary, or a folder of cases with them; repeatable.",
        ),
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Masks to make.")] = 1,
    volume: Annotated[
        float | None,
        typer.Option(
            "--volume", metavar="ML", min=0.001, help="With --model: volume of the lesions. [as in training]"
        ),
    ] = None,
    side: Annotated[
        str | None,
        typer.Option(
            "--side", metavar="left|right", help="With --model: side of the lesions. [as in training]"
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            "--training",
            metavar="DIR",
            help="With --model: training patients; a copy of a mask is drawn again.",
        ),
    ] = None,
    autoencoder: AutoencoderOption = None,
    sampler: TokenSampler,
    device: DeviceOption = "auto",
    brain: Annotated[
        Path | None,
        typer.Option(
            "--brain", metavar="FILE", help="Stripped scan or brain mask on the voxels of every --vary FILE."
        ),
    ] = None,
    keep_grid: Annotated[
        bool,
        typer.Option("--keep-grid", help="Write the voxels of the source, not only the box of its brain."),
    ] = False,
    label_scheme: LabelSchemeOption = "auto",
    seed: SampleSeedOption = 0,
    target: Target,
    engine: Engine,
) -> None:
    """Make lesion masks: drawn by a model, or given ones moved, turned, scaled, mirrored and warped within the brain.

    With --model, each mask is drawn together with the outline of a brain, whose box it is written in; size and place
    are those of a training lesion, changed a little, unless --volume and --side say more. With --vary, mask k comes
    from segmentation k, and from the first again when there are fewer. Labels of the results: 1 necrotic core, 2
    oedema, 3 enhancing tumour. Use them with `prod9 generate patients --seg DIR`. Run it again with a larger
    --num-samples and only what is missing is made.
    """
    given = {
        "--volume": volume,
        "--side": side,
        "--training": training,
        "--autoencoder": autoencoder,
        "a sampler": sampler.changes() or None,
    }
    unused: dict[str, Any] = {"--brain": brain, "--keep-grid": keep_grid or None}
    if training is None:
        unused["--label-scheme"] = None if label_scheme == "auto" else label_scheme
    _require_one(model, vary, given, unused)
    if model is not None:
        drawing = Drawing.of(
            model,
            device=torch_device(device),
            autoencoder=autoencoder,
            changes=sampler.changes(),
            training=training,
            seed=seed,
            volume_ml=volume,
            side=side,
            label_scheme=label_scheme,
        )
        _draw(drawing, target, num_samples, training)
        return
    assert vary is not None  # refused above
    files = list(find_segmentations(vary).values())
    if brain is not None:
        from prod9.volumes import read_header

        read_header(brain)
    lesions = _lesions(files, brain, label_scheme)
    carry_out(
        target,
        describe=lambda: {
            "masks": num_samples,
            "segmentations": len(files),
            "empty": len(files) - len(lesions),
        },
        settings=lambda: {
            "command": "generate masks",
            "method": "vary",
            "keep_grid": keep_grid,
            "label_scheme": label_scheme,
            "seed": seed,
        },
        make=lambda folder: _make(folder, lesions, num_samples, seed, keep_grid),
        report=_reporting(num_samples, next((path for path in vary if path.is_dir()), None)),
    )


def _require_one(
    model: str | None, vary: list[Path] | None, of_model: Mapping[str, Any], of_vary: Mapping[str, Any]
) -> None:
    """Refuse (ConfigError) neither or both of --model and --vary, and options of the other one."""
    if (model is None) == (not vary):
        raise ConfigError(
            f"expected --model or --vary, got {'neither' if model is None else 'both'}; name a model that draws masks, "
            "or segmentations to vary"
        )
    one, others = ("--vary", of_model) if model is None else ("--model", of_vary)
    extra = [name for name, value in others.items() if value is not None]
    if extra:
        raise ConfigError(
            f"expected no {extra[0]} with {one}, which has no use for it, got some; leave it out"
        )


def _draw(drawing: Drawing, target: Target, num_samples: int, training: Path | None) -> None:
    carry_out(
        target,
        describe=lambda: {
            "masks": num_samples,
            "training_lesions": len(drawing.pipeline.lesions),
            **sampler_report(drawing.pipeline),
        },
        settings=lambda: {"command": "generate masks", "method": "model", **drawing.settings},
        make=lambda folder: drawing.fill(folder, num_samples),
        report=_reporting(num_samples, training),
    )


def _reporting(num_samples: int, training: Path | None) -> Callable[[OutputFolder, list[str], bool], None]:
    """Return what reports the masks, and the command that compares them with those of ``training``."""
    return partial(
        report_made,
        total=num_samples,
        noun="mask",
        then=lambda made: ("evaluate", "masks", made, "--training", training or PATIENTS),
        note="against real masks",
    )


def _lesions(files: list[Path], brain: Path | None, label_scheme: str) -> "list[LesionFile]":
    """Return the files that show a lesion; DataError if none does, or one has no scan."""
    from prod9.data.lesions import LesionFile
    from prod9.volumes import read

    found = []
    for path in files:
        one = LesionFile.of(path, brain=brain, label_scheme=label_scheme)
        if one.scan is None:
            raise DataError(
                f"{path}: expected a scan of its case beside it, to know the brain, got none; name one with --brain."
            )
        if read(path).data.any():
            found.append(one)
    if not found:
        raise DataError(
            f"--vary: expected a segmentation with a lesion, got {len(files)} empty ones; name others."
        )
    return found


def _make(
    folder: OutputFolder, lesions: "list[LesionFile]", num: int, seed: int, keep_grid: bool
) -> Iterator[str]:
    import numpy as np

    from prod9 import volumes
    from prod9.data.variation import vary

    followed: list[Inputs] = [_inputs(one) for one in lesions]
    missing = missing_masks(folder, num, lambda index: followed[index % len(lesions)])
    with shared.progress() as bar:
        task = bar.add_task("Masks", total=len(missing))
        for index, name in missing.items():
            which = index % len(lesions)
            path, given = lesions[which].path, lesions[which].load()
            lesion = given if keep_grid else given.cropped()
            if not lesion.labels.any():
                raise DataError(
                    f"{path}: expected a lesion in the brain, got all of it outside; check that they belong together."
                )
            try:
                labels, done = vary(lesion, np.random.default_rng(seed + index))
            except Prod9Error as problem:
                raise DataError(f"{path}: {problem}.") from problem
            noted: dict[str, Any] = {
                "index": index,
                "seed": seed + index,
                "vary": str(path),
                **done.describe(),
            }
            with folder.writing(name, inputs=followed[which], **noted) as place:
                volumes.write(place, labels, lesion.affine, dtype=np.uint8)
            bar.advance(task)
            yield name


def _inputs(lesion: "LesionFile") -> Inputs:
    assert lesion.scan is not None  # refused before
    return inputs_of({"segmentation": lesion.path, "brain": lesion.scan})
