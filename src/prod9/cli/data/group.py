"""``prod9 data``: make volumes to work with, and check those you have."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.data.check import check, counting, info
from prod9.cli.data.convert import convert
from prod9.cli.data.preprocess import preprocess, to_native
from prod9.cli.data.unpack import unpack
from prod9.cli.front.after import tell_next
from prod9.cli.front.places import one_folder
from prod9.cli.front.spacing import SPACING, checked_side, side_of
from prod9.cli.shared import DebugOption, JsonOption, console, new_app, print_json, resumable, run_app
from prod9.system.wording import plural

app = new_app("Make volumes to work with, and check those you have.")
app.command(example="prod9 data check ~/brats --deep --html check.html")(check)
app.command(example="prod9 data info ~/brats -o outputs")(info)
app.command(example="prod9 data preprocess ~/scans -o outputs/brats")(preprocess)
app.command(
    "to-native", example="prod9 data to-native made/FLAIR.nii.gz --case outputs/brats/CASE -o outputs/native"
)(to_native)
app.command(example="prod9 data convert outputs/patients outputs/nnunet --format nnunet")(convert)
app.command(example="prod9 data unpack organmnist3d.npz -o outputs/organs -n 2")(unpack)


@app.command(example="prod9 data simulate outputs/patients -n 12")
def simulate(
    new_folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of the cohort; made if missing.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", metavar="DIR", help="The same, as an option.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", min=1, help="Patients; a larger number extends a cohort.")
    ] = 40,
    spacing: Annotated[
        str,
        typer.Option(
            "--spacing",
            metavar=SPACING,
            callback=checked_side,
            help="Side of a voxel in mm, from 1 to 8; the voxels are cubes.",
        ),
    ] = "3",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Patient k depends on this and on k only.")] = 0,
    workers: Annotated[int, typer.Option("--workers", "-j", min=1, help="Processes.")] = 1,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Simulate patients: brains in four MRI contrasts, most with a glioma, in the layout of BraTS 2023.

    They are made from the MNI152 template to try the software, and are no evidence about real patients. Complete
    patients are kept, so an interrupted run continues where it stopped.
    """
    output_dir = one_folder(new_folder, output_dir)
    from prod9.data.simulated.cohort import simulate_cohort

    hint = "Stopped; complete patients are kept, and the same command goes on from here."
    with resumable(hint), counting("Simulating patients") as count:
        cohort = simulate_cohort(
            output_dir,
            num_subjects=num_samples,
            spacing_mm=side_of(spacing),
            seed=seed,
            progress=count,
            num_workers=workers,
        )
    with_tumour = sum(subject.tumour_ml > 0 for subject in cohort.subjects)
    if as_json:
        print_json(
            {
                "output_dir": str(cohort.root),
                "num_subjects": len(cohort.subjects),
                "num_with_tumour": with_tumour,
                "spacing_mm": cohort.spacing_mm,
                "seed": cohort.seed,
            }
        )
        return
    console.print(
        f"{plural(cohort.subjects, 'simulated patient')}, {with_tumour} with a tumour: {cohort.root}",
    )
    tell_next("prod9", "data", "check", cohort.root, "--deep")


def main() -> None:
    """Run ``prod9 data`` alone."""
    run_app(app)
