"""Entry point of a container: ``infer --data_path DIR --output_path DIR``, or ``/input`` and ``/output`` without.

The challenge mounts a folder of cases and an empty one, switches the network off, and expects one NIfTI file per case
in the latter. Which task it is, each case's own files say:

- ``CASE-t1n-voided.nii.gz`` with ``CASE-mask.nii.gz``: inpainting, to ``CASE-t1n-inference.nii.gz``;
- three of ``t1n``, ``t1c``, ``t2w`` and ``t2f``: the missing one, to ``CASE-t2f.nii.gz`` and so on.

``PROD9_MODEL`` names the model, a run or an export; ``/model`` by default. Standard library only until it is read.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prod9.cli import shared
from prod9.errors import DataError
from prod9.system.wording import listing, plural

if TYPE_CHECKING:
    pass

MODEL, INPUT, OUTPUT = "/model", "/input", "/output"
_VOIDED, _MASK, _DRAWN = "-t1n-voided.nii.gz", "-mask.nii.gz", "-t1n-inference.nii.gz"


@dataclass(frozen=True)
class Work:
    """The cases of each task: folders whose names are those of the cases."""

    to_draw: Sequence[Path]
    to_complete: Sequence[Path]


def find_work(data: Path) -> Work:
    """Return the cases in ``data``; DataError where there is none, or where one fits no task."""
    from prod9.data.formats.brats import WORDS

    if not data.is_dir():
        raise DataError(
            f"{data}: expected a folder with cases, got none; mount it, or name it with --data_path."
        )
    cases = [path for path in sorted(data.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    to_draw, to_complete = list[Path](), list[Path]()
    for case in cases:
        lacking = [word for word in WORDS.values() if not (case / f"{case.name}-{word}.nii.gz").is_file()]
        if (case / f"{case.name}{_VOIDED}").is_file() and (case / f"{case.name}{_MASK}").is_file():
            to_draw.append(case)
        elif len(lacking) == 1:
            to_complete.append(case)
        else:
            raise DataError(
                f"{case}: expected three of {', '.join(f'{case.name}-{word}.nii.gz' for word in WORDS.values())}, or "
                f"{case.name}{_VOIDED} with {case.name}{_MASK}, got "
                f"{listing((path.name for path in sorted(case.iterdir())), 6)}; correct the names."
            )
    if not cases:
        raise DataError(f"{data}: expected a folder per case, got none; check what is mounted there.")
    return Work(to_draw, to_complete)


def infer(data: Path, output: Path, model: str) -> int:
    """Do what each case in ``data`` lacks; return the exit code.

    Args:
        data: folder of cases.
        output: where one file per case goes, and nothing else.
        model: run, checkpoint or export.
    """
    from prod9.cli.generate.run import require_models

    work = find_work(data)
    require_models(model)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="prod9-") as scratch:
        code = _complete(work.to_complete, output, model, Path(scratch)) if work.to_complete else shared.DONE
    if code == shared.DONE and work.to_draw:
        _draw(work.to_draw, output, model)
    return code


def _complete(cases: Sequence[Path], output: Path, model: str, scratch: Path) -> int:
    """Make the missing modality of each case with ``prod9 generate translate``, whose manifest stays in ``scratch``."""
    from prod9.cli.generate.group import app
    from prod9.files import atomic_write, link_or_copy

    patients = [part for case in cases for part in ("--patient", str(case))]
    code = shared.run(app, ["translate", "--model", model, *patients, "--output-dir", str(scratch)])
    for made in sorted(scratch.rglob("*.nii.gz")):
        with atomic_write(output / made.name) as temporary:
            link_or_copy(made, temporary)
    return code


def _draw(cases: Sequence[Path], output: Path, model: str) -> None:
    """Draw the region of each case anew; the model is loaded once."""
    from prod9 import volumes
    from prod9.cli.generate.inpaint import storage_of
    from prod9.devices import torch_device
    from prod9.pipelines.inpainting import InpaintingPipeline
    from prod9.pipelines.maskgit import MaskGiTPipeline

    pipeline: InpaintingPipeline = InpaintingPipeline(
        generator=MaskGiTPipeline.from_checkpoint(model, device=torch_device("auto"))
    )
    pipeline.check("T1", False)
    for case in cases:
        source = volumes.read(case / f"{case.name}{_VOIDED}")
        region = volumes.read(case / f"{case.name}{_MASK}")
        (drawn,) = pipeline.inpaint(source, region, "T1", num_samples=1)
        volumes.write(
            output / f"{case.name}{_DRAWN}", drawn.data, source.header, **storage_of(source, drawn.data)
        )
        shared.messages.print(f"{case.name}: drawn.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the container's command line and return its exit code; options of other images are ignored, with a note."""
    parser = argparse.ArgumentParser(prog="infer", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["infer"], default="infer")
    parser.add_argument("--data_path", type=Path, default=Path(INPUT))
    parser.add_argument("--output_path", type=Path, default=Path(OUTPUT))
    given, others = parser.parse_known_args(arguments)
    if others:
        shared.messages.print(f"Not used here: {' '.join(others)}")
    model = os.environ.get("PROD9_MODEL", MODEL)
    try:
        code = infer(given.data_path, given.output_path, model)
    except Exception as error:
        return shared.report_error(error)
    made = len(list(given.output_path.glob("*.nii.gz")))
    shared.messages.print(f"{plural(made, 'volume')} in {given.output_path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
