"""``prod9 report``: one HTML file on what a run produced and how reliable it is."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.front.after import tell_next
from prod9.cli.front.places import one_file
from prod9.cli.shared import DebugOption, JsonOption, RadiologicalOption, console, new_app, print_json

app = new_app("Write a report that opens in any browser, without a network.")


@app.command(example="prod9 report outputs/demo/starter")
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A run, or a folder of runs such as the demo's.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Default: RUN_DIR/report.html.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", metavar="DIR", help="Instead of --output: folder of report.html."),
    ] = None,
    generated: Annotated[
        Path | None,
        typer.Option("--generated", metavar="DIR", help="Generated volumes; by default those in RUN_DIR."),
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option(
            "--include", metavar="DIR", help="Another folder with evaluation.json or audit.json; repeatable."
        ),
    ] = None,
    radiological: RadiologicalOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Gather curves, scores, pictures, the copy audit and the configuration of RUN_DIR into one HTML file.

    Volumes are embedded with a viewer that overlays segmentations. What is missing is left out, and the report names
    the command that makes it.
    """
    from prod9.errors import ConfigError
    from prod9.evaluation.report.page import Sources, write_report

    output = one_file(output, output_dir, "report.html", or_in=folder)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output: expected a file ending in .html, got {output}; rename it.")
    written = write_report(folder, output, Sources(generated, include or (), radiological))
    megabytes = written.stat().st_size / 1e6
    if as_json:
        print_json({"report": str(written), "megabytes": round(megabytes, 2)})
    else:
        console.print(f"{written} ({megabytes:.1f} MB); open it in any browser")
        if (folder / "config.yaml").is_file():  # a card describes one run
            tell_next("prod9", "card", folder)
