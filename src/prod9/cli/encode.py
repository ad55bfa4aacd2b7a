"""``prod9 encode``: fill the token store of a stage-2 run before it trains, or verify it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prod9.cli import shared
from prod9.cli.front.after import tell_merge, tell_next
from prod9.cli.parts.engine import AddressOption, Engine, EngineOption, PartsOption, run_parts
from prod9.cli.parts.option import PartOption, chosen_part
from prod9.cli.parts.record import STORE, PartRecord, plan_of, require_same_count
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
from prod9.errors import ConfigError
from prod9.system.parts import WorkPart
from prod9.system.wording import plural

if TYPE_CHECKING:
    import torch

    from prod9.config.schema import MaisiDiffusionConfig, TransformerConfig
    from prod9.training.data.encoders import EncoderPool, Stage1

_ELSEWHERE = {"root", "cache", "cache_dir", "store_dir", "num_workers", "batch_size", "max_val_volumes"}
"""Keys of ``data`` that do not decide what is encoded, and may differ between machines."""

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
    part: PartOption = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    parts: PartsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Encode every volume of a stage-2 config with its autoencoder, into the store that training reads.

    Threads (`--workers`) read cases while `--processes` encoders work. Stored volumes are kept if they are undamaged
    and of the same files, preprocessing and weights, so an interrupted run goes on where it was. Several runs may
    share a store; with `--part` each fills a folder of its own there, which needs no locks. `train` does the same by
    itself; this command is for doing it elsewhere, or before.
    """
    given = dict(locals())
    asked = Engine(engine=engine, address=address, parts=parts)
    changes = [*(overrides or []), *([f"data.num_workers={workers}"] if workers is not None else [])]
    from prod9.config.load import of_class
    from prod9.config.schema import MaisiDiffusionConfig, TransformerConfig

    loaded = shared.load(config, overrides=changes, output_dir=output_dir, seed=seed)
    run_config = of_class(loaded, (TransformerConfig, MaisiDiffusionConfig))
    if asked.engine is not None and not verify:
        directory = Path(run_config.store_dir)
        run_parts(encode, given, directory, asked)
        given.update(dict.fromkeys(("engine", "address", "parts")), part="1/1", verify=True)
        encode(**given)
        return
    work = chosen_part(part)
    store = work.folder(run_config.store_dir)
    if not work.is_all and overwrite:
        raise ConfigError(
            "--overwrite: expected it without --part, got both; empty the store with one run in one piece, or name "
            "another data.store_dir"
        )
    if not verify:
        _encode(run_config, device, processes, work, overwrite=overwrite)
    from prod9.data.stores.latents import StoreReport, verify_store
    from prod9.data.stores.manifest import Manifest

    # A part of a store that holds all of it already, or one beyond the number of cases, encodes nothing.
    empty = not work.is_all and not Manifest.read(store).rows
    report = StoreReport(0, 0, ()) if empty else verify_store(store)
    result = {
        "store": str(store),
        "items": report.items,
        "bytes": report.num_bytes,
        "damaged": list(report.damaged),
    }
    _print(result, as_json)
    if not as_json and not report.damaged:
        tell_next("prod9", "train", "--config", config) if work.is_all else tell_merge(store)
    if report.damaged:
        raise typer.Exit(FAILED)


def _encode(
    config: "TransformerConfig | MaisiDiffusionConfig",
    device: str,
    processes: int,
    work: WorkPart,
    *,
    overwrite: bool,
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
        from prod9.training.run import load_bases

        # Parts do not touch the run's folder, only their own.
        with locked(work.folder(Path(config.output_dir) if work.is_all else config.store_dir)):
            chosen, autoencoder = torch_device(device), load_bases(config, opened=base)
            del base  # its weights are in the network now
            if overwrite:
                replace_store(config.store_dir, key=autoencoder.sha256, grid=config.data.grid)
            if processes == 1:
                _fill(config, autoencoder, work, device=chosen)
                return
            names = _devices(chosen, processes)
            with EncoderPool(autoencoder, config.sliding_window, devices=names) as pool:
                _fill(config, autoencoder, work, pool=pool)


def _fill(
    config: "TransformerConfig | MaisiDiffusionConfig",
    autoencoder: "Stage1",
    work: WorkPart,
    *,
    device: "torch.device | str" = "cpu",
    pool: "EncoderPool | None" = None,
) -> None:
    """Encode what the store of ``config`` lacks, or the part ``work`` of it into a folder there."""
    from prod9.training.data.encoders import encoded_source
    from prod9.training.data.module import AbstractSegmentedDataModule
    from prod9.training.run import build_data_module

    module = build_data_module(config, autoencoder, device=device, encode=pool)
    if work.is_all:
        module.setup(None)
        return
    assert isinstance(module, AbstractSegmentedDataModule), "stage 2 of both families encodes"
    require_same_count(config.store_dir, work)
    source = encoded_source(autoencoder, config.sliding_window, device=device, encode=pool)
    folder = work.folder(config.store_dir)
    items, keys = source.items_of_part(module, work)
    PartRecord(
        part=str(work),
        kind=STORE,
        settings={
            "autoencoder": autoencoder.sha256,
            "data": config.data.model_dump(mode="json", exclude=_ELSEWHERE),
            "sliding_window": config.sliding_window.model_dump(mode="json"),
        },
        total=len(keys),
        plan=plan_of(keys),
        names=[key for _, key in items],
    ).write(folder)
    source.fill_part(module, work, folder, items)


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
