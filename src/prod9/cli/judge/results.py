"""What the commands of ``prod9 evaluate`` begin and end with: their folder, and their result."""

from pathlib import Path
from typing import TYPE_CHECKING

from prod9.cli import shared
from prod9.cli.front.after import tell_after_scores
from prod9.errors import ConfigError

if TYPE_CHECKING:
    from prod9.evaluation.score_table import Evaluation

FILE = "evaluation.json"


def check_folder(output_dir: Path, overwrite: bool) -> None:
    """Refuse (ConfigError) a folder that holds a result, unless it may be replaced."""
    from prod9.files import check_writable

    if (output_dir / FILE).exists() and not overwrite:
        raise ConfigError(
            f"{output_dir / FILE}: exists already; choose another --output-dir, or replace it with --overwrite."
        )
    check_writable(output_dir)


def finish(evaluation: "Evaluation", output_dir: Path, as_json: bool, real: Path, generated: Path) -> None:
    """Write the result, and print it.

    Args:
        evaluation: the result.
        output_dir: where it goes.
        as_json: print it as JSON.
        real: folder of the real volumes.
        generated: folder of the others.
    """
    files = evaluation.write(output_dir)
    for item in evaluation.skipped:
        shared.messages.print(f"Skipped: {item.reason}")
    for item in evaluation.left_out:
        shared.messages.print(f"Note: {item.sentence()}")
    for warning in evaluation.warnings:
        shared.messages.print(f"Warning: {warning}")
    if as_json:
        shared.print_json(evaluation.to_dict())
        return
    from prod9.cli.judge.score_tables import print_scores

    print_scores(evaluation)
    shared.console.print(f"Written: {', '.join(str(file) for file in files)}")
    tell_after_scores(generated, output_dir, real)
