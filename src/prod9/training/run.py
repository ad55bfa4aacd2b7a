"""Train, validate and test a configuration: data module, adapter and Trainer, put together.

The whole run is one Lightning epoch of ``max_steps`` batches, starting at the step of the checkpoint that is
resumed. Which batch comes when is a function of seed and step, so nothing of Lightning's loops is restored.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.data.latents import Encode, ParallelEncode
from prod9.data.splits import Part, Split
from prod9.errors import CheckpointError, ConfigError
from prod9.terminal import PlainConsole
from prod9.training.brats_controlnet_data import BraTSControlNetDataModule
from prod9.training.brats_data import AbstractBraTSDataModule, BraTSDataModule
from prod9.training.brats_diffusion_data import BraTSDiffusionDataModule
from prod9.training.brats_in_context_data import BraTSInContextDataModule
from prod9.training.brats_label_conditional_data import BraTSLabelConditionalDataModule
from prod9.training.brats_refiner_data import BraTSRefinerDataModule
from prod9.training.callbacks import KeepCheckpoints, build_callbacks
from prod9.training.config import config_to_dict, dump_config
from prod9.training.config_schema import (
    AutoencoderConfig,
    FSQModelConfig,
    MaisiControlNetConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    MaskGiTControlNetLightningConfig,
    RefinerConfig,
    RunConfig,
    Stage1Config,
    TransformerConfig,
)
from prod9.training.encoders import build_encode
from prod9.training.lightning.autoencoder_lightning import AutoencoderLightning
from prod9.training.lightning.base import AbstractLightning
from prod9.training.lightning.controlnet_lightning import (
    ControlNetLightning,
    FlowUpstream,
    load_flow_upstream,
)
from prod9.training.lightning.controlnet_maskgit_lightning import (
    ControlNetLightningMaskGiT,
    ControlUpstream,
    load_control_upstream,
)
from prod9.training.lightning.datamodule import AbstractDataModule
from prod9.training.lightning.generative import load_upstream
from prod9.training.lightning.in_context_lightning import InContextTransformerLightning
from prod9.training.lightning.label_conditional_lightning import LabelConditionalTransformerLightning
from prod9.training.lightning.maisi_diffusion_lightning import MAISIDiffusionLightning
from prod9.training.lightning.maisi_vae_lightning import MAISIVAELightning
from prod9.training.lightning.refiner_lightning import RefinerLightning
from prod9.training.lightning.transformer_lightning import TransformerLightning
from prod9.training.lightning.translator import Translator, load_translator
from prod9.training.lightning.upstream import load_vae
from prod9.training.medmnist3d_data import MedMNIST3DDataModule
from prod9.training.model.checkpoint_manager import (
    CheckpointManager,
    Loaded,
    Opened,
    Source,
    load_strictly,
    weights_of,
)
from prod9.training.model.model_factory import ModelFactory
from prod9.training.run_folder import (
    append_run,
    locked,
    peak_memory_gib,
    require_fresh,
    sweep,
    versions,
    write_json,
    write_text,
)
from prod9.training.trainer import build_loggers, build_trainer, quiet

log = logging.getLogger("prod9")
_console = PlainConsole(stderr=True)

Upstream = Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi] | ControlUpstream | FlowUpstream | Translator
"""What stage 2 builds on, of either family, or stage 3, or a refiner."""

ADAPTERS = {
    "label_conditional": LabelConditionalTransformerLightning,
    "decoder": TransformerLightning,
    "single_stream": InContextTransformerLightning,
}
DATA_MODULES = {
    "label_conditional": BraTSLabelConditionalDataModule,
    "decoder": BraTSDataModule,
    "single_stream": BraTSInContextDataModule,
}


@dataclass(frozen=True)
class RunResult:
    """What a run left: its best checkpoint, the metrics of the last validation, the steps done."""

    checkpoint: Path
    metrics: dict[str, float]
    step: int


def train(
    config: RunConfig,
    *,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
) -> RunResult:
    """Train until ``training.max_steps`` and return what came of it.

    resume: ``auto`` goes on from the last good checkpoint of ``output_dir``, or starts if there is none; a
    path goes on from that run or file. init_from: start a new run from the weights of another (fine-tuning); with
    ``auto``, where there is nothing to go on from.
    device: ``auto`` leaves it to ``trainer``; else ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    Raises ConfigError, DataError, CheckpointError or TrainingError; InterruptedTrainingError after a signal,
    having saved.
    """
    if resume not in (None, "auto") and init_from is not None:
        raise ConfigError(
            "--resume PATH goes on with a run and --init-from starts a new one: expected one of them, got both."
        )
    output_dir = Path(config.output_dir)
    # Under DDP every rank runs this; the folder belongs to the first.
    with locked(output_dir) if _is_first_rank() else nullcontext():
        start = _find_start(config, resume)
        if start is None:
            return _train(config, None, init_from, device)
        finished = start.header["step"] >= config.training.max_steps
        _warn_of_changes(config, start, finished=finished)
        return _finished(config, start) if finished else _train(config, start, None, device)


def validate(
    config: RunConfig, checkpoint: Source | None = None, *, device: str = "auto"
) -> dict[str, float]:
    """Return ``val/…`` metrics of ``checkpoint`` (default: the best of ``output_dir``) on those patients."""
    return _evaluate(config, checkpoint, device, "validate")


def test(
    config: RunConfig,
    checkpoint: Source | None = None,  # noqa: PT028 (not a pytest function)
    *,
    device: str = "auto",  # noqa: PT028
) -> dict[str, float]:
    """Return ``test/…`` metrics of ``checkpoint`` on the test patients, which nothing else ever saw."""
    return _evaluate(config, checkpoint, device, "test")


def build_module(config: RunConfig, upstream: Upstream | None = None) -> AbstractLightning:
    """Return the adapter of ``config`` with the first weights of its seed.

    upstream: what the stage builds on, if it is already loaded.
    """
    with torch.random.fork_rng(devices=[]):
        # Layers draw their first weights from the global generator and take no other.
        torch.manual_seed(config.seed)
        if isinstance(config, AutoencoderConfig):
            return AutoencoderLightning(config)
        if isinstance(config, MaisiVAEConfig):
            return MAISIVAELightning(config)
        if isinstance(config, MaisiDiffusionConfig):
            return MAISIDiffusionLightning(config, cast(Loaded[AutoencoderKlMaisi] | None, upstream))
        if isinstance(config, RefinerConfig):
            return RefinerLightning(config, cast(Translator | None, upstream))
        if isinstance(config, MaisiControlNetConfig):
            return ControlNetLightning(config, cast(FlowUpstream | None, upstream))
        if isinstance(config, MaskGiTControlNetLightningConfig):
            assert isinstance(upstream, ControlUpstream | None)
            return ControlNetLightningMaskGiT(config, upstream)
        return ADAPTERS[config.model.kind](config, cast(Loaded[AutoencoderFSQ] | None, upstream))


def build_data_module(
    config: RunConfig,
    upstream: Upstream | None = None,
    *,
    device: torch.device | str = "cpu",
    encode: ParallelEncode | None = None,
) -> AbstractDataModule:
    """Return the data module of ``config``; stages 2 and 3 encode each volume once, with ``upstream``.

    encode: for stage 2, an :class:`~prod9.training.encoders.EncoderPool` of that upstream; None encodes here.
    """
    if isinstance(config, Stage1Config):
        return MedMNIST3DDataModule(config) if config.data.kind == "medmnist3d" else BraTSDataModule(config)
    if isinstance(config, MaskGiTControlNetLightningConfig):
        if not isinstance(upstream, ControlUpstream):
            upstream = load_control_upstream(config)
        base, tokenizer = upstream.base_config(config), upstream.autoencoder
        inner = _token_data_module(
            base, tokenizer, build_encode(tokenizer, base.sliding_window, device=device)
        )
        base_split = Split.from_dict(upstream.base.header["split"])
        return BraTSControlNetDataModule(config, inner=inner, base_split=base_split)
    if isinstance(config, MaisiControlNetConfig):
        flow = cast(FlowUpstream | None, upstream) or load_flow_upstream(config)
        encoder = build_encode(flow.autoencoder, config.sliding_window, device=device)
        latents = _latent_data_module(config, flow.autoencoder, encoder)
        return BraTSControlNetDataModule(
            config, inner=latents, base_split=Split.from_dict(flow.base.header["split"])
        )
    if isinstance(config, RefinerConfig):
        translator = cast(Translator | None, upstream) or load_translator(config)
        return BraTSRefinerDataModule(config, translator=replace(translator, device=device))
    if isinstance(config, MaisiDiffusionConfig):
        vae = cast(Loaded[AutoencoderKlMaisi] | None, upstream) or load_vae(config)
        return _latent_data_module(
            config, vae, encode or build_encode(vae, config.sliding_window, device=device)
        )
    tokenizer = cast(Loaded[AutoencoderFSQ] | None, upstream) or load_upstream(config)
    return _token_data_module(
        config, tokenizer, encode or build_encode(tokenizer, config.sliding_window, device=device)
    )


def load_autoencoder(
    config: TransformerConfig | MaisiDiffusionConfig,
) -> Loaded[AutoencoderFSQ] | Loaded[AutoencoderKlMaisi]:
    """Load what ``inputs.autoencoder`` of a stage 2 names; ConfigError when it is not set."""
    return load_vae(config) if isinstance(config, MaisiDiffusionConfig) else load_upstream(config)


def _latent_data_module(
    config: MaisiDiffusionConfig | MaisiControlNetConfig,
    upstream: Loaded[AutoencoderKlMaisi],
    encode: Encode | ParallelEncode,
) -> AbstractBraTSDataModule | MedMNIST3DDataModule:
    family = MedMNIST3DDataModule if config.data.kind == "medmnist3d" else BraTSDiffusionDataModule
    return family(
        config,
        encode=encode,
        encoder_hash=upstream.sha256,
        upstream_split=Split.from_dict(upstream.header["split"]),
    )


def _token_data_module(
    config: TransformerConfig, upstream: Loaded[AutoencoderFSQ], encode: Encode | ParallelEncode
) -> AbstractBraTSDataModule | MedMNIST3DDataModule:
    # Loader processes look codes up on the CPU, wherever the network is.
    section = FSQModelConfig.model_validate(upstream.header["architecture"]["autoencoder"])
    codebook = ModelFactory.create_quantizer(section)
    family = MedMNIST3DDataModule if config.data.kind == "medmnist3d" else DATA_MODULES[config.model.kind]
    return family(
        config,
        encode=encode,
        indices_to_codes=codebook.indices_to_codes,
        encoder_hash=upstream.sha256,
        upstream_split=Split.from_dict(upstream.header["split"]),
    )


# -- training ---------------------------------------------------------------------------------------


def _train(config: RunConfig, start: Opened | None, init_from: str | Path | None, device: str) -> RunResult:
    began, output_dir = time.monotonic(), Path(config.output_dir)
    upstream = _load_upstream(config)
    module = build_module(config, upstream)
    if start is not None:
        _require_inputs(start, module)
    if init_from is not None:
        initialise(module, init_from)
    if _is_first_rank():
        sweep(output_dir)
        write_text(output_dir / "config.yaml", dump_config(config))
    step = start.header["step"] if start else 0
    callbacks = build_callbacks(config, module, say=_say)
    trainer = build_trainer(config, device, callbacks, build_loggers(config, step))
    data = build_data_module(config, upstream, device=trainer.strategy.root_device)
    data.set_start_step(step)
    with quiet(), _session(config, trainer, module, began, start, init_from):
        trainer.fit(module, datamodule=data, ckpt_path=str(start.path) if start else None)
    keeper = next(callback for callback in callbacks if isinstance(callback, KeepCheckpoints))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    if trainer.is_global_zero:
        content = {"step": module.step, "metrics": metrics, "monitor": keeper.monitor, "best": keeper.best}
        write_json(output_dir / "metrics.json", content)
    return RunResult(CheckpointManager.resolve(output_dir), metrics, module.step)


def _load_upstream(config: RunConfig) -> Upstream | None:
    if isinstance(config, MaskGiTControlNetLightningConfig):
        return load_control_upstream(config)
    if isinstance(config, MaisiDiffusionConfig):
        return load_vae(config)
    if isinstance(config, MaisiControlNetConfig):
        return load_flow_upstream(config)
    if isinstance(config, RefinerConfig):
        return load_translator(config)
    return load_upstream(config) if isinstance(config, TransformerConfig) else None


def _require_inputs(opened: Opened, module: AbstractLightning) -> None:
    """Refuse to go on upon other earlier stages than ``opened`` was trained on."""
    for name, given in module.inputs().items():
        recorded = opened.header["inputs"].get(name)
        if recorded is not None and recorded["sha256"] != given["sha256"]:
            raise CheckpointError(
                f"inputs.{name}: expected the {name} that {opened.path} was trained on (SHA-256 "
                f"{recorded['sha256'][:12]}…), got {given['path']} ({given['sha256'][:12]}…); its tokens mean "
                "something else. Name the right file, or start this stage anew."
            )


def initialise(module: AbstractLightning, path: str | Path) -> None:
    """Load the weights of another run into ``module``; optimizers and step start anew. Raises CheckpointError."""
    opened = CheckpointManager.open(path, stage=module.config.stage)
    module.take_weights(opened)
    module.inherit(opened.header)
    module.fresh = False
    log.info("Starting from the weights of %s (step %d there).", opened.path, opened.header["step"])


def _find_start(config: RunConfig, resume: str | Path | None) -> Opened | None:
    output_dir = Path(config.output_dir)
    if resume is None:
        if _is_first_rank():
            require_fresh(output_dir)
        return None
    if str(resume) == "auto":
        if not any((output_dir / "checkpoints").glob("*.ckpt")):
            return None
        resume = output_dir
    return CheckpointManager.open(resume, stage=config.stage, prefer="last")


def _warn_of_changes(config: RunConfig, start: Opened, *, finished: bool) -> None:
    """Name the settings that are not those of ``start``, and what comes of them."""
    changed = ", ".join(sorted(_changed_keys(start.header["config"], config_to_dict(config))))
    if not changed or not _is_first_rank():
        return
    if finished:
        log.warning(
            "%s had no effect: its checkpoints keep the settings that they were trained with. Train into another "
            "folder; how to sample is also asked for when generating.",
            changed,
        )
    else:
        log.warning("Resuming with other settings than before: %s.", changed)


def _finished(config: RunConfig, start: Opened) -> RunResult:
    _say(f"{config.output_dir} is finished: all {config.training.max_steps} steps are done.")
    try:
        recorded = json.loads((Path(config.output_dir) / "metrics.json").read_text(encoding="utf-8"))[
            "metrics"
        ]
    except (OSError, ValueError, KeyError):
        recorded = {}
    return RunResult(CheckpointManager.resolve(config.output_dir), recorded, start.header["step"])


def _changed_keys(before: Any, now: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _changed_keys(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif before != now and not prefix.startswith(("output_dir", "trainer", "callbacks")):
        yield prefix


@contextlib.contextmanager
def _session(
    config: RunConfig,
    trainer: Trainer,
    module: AbstractLightning,
    began: float,
    start: Opened | None,
    init_from: str | Path | None,
) -> Iterator[None]:
    """Record the session in run.json, however it ends."""
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    finally:
        if trainer.is_global_zero:
            device = trainer.strategy.root_device
            append_run(
                Path(config.output_dir),
                {
                    "outcome": outcome,
                    "from_step": start.header["step"] if start else 0,
                    "to_step": module.step,
                    "skipped_steps": module.skipped_steps,
                    "resumed_from": str(start.path) if start else None,
                    "init_from": str(init_from) if init_from is not None else None,
                    "seconds": round(time.monotonic() - began, 3),
                    "peak_rss_gib": round(peak_memory_gib(), 3),
                    "peak_cuda_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
                    if device.type == "cuda"
                    else None,
                    "device": str(device),
                    "world_size": trainer.world_size,
                    "precision": trainer.precision,
                    "versions": versions(),
                },
            )


# -- evaluation -------------------------------------------------------------------------------------


def _evaluate(config: RunConfig, checkpoint: Source | None, device: str, what: str) -> dict[str, float]:
    opened = CheckpointManager.open(checkpoint or config.output_dir, stage=config.stage)
    upstream = _load_upstream(config)
    module = build_module(config, upstream)
    _require_inputs(opened, module)
    name, network = next(iter(module.networks().items()))
    load_strictly(network, weights_of(opened.state_dict, f"{name}."), opened.path)
    module.inherit(opened.header)
    module.step = opened.header["step"]
    trainer = build_trainer(config, device, [], [])
    data = build_data_module(config, upstream, device=trainer.strategy.root_device)
    run = {"validate": trainer.validate, "test": trainer.test}[what]
    _warn_of_leak(opened, data.split, "val" if what == "validate" else "test")
    with quiet():
        (metrics,) = run(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in metrics.items() if "/" in name}


def _warn_of_leak(opened: Opened, split: Split, part: Part) -> None:
    # A warning only: simulated cohorts and other collections reuse patient ids.
    trained = sorted(set(getattr(split, part)) & set(opened.header["split"]["train"]))
    if trained:
        log.warning(
            "%s was trained on %d patients of the %s split (%s …): the scores flatter it, unless the ids belong to "
            "other people.", opened.path, len(trained), part, ", ".join(trained[:3]),
        )  # fmt: skip


def _is_first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) in {0, None}


def _say(message: str) -> None:
    _console.print(message)
