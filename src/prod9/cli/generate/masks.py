"""``prod9 generate masks``: lesion masks that nobody had, from those you have."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.generate.inputs import find_segmentations
from prod9.cli.generate.options import LabelSchemeOption, SampleSeedOption, Target, grouped
from prod9.cli.generate.outputs import Inputs, OutputFolder, inputs_of, report_made
from prod9.cli.generate.run import carry_out
from prod9.cli.parts.engine import Engine
from prod9.errors import DataError, Prod9Error

if TYPE_CHECKING:
    from prod9.data.lesions import LesionFile


@grouped
def generate_masks(
    *,
    vary: Annotated[
        list[Path],
        typer.Option(
            "--vary",
            metavar="FILE|DIR",
            help="Segmentation to vary, or a folder of cases with them; repeatable.",
        ),
    ],
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Masks to make.")] = 1,
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
    """Make lesion masks: given ones moved, turned, scaled, mirrored and warped within the brain.

    Mask k comes from segmentation k, and from the first again when there are fewer. Labels of the results: 1 necrotic
    core, 2 oedema, 3 enhancing tumour. Use them with `prod9 generate patients --seg DIR`. Run it again with a larger
    --num-samples and only what is missing is made.
    """
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
        report=partial(report_made, total=num_samples, noun="mask"),
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
    names = [f"mask_{k:04d}_seg.nii.gz" for k in range(num)]
    mine = [k for k in range(num) if folder.part.owns(k)]
    folder.expect([names[k] for k in mine], of=names)
    missing = [k for k in mine if not folder.is_done(names[k], followed[k % len(lesions)])]
    with shared.progress() as bar:
        task = bar.add_task("Masks", total=len(missing))
        for index in missing:
            which = index % len(lesions)
            path, lesion = lesions[which].path, lesions[which].load()
            lesion = lesion if keep_grid else lesion.cropped()
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
            with folder.writing(names[index], inputs=followed[which], **noted) as place:
                volumes.write(place, labels, lesion.affine, dtype=np.uint8)
            bar.advance(task)
            yield names[index]


def _inputs(lesion: "LesionFile") -> Inputs:
    assert lesion.scan is not None  # refused before
    return inputs_of({"segmentation": lesion.path, "brain": lesion.scan})
