"""Where a command that makes one file puts it: ``--output FILE``, or a usual name in the folder ``-o``."""

from pathlib import Path

from prod9.errors import ConfigError


def one_folder(given: Path | None, output_dir: Path | None) -> Path:
    """Return the folder that was named once, as an argument or by ``--output-dir``; else ConfigError."""
    if (given is None) == (output_dir is None):
        got = "neither" if given is None else "both"
        raise ConfigError(f"expected a folder as DIR or by --output-dir DIR, got {got}; name it once")
    return given if given is not None else Path(str(output_dir))


def one_file(output: Path | None, output_dir: Path | None, name: str, *, or_in: Path | None = None) -> Path:
    """Return the file to write; ConfigError for both options, for a folder that is named like a file, and for nothing.

    Args:
        output: ``--output``.
        output_dir: ``--output-dir``.
        name: of the file in a folder.
        or_in: the folder without either option.
    """
    if output is not None and output_dir is not None:
        raise ConfigError("expected --output FILE or --output-dir DIR, got both; leave one out")
    if output is not None:
        return output
    folder = output_dir or or_in
    if folder is None:
        raise ConfigError("expected --output FILE or --output-dir DIR, got neither; add one")
    if output_dir is not None and (output_dir.suffix == Path(name).suffix or output_dir.is_file()):
        raise ConfigError(
            f"-o/--output-dir: expected a folder for {name}, got the name of a file, {output_dir}; use --output for a "
            "file."
        )
    return folder / name
