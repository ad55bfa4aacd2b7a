"""What every command shares: option types, loading the config, printing, and errors as messages.

A command module looks like this, with everything heavy imported inside the functions::

    app = new_app("Train the autoencoder.")

    @app.command()
    def train(config: ConfigOption, overrides: SetOption = None, debug: DebugOption = False) -> None:
        run_config = load(config, stage="autoencoder", overrides=overrides)
        from prod9.training.run import train as run_training
        ...

    def main() -> None:
        run_app(app)

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. Results go to stdout;
messages and progress go to stderr, so that ``--json`` and ``--print-config`` can be piped. Both consoles show every
string as it is, whatever brackets or codes it holds (:mod:`prod9.system.terminal`).
"""

import json
import logging
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import prod9
from prod9.cli.front.after import remember
from prod9.cli.front.completion import config_names
from prod9.cli.parsing import App, Group
from prod9.errors import Prod9Error
from prod9.json_files import without_nan
from prod9.system.stopping import watching
from prod9.system.terminal import PlainColumn, PlainConsole, replace_unknown_characters
from prod9.system.verbosity import set_verbosity

if TYPE_CHECKING:
    from rich.progress import Progress

    from prod9.config.schema import RunConfig

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
DEBUG_FLAG = "--debug"
MOST_SEEDS = 2**63
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

console = PlainConsole()
"""Standard output: results."""
messages = PlainConsole(stderr=True)
"""Standard error: messages, warnings, progress; nothing of it after ``--quiet``."""
errors = PlainConsole(stderr=True, errors=True)
"""Standard error: what ended the command."""


def _checked_device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"expected auto, cpu, mps, cuda or cuda:N, got {value!r}")
    return value


ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME_OR_PATH",
        autocompletion=config_names,
        help="A YAML file, or the name of a shipped config (`prod9 configs list`).",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value, e.g. training.max_steps=10; repeatable."
    ),
]
OutputDirOption = Annotated[
    str | None,
    typer.Option("--output-dir", "-o", metavar="DIR", help="Write here, not to the config's output_dir."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", metavar="auto|cpu|cuda:N|mps", callback=_checked_device, help="Where to compute."
    ),
]


def checked_seed(value: int) -> int:
    """Refuse (usage error) a seed beyond what torch takes."""
    if value >= MOST_SEEDS:
        raise typer.BadParameter(f"expected a whole number below {MOST_SEEDS}, got {value}")
    return value


SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of all randomness, instead of the config's.")
]
CheckOption = Annotated[
    bool,
    typer.Option("--check", help="Check everything, build the model, estimate memory and disk, then stop."),
]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Print the config with every default filled in, then stop.")
]
OutputsOption = Annotated[
    str, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the results go; made if missing.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that are there; otherwise they are kept.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RadiologicalOption = Annotated[
    bool,
    typer.Option(
        "--radiological", help="Show the patient's right on the left, as radiologists do; else left is left."
    ),
]
DebugOption = Annotated[bool, typer.Option(DEBUG_FLAG, help="On an error, print the full traceback.")]


class Interrupted(Prod9Error):  # noqa: N818 (an interrupt is no error)
    """Ctrl-C or a signal stopped the command; the message says what was kept and how to go on."""

    def __init__(self, message: str, exit_code: int = INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prod9 {prod9.__version__}")
        raise typer.Exit


def new_app(text: str, cls: type[Group] = Group) -> App:
    """Return an empty command group with prod9's settings.

    The callback keeps it a group when it holds a single command.

    text: its help. cls: decides the order of its commands.
    """
    app = App(
        cls=cls,
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(help=text)
    def root(
        version: Annotated[
            bool,
            typer.Option(
                "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version."
            ),
        ] = False,
    ) -> None:
        """Hold the options of the group itself."""

    return app


def load(
    config: str,
    *,
    stage: str | Sequence[str] | None = None,
    overrides: Sequence[str] | None = None,
    output_dir: str | None = None,
    seed: int | None = None,
) -> "RunConfig":
    """Load a config for a command: ``--output-dir`` and ``--seed`` win over ``--set``, that over the file."""
    from prod9.config.load import load_config

    changes = config_changes(overrides, output_dir=output_dir, seed=seed)
    return load_config(config, overrides=changes, stage=stage)


def config_changes(
    overrides: Sequence[str] | None, *, output_dir: str | None = None, seed: int | None = None
) -> list[str | tuple[str, Any]]:
    """Return the changes that a command line asks for, the last ones winning."""
    changes: list[str | tuple[str, Any]] = list(overrides or [])
    if output_dir is not None:
        changes.append(("output_dir", output_dir))
    if seed is not None:
        changes.append(("seed", seed))
    return changes


def print_config(config: "RunConfig") -> None:
    """Print ``config`` to stdout as YAML that ``--config`` accepts again."""
    from prod9.config.load import dump_config

    sys.stdout.write(dump_config(config))


def print_json(value: Any) -> None:
    """Print ``value`` to stdout as JSON; NaN and infinities, which JSON does not have, become ``null``."""
    sys.stdout.write(json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns of text to stdout, one line a row whatever the width of the terminal: nothing is cut or folded."""
    table = [list(titles), *map(list, rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(titles))]
    for number, row in enumerate(table):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        console.print(line, style="bold" if number == 0 else None)


def print_error(message: str) -> None:
    """Print one message to stderr."""
    errors.print("Error:", style="bold red", end=" ")
    errors.print(message)


def warn(message: str) -> None:
    """Print one warning to stderr."""
    messages.print(f"Warning: {message}")


def progress() -> "Progress":
    """Return a progress display on stderr with counts, rate and time left, to be used as a context."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        PlainColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        PlainColumn("left"),
        TimeRemainingColumn(),
        console=messages,
    )


@contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Turn a request to stop inside the block into one message that ends with ``hint``: how to go on.

    Requests are Ctrl-C and the signals of schedulers and closed terminals; each has its usual exit code.
    """
    with watching() as watch:
        try:
            yield
        except KeyboardInterrupt as error:
            told = f"Stopped by {watch.name}. " if watch.asked not in (None, signal.SIGINT) else ""
            raise Interrupted(told + hint, watch.exit_code) from error


def run(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run ``app`` on ``args`` (default: the command line) and return the exit code.

    A :class:`Prod9Error` becomes one message and its exit code, any other exception one line and 1. With
    ``--debug`` anywhere on the line the traceback is printed first.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    replace_unknown_characters()
    logging.getLogger("prod9").addHandler(_TO_MESSAGES)
    set_verbosity("normal")
    remember(arguments)
    try:
        typer.main.get_command(app)(args=arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else DONE if stop.code is None else FAILED
        if code == INTERRUPTED:
            print_error("Interrupted.")
        return code
    except KeyboardInterrupt:
        print_error("Interrupted.")
        return INTERRUPTED
    except Exception as error:
        return report_error(error, debug=DEBUG_FLAG in arguments)
    finally:
        set_verbosity("normal")
    return DONE


class _ToMessages(logging.Handler):
    """Prints the log messages of the library like all other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        messages.print(record.getMessage())


_TO_MESSAGES = _ToMessages(logging.INFO)


def run_app(app: typer.Typer) -> NoReturn:
    """Run ``app`` on the command line and exit; the body of every ``main``."""
    sys.exit(run(app))


def _message(error: Prod9Error) -> str:
    """Return the message of ``error``, without the traceback that loader processes wrap it in."""
    from prod9.models.named.packaged import named_in

    text = str(error)
    if "Original Traceback" not in text:
        return named_in(text)
    return text.rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


def report_error(error: Exception, *, debug: bool = False) -> int:
    """Print ``error`` as one message, with ``debug`` after its traceback, and return the exit code."""
    if debug:
        errors.print_exception()
    if isinstance(error, Prod9Error):
        print_error(_message(error))
        return error.exit_code
    text = " ".join(str(error).split())
    if "weights_only" in text:  # torch's advice is to unpickle whatever the file holds
        text = "expected a file of tensors and plain values only, got other objects or damaged bytes"
    if isinstance(error, OSError) and error.filename is not None:
        why = f"cannot be used ({error.strerror or type(error).__name__})"
        print_error(f"{error.filename}: {why}; check the path, its permissions, and the space on its disk.")
        return FAILED
    hint = "" if debug else f"\nRun again with {DEBUG_FLAG} for the traceback."
    print_error(f"{type(error).__name__}: {text}{hint}" if text else f"{type(error).__name__}.{hint}")
    return FAILED
