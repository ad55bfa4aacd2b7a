"""``prod9 data convert``: a dataset in another folder form."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prod9.cli.data.check import counting
from prod9.cli.front.after import tell_next
from prod9.cli.shared import DebugOption, JsonOption, console, print_json, resumable, warn
from prod9.errors import ConfigError
from prod9.system.machine import expand
from prod9.system.wording import listing, plural

if TYPE_CHECKING:
    from prod9.data.formats.convert import Work

FormatOption = Annotated[
    str, typer.Option("--format", metavar="brats|nnunet|bids", help="Form of the new folder.")
]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Cases in any known layout: a folder, or a CSV or JSON list.")
    ],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
    form: FormatOption,
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(
            "--synthetic",
            metavar="DIR",
            help="Patients that do not exist, to add; repeatable; nnunet, brats.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", metavar="FILE", help="A run's split.json: its test patients go to imagesTs; nnunet."
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option("--folds", min=0, help="Folds of splits_final.json; 0 for none; nnunet.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the folds.")] = 0,
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", metavar="NAME", help="Take only this one; repeatable. [all]"),
    ] = None,
    label_scheme: Annotated[
        str, typer.Option("--label-scheme", metavar="NAME|TABLE", help="Meaning of the labels of IN.")
    ] = "auto",
    skip_incomplete: Annotated[
        bool, typer.Option("--skip-incomplete", help="Leave out cases that lack something; nnunet.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Bring a dataset into the form of BraTS 2023, of nnU-Net's raw folders, or of BIDS.

    Voxels and geometry stay as they are. Synthetic cases train in every fold of nnU-Net and validate in none; IN is
    taken for synthetic where its own manifest says so. OUT appears when it is complete.
    """
    from prod9.data.formats.convert import carry_out, plan_work, read_cases
    from prod9.data.formats.table import form_of

    chosen = form_of(form)
    if chosen.name != "nnunet" and (split is not None or skip_incomplete):
        given = "--split" if split is not None else "--skip-incomplete"
        raise ConfigError(f"{given}: expected --format nnunet with it, got {form}; leave it out")
    cases, said = read_cases(expand(source), modalities=modality or (), label_scheme=label_scheme)
    real = [case for case in cases if case.case_id not in said]
    made = [case for case in cases if case.case_id in said]
    for folder in synthetic or []:
        made += read_cases(expand(folder), modalities=modality or ())[0]
    tested = _test_patients(split)
    work = plan_work(
        chosen,
        real,
        made,
        folds=folds,
        seed=seed,
        test_patients=tested,
        skip_incomplete=skip_incomplete,
    )
    absent = sorted({*tested} - {case.patient_id for case in work.cases})
    if absent:
        named = listing(absent, 3)
        warn(f"{split}: {len(absent)} of {plural(tested, 'test patient')} are not among the cases ({named}).")
    _warn_of_lost_patients(work, output_dir)
    about = {
        "text": "Converted by prod9 data convert.",
        "source": str(source),
        "synthetic": [str(folder) for folder in synthetic or []],
        "split": None if split is None else str(split),
        "folds_seed": seed,
    }
    with resumable(f"Nothing was left in {output_dir}."), counting("Converting cases") as count:
        carry_out(work, expand(output_dir), about=about, progress=count)
    result = {
        "output_dir": str(expand(output_dir)),
        "cases": len(work.cases),
        "synthetic": len(work.synthetic),
        "tested": len(work.tested),
        "folds": len(work.splits),
        "modalities": list(work.modalities),
    }
    if as_json:
        print_json(result)
        return
    notes = [f"{result['synthetic']} synthetic", *([f"{result['tested']} to test"] if work.tested else [])]
    notes += [f"{result['folds']} folds"] if work.splits else []
    console.print(
        f"{plural(work.cases, 'case')} ({', '.join(notes)}) in {output_dir}, in the form of {chosen.name}"
    )
    tell_next("prod9", "data", "check", output_dir)


def _test_patients(split: Path | None) -> tuple[str, ...]:
    if split is None:
        return ()
    from prod9.data.splits import Split

    return Split.load(expand(split)).test


def _warn_of_lost_patients(work: "Work", output_dir: Path) -> None:
    from prod9.data.formats.convert import lost_patients

    lost = lost_patients(work)
    if not lost:
        return
    shown = listing((f"{patient} ({listing(names, 3)})" for patient, names in lost.items()), 3, joint="; ")
    warn(
        f"{output_dir}: {plural(lost, 'patient')} with several cases will count as several patients, as the names of "
        f"{work.form.name} do not say whose visits they are: {shown}. They may be in different parts of a split; give "
        "them names such as P1_tp1 and P1_tp2, or list them in a CSV with a column patient."
    )
