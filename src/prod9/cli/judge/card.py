"""``prod9 card``: a model card and a data card of a run."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.front.after import tell_next
from prod9.cli.shared import DebugOption, JsonOption, console, new_app, print_json

app = new_app("Write a model card and a data card from what a run recorded.")


@app.command(example="prod9 card outputs/demo/starter/stage2")
def card(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", metavar="DIR", help="Default: RUN_DIR.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write MODEL_CARD.md and DATA_CARD.md: Markdown with the metadata block of Hugging Face.

    Scores and the copy audit are those of evaluation.json and audit.json in RUN_DIR.
    """
    from prod9.evaluation.report.cards import write_cards

    written = write_cards(folder, output_dir or folder)
    if as_json:
        print_json({"cards": [str(path) for path in written]})
        return
    for path in written:
        console.print(str(path))
    tell_next("prod9", "export", folder, "-o", "export", note="to share the model")
