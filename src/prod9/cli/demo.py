"""``prod9 demo``: simulate, train, generate and score, from nothing, on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from prod9.cli.front.after import tell_next
from prod9.cli.shared import (
    DebugOption,
    DeviceOption,
    JsonOption,
    RadiologicalOption,
    console,
    messages,
    new_app,
    print_json,
    progress,
    resumable,
)

app = new_app("See it work: from nothing to generated brains on this machine.")


@app.command(example="prod9 demo --stages all --budget 20m")
def demo(
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR",
            help="Where everything goes; default outputs/demo, with -maisi and -quick after it for those.",
        ),
    ] = None,
    family: Annotated[
        str,
        typer.Option(
            "--family",
            metavar="maskgit|maisi",
            help="Tokens and a masked transformer, or latents and a rectified flow.",
        ),
    ] = "maskgit",
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run of a minute; pictures stay blurs.")
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Start from random weights, not from the packaged ones.",
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Scale steps and patients to about this time on two cores, e.g. 60m; default 9m, MAISI 20m; from "
            "scratch 12m and 25m.",
        ),
    ] = None,
    stages: Annotated[
        str,
        typer.Option(
            "--stages",
            metavar="all|NAME,…",
            help="What to add to the first two stages: translation, masks (both MaskGiT alone), control, or all.",
        ),
    ] = "",
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", "-n", min=14, help="Patients of the simulated cohort.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of cohort, training and sampling.")] = 0,
    radiological: RadiologicalOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Simulate a cohort, train an autoencoder and a generator, generate every modality, score and draw.

    Run again after an interruption and it goes on where it was.
    """
    from prod9.demo.families import family_named
    from prod9.demo.plan import make_plan, parse_minutes
    from prod9.files import check_writable

    names = family_named(family)
    output_dir = output_dir or Path(names.quick_folder if quick else names.folder)
    plan = make_plan(
        output_dir,
        quick=quick,
        from_scratch=from_scratch,
        budget_minutes=None if budget is None else parse_minutes(budget),
        num_patients=num_samples,
        seed=seed,
        stages=stages,
        family=family,
        radiological=radiological,
    )
    check_writable(output_dir)
    with resumable("Stopped; the same command goes on from here."):
        from prod9.demo.steps import Reporter, run_demo

        block = run_demo(plan, report=Reporter(say=_say, bar=_bar), device=device)
    if as_json:
        print_json(block)
    else:
        _summarise(block, output_dir)
        run = plan.run_dir / names.generator
        tell_next("prod9", "generate", "label", "-m", run, "-n", 4, "-o", output_dir / "more")


def _say(text: str) -> None:
    messages.print(text)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    with progress() as display:
        task = display.add_task(title, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)


def _summarise(block: dict[str, Any], output_dir: Path) -> None:
    for stage, values in block["stages"].items():
        for name, value in values.items():
            if isinstance(value, float) and not name.startswith("frechet"):
                interval = _interval(values.get("intervals", {}).get(name))
                console.print(f"{stage:14} {name:42} {value:8.3f}{interval}")
        if "frechet" in values:
            console.print(
                f"{stage:14} {'frechet against held-out reconstructions':42} {_figure(values['frechet'])}",
            )
        for name, found in values.get("against_scans", {}).items():
            console.print(f"{stage:14} {name + ' against held-out scans':42} {_figure(found)}")
    console.print(f"{block['seconds'] / 60:.1f} minutes, {block['peak_rss_gib']:.1f} GiB at the peak")
    from prod9.evaluation.report.pictures import PICTURES

    for name in (*(picture.file for picture in PICTURES), "metrics.json", "report.html"):
        if (output_dir / name).exists():
            console.print(str(output_dir / name))


def _interval(ends: list[float] | None) -> str:
    return "" if not ends or ends[0] is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"


def _figure(found: dict[str, Any]) -> str:
    """Return a score with its interval, floor, N patients and D; ``?`` marks scores of too few patients."""
    value, floor = ("–" if found[name] is None else f"{found[name]:.3f}" for name in ("value", "floor"))
    numbers = f"N {found['patients']}" + (f", D {found['dimensions']}" if "dimensions" in found else "")
    mark = "" if found.get("reliable", True) else " ?"
    return f"{value:>8}{mark}{_interval([found['low'], found['high']])}, floor {floor}, {numbers}"
