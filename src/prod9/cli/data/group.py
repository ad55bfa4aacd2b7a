"""``prod9 data``: make volumes to work with, and check those you have."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.data.check import check, counting, info
from prod9.cli.data.preprocess import preprocess, to_native
from prod9.cli.data.unpack import unpack
from prod9.cli.shared import DebugOption, JsonOption, console, new_app, print_json, resumable, run_app
from prod9.system.wording import plural

app = new_app("Make volumes to work with, and check those you have.")
app.command()(check)
app.command()(info)
app.command()(preprocess)
app.command("to-native")(to_native)
app.command()(unpack)


@app.command()
def simulate(
    output_dir: Annotated[
        Path, typer.Argument(metavar="OUTPUT_DIR", help="Folder of the cohort; made if missing.")
    ],
    num_subjects: Annotated[
        int, typer.Option("--num-subjects", "-n", min=1, help="Patients; a larger number extends a cohort.")
    ] = 40,
    spacing: Annotated[
        float, typer.Option("--spacing", min=1.0, max=8.0, help="Side of a voxel in mm.")
    ] = 3.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Patient k depends on this and on k only.")] = 0,
    workers: Annotated[int, typer.Option("--workers", "-j", min=1, help="Processes.")] = 1,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Simulate patients: brains in four MRI contrasts, most with a glioma, in the layout of BraTS 2023.

    They are made from the MNI152 template to try the software, and are no evidence about real patients. Complete
    patients are kept, so an interrupted run continues where it stopped.
    """
    from prod9.data.simulated.cohort import simulate_cohort

    hint = "Stopped; complete patients are kept, and the same command goes on from here."
    with resumable(hint), counting("Simulating patients") as count:
        cohort = simulate_cohort(
            output_dir,
            num_subjects=num_subjects,
            spacing_mm=spacing,
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


def main() -> None:
    """Run ``prod9 data`` alone."""
    run_app(app)
