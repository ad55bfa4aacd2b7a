"""``prod9 finetune``: a model, and all that it builds on, trained further on one's own patients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_next, use_of
from prod9.cli.front.before import say_finetuning_begins
from prod9.cli.shared import CheckOption, DebugOption, DeviceOption, JsonOption, SetOption, new_app
from prod9.errors import ConfigError
from prod9.system.machine import expand
from prod9.system.shell import shown_line
from prod9.system.wording import plural

if TYPE_CHECKING:
    from prod9.training.finetuning import Asked, Step

app = new_app("Fine-tune a model on one's own patients.")


@app.command()
def finetune(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="What to start from: demo/translate, demo/label, another name of `prod9 weights list`, a run, a "
            "checkpoint or an export.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", "-d", metavar="DIR", help="Your patients, in any layout that `data check` reads."
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="The fine-tuned model; made if missing.")
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Packaged models: scale the steps to about this time on one core, e.g. 10m.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, help="Steps of each stage. [as the model needs]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the split and of training.")] = 0,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    check: CheckOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a model, and every stage that it builds on, further on your own patients.

    One patient in five is kept for validation. The same command again goes on where it was interrupted. `--set`
    changes the config of every stage, e.g. data.skip_incomplete=true.

    Example: prod9 finetune --model demo/translate --data BRATS -o runs/mine
    """
    from prod9.files import check_writable
    from prod9.models.named.find import require_model

    factor = _factor(model, budget, max_steps)
    require_model(model)
    if not expand(data).exists():
        raise ConfigError(f"--data: expected a folder of patients, got {data}, which does not exist.")
    check_writable(expand(output_dir))
    if not check:
        say_finetuning_begins(model, data, output_dir)
    from prod9.training.finetuning import Asked, plan_finetuning, require_free

    asked = Asked(
        model=model,
        data=expand(data),
        folder=expand(output_dir),
        steps=max_steps,
        factor=factor,
        seed=seed,
        changes=overrides or (),
    )
    steps = plan_finetuning(asked)
    patients = _patients(steps)
    if check:
        require_free(asked, steps)
        _describe(asked, steps, patients, as_json)
        return
    with shared.resumable(f"What was trained is in {output_dir}; the same command goes on from there."):
        _run(asked, steps, device=device, as_json=as_json, patients=patients)


def _factor(model: str, budget: str | None, max_steps: int | None) -> float:
    """Return the factor on the default steps that ``--budget`` asks for."""
    if budget is None:
        return 1.0
    from prod9.demo.plan import parse_minutes
    from prod9.models.named.find import located
    from prod9.models.named.packaged import PACKAGED, packaged_at

    if max_steps is not None:
        raise ConfigError("expected --budget or --max-steps, got both; leave one out")
    packaged = packaged_at(located(model))
    if packaged is None or not packaged.minutes:
        names = ", ".join(one.names[0] for one in PACKAGED.values() if one.minutes)
        raise ConfigError(
            f"--budget: expected one of {names}, whose speed is known, got --model {model}; give --max-steps instead"
        )
    return parse_minutes(budget) / packaged.minutes


def _patients(steps: "list[Step]") -> int:
    """Return the number of patients; DataError where they cannot be used."""
    from prod9.cli.inputs import find_inputs

    found = find_inputs(steps[-1].config.data)
    return len({case.patient_id for case in found.cases})


def _measured(model: str) -> str | None:
    """Return what fine-tuning a packaged model brought in a measurement; None for other models."""
    from prod9.models.named.find import located
    from prod9.models.named.packaged import packaged_at

    packaged = packaged_at(located(model))
    return None if packaged is None else packaged.measured


def _describe(asked: "Asked", steps: "list[Step]", patients: int, as_json: bool) -> None:
    from prod9.cli.stage import print_check

    report: dict[str, Any] = {
        "model": asked.model,
        "patients": patients,
        "stages": {step.title: f"{step.config.training.max_steps} steps" for step in steps},
        "result": str(asked.folder),
    }
    if measured := _measured(asked.model):
        report["measured"] = measured
    print_check(report, as_json)


def _run(asked: "Asked", steps: "list[Step]", *, device: str, as_json: bool, patients: int) -> None:
    from prod9.devices import torch_device
    from prod9.training.finetuning import finetune as run

    shared.messages.print(
        f"{plural(patients, 'patient')}, one in five for validation; {plural(steps, 'stage')} to train."
    )
    if measured := _measured(asked.model):
        shared.messages.print(f"Measured before: {measured}.")
    results = run(asked, steps, say=shared.messages.print, device=str(torch_device(device)))
    use = _use(asked, steps)
    if as_json:
        made = {
            folder: {"checkpoint": str(one.checkpoint), "step": one.step, "metrics": one.metrics}
            for folder, one in results.items()
        }
        shared.print_json({"model": str(asked.folder), "runs": made, "next": shown_line(use)})
        return
    shared.console.print(f"The fine-tuned model is {asked.folder}.")
    tell_next(*use)


def _use(asked: "Asked", steps: "list[Step]") -> list[str]:
    """Return the words of the command that uses the result."""
    config = next(step.config for step in steps if step.config.output_dir == str(asked.folder))
    return use_of(config, asked.folder)
