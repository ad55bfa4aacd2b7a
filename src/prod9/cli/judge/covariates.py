"""``prod9 evaluate covariates``: do generated volumes show the numbers that were asked for?"""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.judge.options import GridOption, OutputDirOption, ReplicatesOption, RunOptions, SetOptions
from prod9.cli.judge.reporting import reporting
from prod9.cli.judge.results import check_folder, finish
from prod9.cli.shared import OverwriteOption
from prod9.devices import torch_device


def covariates(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="Folder of the real patients of the table.")],
    generated: Annotated[
        Path,
        typer.Argument(
            metavar="GENERATED",
            help="A folder of `prod9 generate label --set-covariate NAME=LOW:HIGH`.",
        ),
    ],
    table: Annotated[
        Path,
        typer.Option("--table", metavar="FILE", help="The table that the model was trained with."),
    ],
    sets: SetOptions,
    options: RunOptions,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            metavar="FILE",
            help="The model's split.json: read from its train, test on its test patients.",
        ),
    ] = None,
    training_steps: Annotated[
        int, typer.Option("--training-steps", min=1, help="Steps of training of each network.")
    ] = 400,
    output_dir: OutputDirOption = Path("evaluation_covariates"),
    grid: GridOption = None,
    replicates: ReplicatesOption = 1000,
    overwrite: OverwriteOption = False,
) -> None:
    """Score whether covariates steer: numbers that were asked for against numbers that a network reads.

    The network learns to read the numbers of the table from real scans. Rank correlations of generated volumes stand
    beside those of held-out scans, which are the highest to be expected.
    """
    check_folder(output_dir, overwrite)
    from prod9.evaluation.covariates import CovariateSettings, evaluate_covariates

    settings = CovariateSettings(
        table=str(table),
        split=None if split is None else str(split),
        grid=grid,
        steps=training_steps,
        replicates=replicates,
        **sets.settings(),
    )
    with reporting() as report:
        evaluation = evaluate_covariates(
            real, generated, settings, device=torch_device(options.device), report=report
        )
    finish(evaluation, output_dir, options.as_json, real, generated)
