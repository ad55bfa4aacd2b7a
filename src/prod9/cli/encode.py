"""``prod9 encode``: fill the token store of a stage-2 run before it trains, or verify it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_next
from prod9.cli.shared import (
    FAILED,
    ConfigOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    OutputDirOption,
    SeedOption,
    SetOption,
    new_app,
)
from prod9.devices import torch_device
from prod9.system.wording import plural

if TYPE_CHECKING:
    import torch

    from prod9.config.schema import MaisiDiffusionConfig, TransformerConfig

app = new_app("Encode the volumes of a stage-2 run once, ahead of training.")


@app.command(example="prod9 encode -c demo/stage2_label")
def encode(
    config: ConfigOption,
    overrides: SetOption = None,
    output_dir: OutputDirOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=0, help="Cases read ahead, instead of data.num_workers."),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Encoders at a time; on several GPUs they take turns.")
    ] = 1,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash what is stored again, encode nothing; exit code 1 if damaged."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace a store of another autoencoder or grid, if nobody reads it."
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Encode every volume of a stage-2 config with its autoencoder, into the store that training reads.

    Threads (`--workers`) read cases while `--processes` encoders work. Stored volumes are kept if they are undamaged
    and of the same files, preprocessing and weights, so an interrupted run goes on where it was. Several runs may
    share a store. `train` does the same by itself; this command is for doing it elsewhere, or before.
    """
    changes = [*(overrides or []), *([f"data.num_workers={workers}"] if workers is not None else [])]
    from prod9.config.load import of_class
    from prod9.config.schema import MaisiDiffusionConfig, TransformerConfig

    loaded = shared.load(config, overrides=changes, output_dir=output_dir, seed=seed)
    run_config = of_class(loaded, (TransformerConfig, MaisiDiffusionConfig))
    store = run_config.store_dir
    if not verify:
        _encode(run_config, device, processes, overwrite=overwrite)
    from prod9.data.stores.latents import verify_store

    report = verify_store(store)
    result = {
        "store": str(store),
        "items": report.items,
        "bytes": report.num_bytes,
        "damaged": list(report.damaged),
    }
    _print(result, as_json)
    if not as_json and not report.damaged:
        tell_next("prod9", "train", "--config", config)
    if report.damaged:
        raise typer.Exit(FAILED)


def _encode(
    config: "TransformerConfig | MaisiDiffusionConfig", device: str, processes: int, *, overwrite: bool
) -> None:
    from prod9.cli.checks.run import check_inputs

    again = "Stopped; what is encoded is kept, and the same command goes on from here."
    with shared.resumable(again):
        check_inputs(config)
        from prod9.cli.checks.bases import check_bases

        base = check_bases(config).opened
        from prod9.data.stores.latents import replace_store
        from prod9.models.run_folder import locked
        from prod9.training.data.encoders import EncoderPool
        from prod9.training.run import build_data_module, load_bases

        with locked(Path(config.output_dir)):
            chosen, autoencoder = torch_device(device), load_bases(config, opened=base)
            del base  # its weights are in the network now
            if overwrite:
                replace_store(config.store_dir, key=autoencoder.sha256, grid=config.data.grid)
            if processes == 1:
                build_data_module(config, autoencoder, device=chosen).setup(None)
                return
            names = _devices(chosen, processes)
            with EncoderPool(autoencoder, config.sliding_window, devices=names) as pool:
                build_data_module(config, autoencoder, encode=pool).setup(None)


def _devices(chosen: "torch.device", processes: int) -> list[str]:
    """Return the device of each process: all GPUs in turn for plain ``cuda``, else the one that was named."""
    import torch

    if chosen.type != "cuda" or chosen.index is not None:
        return [str(chosen)] * processes
    return [f"cuda:{k % torch.cuda.device_count()}" for k in range(processes)]


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        shared.print_json(result)
        return
    damaged = result["damaged"]
    state = (
        f"{plural(damaged, 'shard')} damaged; encode again to replace them" if damaged else "all shards whole"
    )
    shared.console.print(
        f"{plural(result['items'], 'volume')}, {result['bytes'] / 1e6:.1f} MB, {state}: {result['store']}"
    )
