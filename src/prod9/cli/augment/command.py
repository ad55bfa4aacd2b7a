"""``prod9 augment``: real patients in, a data set with audited synthetic patients out."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.augment.masks import find_masks
from prod9.cli.augment.models import find_models
from prod9.cli.augment.steps import (
    CARD,
    DATASET,
    MADE,
    Asked,
    Notes,
    audit_made,
    data_card,
    make_report,
    measure,
    scores_of,
    state_of,
    suspects_of,
    write_sets,
)
from prod9.cli.data.convert import FormatOption
from prod9.cli.front.after import as_step, tell_again, tell_next
from prod9.cli.generate.options import DetailUse, SampleSeedOption, Sampling, Target
from prod9.cli.generate.patients import case_id, make_patients
from prod9.cli.masks.followed import AUTO
from prod9.cli.parts.engine import Engine
from prod9.cli.parts.option import PartOption, chosen_part
from prod9.cli.shared import DebugOption, DeviceOption, JsonOption, OutputsOption, new_app
from prod9.data.formats.table import form_of
from prod9.devices import torch_device
from prod9.errors import ConfigError
from prod9.system.machine import expand
from prod9.system.wording import plural

app = new_app("Add audited synthetic patients to a data set of real ones.")


@app.command(example="prod9 augment ~/brats -n 16 -o augmented --measure")
def augment(
    source: Annotated[
        Path, typer.Argument(metavar="BRATS", help="Folder of the real patients, with segmentations.")
    ],
    output_dir: OutputsOption,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="Label-conditional model. [all models are trained on the patients first]",
        ),
    ] = None,
    in_context: Annotated[
        str | None,
        typer.Option("--in-context", metavar="NAME|PATH", help="With --model: model that translates."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control", metavar="NAME|PATH", help="With --model: control network of either; repeatable."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Without --model: scale training to about this time on two cores. [24m]",
        ),
    ] = None,
    num: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Patients to make.")] = 16,
    masks: Annotated[
        Path | None,
        typer.Option(
            "--masks", metavar="DIR", help="Segmentations to follow. [those of the training patients]"
        ),
    ] = None,
    draw_masks: Annotated[
        str | None,
        typer.Option(
            "--draw-masks",
            metavar="NAME|PATH",
            help="Follow masks that this model draws, one for each patient.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", metavar="FILE", help="The models' split. [split.json or the header of --model]"
        ),
    ] = None,
    form: FormatOption = "nnunet",
    folds: Annotated[int, typer.Option("--folds", min=0, help="Folds of nnU-Net; 0 for none.")] = 5,
    false_alarms: Annotated[
        float,
        typer.Option(
            "--false-alarms", min=0.001, max=0.5, help="Share of honest volumes that may be suspect."
        ),
    ] = 0.05,
    measured: Annotated[
        bool,
        typer.Option("--measure", help="Also train segmenters on real, synthetic and both patients."),
    ] = False,
    steps: Annotated[
        int, typer.Option("--measure-steps", min=1, help="Training steps of each segmenter.")
    ] = 160,
    seeds: Annotated[int, typer.Option("--measure-seeds", min=1, help="Segmenters per set.")] = 3,
    seed: SampleSeedOption = 0,
    device: DeviceOption = "auto",
    part: PartOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make patients, audit them against real ones, throw out suspects by name, and write the data set.

    Without --model, the models are trained on the patients first: from the packaged weights on, into OUTPUT/models.
    OUTPUT/dataset holds real and accepted synthetic patients; beside it are the audit, a data card and report.html. Run
    it again after an interruption, or with a larger --num-samples, and only what is missing is done. With --part only
    patients are made: join them with `prod9 merge OUTPUT/made`, then run it without.
    """
    chosen, output = form_of(form), expand(Path(output_dir))
    real, work = expand(source), chosen_part(part)
    if draw_masks is not None and masks is not None:
        raise ConfigError("expected --masks or --draw-masks, got both; leave one out")
    if model is None and not work.is_all:
        raise ConfigError(
            "--part: expected it with --model, --in-context and --control, got it without; train the models once, by "
            "this command without --part and with --num-samples 1, and name those in OUTPUT/models"
        )
    again = "What is done is kept, and the same command goes on from here."
    with shared.resumable(again):
        models = find_models(
            real, output, model=model, in_context=in_context, control=control, split=split, budget=budget,
            false_alarms=false_alarms, folds=folds if chosen.name == "nnunet" else 0, seed=seed, device=device,
        )  # fmt: skip
    masks_found, cases_of_masks = _masks_of(real, models.split, masks, draw_masks)
    followed = num if draw_masks is not None else len(masks_found)
    target = Target(output_dir=str(output / MADE), part=part)
    shared.messages.print(
        f"{plural(num, 'patient')} to make, following {plural(followed, 'segmentation')} of {cases_of_masks}."
    )
    with redirect_stdout(sys.stderr), as_step():  # what it reports is no result of this command
        make_patients(
            num_samples=num, model=models.label, in_context=models.in_context, control=models.control, seg=masks_found,
            masks=draw_masks, training=None if draw_masks is None else real,
            sampling=Sampling(), use=DetailUse(), seed=seed, device=device, target=target, engine=Engine(),
        )  # fmt: skip
    if not work.is_all:
        shared.messages.print(
            f"Run the other parts, `prod9 merge {output / MADE}`, and then this without --part."
        )
        return
    asked = Asked(real, models.split, models.label, output, chosen, folds, seed, false_alarms)
    with shared.resumable(again):
        result = _finish(asked, num, followed, torch_device(device), (steps, seeds) if measured else None)
    if as_json:
        shared.print_json(result)
        return
    _print(result)
    if measured:
        tell_next("prod9", "data", "check", output / DATASET, "--html", output / "dataset.html")
    else:
        tell_again("--measure", note="the Dice that they buy")


def _masks_of(real: Path, split: Path, masks: Path | None, drawn_by: str | None) -> tuple[list[Path], str]:
    """Return the segmentations to follow and whose they are."""
    if drawn_by is not None:
        return [AUTO], drawn_by
    from prod9.data.formats.convert import read_cases
    from prod9.data.splits import Split

    cases, _ = read_cases(real)
    found = find_masks(cases, Split.load(split).train, masks)
    return found, "training patients" if masks is None else str(masks)


def _finish(
    asked: Asked, num: int, num_masks: int, device: Any, measured: tuple[int, int] | None
) -> dict[str, Any]:
    """Do what follows once all patients are made; return what came of it."""
    from prod9.files import atomic_write, sha256

    notes = Notes(asked.output)
    made = sha256(asked.output / MADE / "manifest.json")
    key = [made, sha256(asked.split), asked.false_alarms, state_of(asked.real)]
    audit = audit_made(asked, notes, key, device)
    names = [case_id(k) for k in range(num)]  # there may be more, of an earlier run
    suspects = suspects_of(audit, names)
    card = data_card(asked, num_masks, num, audit, suspects)
    with atomic_write(asked.output / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    key = [*key, num, asked.form.name, asked.folds, asked.seed]
    counts = write_sets(asked, notes, key, names, suspects, card)
    result: dict[str, Any] = {"dataset": str(asked.output / DATASET), "suspects": suspects, **counts}
    if measured is not None:
        steps, seeds = measured
        evaluation = measure(asked, notes, key, steps=steps, seeds=seeds, device=device)
        result["dice"] = scores_of(evaluation)
    report = make_report(asked)
    return result | ({} if report is None else {"report": str(report)})


def _print(result: dict[str, Any]) -> None:
    say = shared.console.print
    for name in result["suspects"]:
        say(f"Thrown out: {name} resembles a training patient.")
    tested = f", {result['tested']} real ones put aside for a test" if result["tested"] else ""
    say(
        f"{plural(result['real'], 'real patient')} and {plural(result['synthetic'], 'synthetic one')}{tested}: "
        f"{result['dataset']}"
    )
    for row in result.get("dice", []):
        interval = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
        value = "none" if row["value"] is None else f"{row['value']:.3f}"
        say(f"Dice of {row['region']}, trained on {row['trained_on']}: {value}{interval}")
    if "report" in result:
        say(f"Report: {result['report']}")
