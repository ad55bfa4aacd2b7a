"""``prod9 configs``: which configs are shipped, their values, and all keys."""

from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.shared import (
    DebugOption,
    JsonOption,
    SetOption,
    new_app,
    print_config,
    print_json,
    print_table,
)

app = new_app("List, show and explain configurations.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A shipped name or a YAML file.")]
StageOption = Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="Only this stage.")]


@app.command("list", example="prod9 configs list")
def list_configs(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the shipped configs: name, stage and first comment line."""
    from prod9.config.load import merge_config, shipped_configs

    rows = [
        {"name": name, "stage": str(merge_config(path).get("stage")), "about": _first_comment(path)}
        for name, path in shipped_configs().items()
    ]
    if as_json:
        print_json(rows)
        return
    print_table(("name", "stage", "about"), [tuple(row.values()) for row in rows])


@app.command(example="prod9 configs show demo/stage1 > mine.yaml")
def show(name: NameArgument, overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Print a config with everything it extends and every default; variables stay as written."""
    from prod9.config.load import load_config

    print_config(load_config(name, overrides=overrides or (), fill_variables=False))


@app.command(example="prod9 configs schema --stage autoencoder")
def schema(stage: StageOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Print every key with its type, default and meaning; `--json` prints a JSON schema for editors."""
    from prod9.config.schema import CONFIGS
    from prod9.config.tables import markdown_table
    from prod9.errors import ConfigError

    if stage is not None and stage not in CONFIGS:
        raise ConfigError(f"--stage: expected {' or '.join(CONFIGS)}, got {stage!r}")
    models = {name: model for name, model in CONFIGS.items() if stage in (None, name)}
    if as_json:
        print_json({name: model.model_json_schema() for name, model in models.items()})
        return
    for name, model in models.items():
        typer.echo(f"# stage: {name}\n\n{markdown_table(model)}")


def _first_comment(path: Path) -> str:
    lines = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    return next(lines, "")
