"""CheckpointManager: from a run folder, a checkpoint file or an export folder to a network that is ready.

Everything read has a typed header (``Header``), so a file of another stage or of another program is refused
by name, before any weight is looked at. Weights are loaded strictly; nothing is ever unpickled.
"""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import prod9
from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.errors import CheckpointError
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.refiner import Refiner
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.machine import expand
from prod9.training.config_schema import (
    ControlConditionConfig,
    ControlNetMaskGiTModelConfig,
    ControlNetRFModelConfig,
    FlowControlConditionConfig,
    FSQModelConfig,
    KLModelConfig,
    RectifiedFlowModelConfig,
    RefinerModelConfig,
    TransformerModelConfig,
)
from prod9.training.model import export as exports
from prod9.training.model.checkpoint_file import LAST, PREVIOUS, read_checkpoint
from prod9.training.model.checkpoint_header import FORMAT as FORMAT
from prod9.training.model.checkpoint_header import Header as Header
from prod9.training.model.checkpoint_header import Loaded as Loaded
from prod9.training.model.checkpoint_header import N, WrongStageError
from prod9.training.model.checkpoint_header import Opened as Opened
from prod9.training.model.checkpoint_header import Source as Source
from prod9.training.model.checkpoint_header import make_header as make_header
from prod9.training.model.checkpoint_places import describe_input, ranked_best, recorded_places
from prod9.training.model.model_factory import ModelFactory
from prod9.training.released import RECTIFIED_FLOW

PREFIXES = {
    "autoencoder": "autoencoder.",
    "maisi_vae": "autoencoder.",
    "maisi_diffusion": "diffusion.",
    "transformer": "decoder.",
    "refiner": "refiner.",
    "maskgit_controlnet": "controlnet.",
    "maisi_controlnet": "controlnet.",
}
"""Where the network of a stage lives in the state dict."""

BASES = {
    "maskgit_controlnet": ("transformer", "transformer"),
    "maisi_controlnet": ("diffusion", "maisi_diffusion"),
}
"""What a stage 3 calls the network that it steers, and that one's stage."""

STAGE1_MODELS = {"autoencoder": FSQModelConfig, "maisi_vae": KLModelConfig}
"""The model section of each stage-1 family."""

Prefer = Literal["best", "last"]
M = TypeVar("M", bound="Loaded[Any] | Opened")
log = logging.getLogger("prod9")


class CheckpointManager:
    """Finds, checks and loads what training and ``export`` wrote."""

    @staticmethod
    def resolve(path: str | Path, *, prefer: Prefer = "best") -> Path:
        """Return the checkpoint file or export folder that ``path`` means.

        ``path`` is a checkpoint file, an export folder, or a run folder: then the best checkpoint by the
        monitored metric, or the last one when ``prefer`` says so. Raises CheckpointError when there is none.
        """
        return CheckpointManager.candidates(path, prefer=prefer)[0]

    @staticmethod
    def candidates(path: str | Path, *, prefer: Prefer = "best") -> list[Path]:
        """Return what ``path`` may mean, first choice first; raises CheckpointError when it is nothing."""
        path = expand(path)
        if path.is_file() or exports.is_export(path):
            return [path]
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: expected a run folder, a checkpoint or an export folder, got nothing there; "
                "check the path, or train that stage first."
            )
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        last = [folder / name for name in (LAST, PREVIOUS)]
        best = [folder / name for name in ranked_best(folder)]
        found = [file for file in (best + last if prefer == "best" else last + best) if file.is_file()]
        if not found:
            raise CheckpointError(
                f"{path}: expected checkpoints in {folder}, got none; train that stage first, or name "
                "another folder."
            )
        return found

    @staticmethod
    def open(path: Source, *, stage: str | Sequence[str] | None = None, prefer: Prefer = "best") -> Opened:
        """Read ``path`` and check its header; ``stage`` names the only ones that are not refused.

        In a run folder a damaged file is reported and the next one is taken; a file that was named is not
        replaced by another. What is open already is checked and returned as it is. Raises CheckpointError.
        """
        if isinstance(path, Opened):
            _check_header(path.path, dict(path.header), stage)
            return path
        files = CheckpointManager.candidates(path, prefer=prefer)
        for file, following in pairwise(files):
            try:
                return _open_file(file, stage)
            except WrongStageError:
                raise  # the path is wrong, and the files beside this one are of that stage too
            except CheckpointError as error:
                log.warning("%s Going on with %s.", error, following)
        return _open_file(files[-1], stage)

    @overload
    @staticmethod
    def load_autoencoder(
        path: Source,
        *,
        stage: Literal["autoencoder"] = "autoencoder",
        device: str | torch.device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[AutoencoderFSQ]: ...

    @overload
    @staticmethod
    def load_autoencoder(
        path: Source,
        *,
        stage: Literal["maisi_vae"],
        device: str | torch.device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[AutoencoderKlMaisi]: ...

    @staticmethod
    def load_autoencoder(
        path: Source,
        *,
        stage: Literal["autoencoder", "maisi_vae"] = "autoencoder",
        device: str | torch.device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[Any]:
        """Rebuild the stage-1 network of ``stage`` from its header and load its weights (averaged if any)."""
        opened = CheckpointManager.open(path, stage=stage, prefer=prefer)
        section = _section(opened, "autoencoder", TypeAdapter(STAGE1_MODELS[stage]))
        return _load(opened, ModelFactory.create_autoencoder(section), device)

    @staticmethod
    def load_transformer(
        path: Source, *, device: str | torch.device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[AbstractTokenDecoder]:
        """Rebuild the stage-2 decoder from its header and load its weights (averaged ones if there are)."""
        opened = CheckpointManager.open(path, stage="transformer", prefer=prefer)
        section = _section(opened, "transformer", TypeAdapter(TransformerModelConfig))
        upstream = _section(opened, "autoencoder", TypeAdapter(FSQModelConfig))
        return _load(opened, ModelFactory.create_transformer(section, levels=upstream.levels), device)

    @staticmethod
    def load_controlnet(
        path: Source,
        *,
        base: Loaded[AbstractTokenDecoder] | None = None,
        device: str | torch.device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[ControlNetMaskGiT]:
        """Rebuild the stage-3 network from its header and load its weights (averaged ones if there are).

        base: the decoder it steers, refused if it is another than the one it was trained on.
        """
        opened = CheckpointManager.open(path, stage="maskgit_controlnet", prefer=prefer)
        if base is not None:
            require_recorded(opened, "transformer", base)
        section = _section(opened, "transformer", TypeAdapter(TransformerModelConfig))
        upstream = _section(opened, "autoencoder", TypeAdapter(FSQModelConfig))
        network = ModelFactory.create_controlnet(
            _section(opened, "controlnet", TypeAdapter(ControlNetMaskGiTModelConfig)),
            _section(opened, "condition", TypeAdapter(ControlConditionConfig)),
            # Its shapes are wanted; what is copied of its weights is overwritten at once.
            base=ModelFactory.create_transformer(section, levels=upstream.levels),
            base_model=section,
            autoencoder=upstream,
        )
        return _load(opened, network, device)

    @staticmethod
    def load_flow_controlnet(
        path: Source, *, device: str | torch.device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[ControlNetRF]:
        """Rebuild MAISI's stage-3 network from its header and load its weights (averaged if any)."""
        opened = CheckpointManager.open(path, stage="maisi_controlnet", prefer=prefer)
        network = ModelFactory.create_controlnet(
            _section(opened, "controlnet", TypeAdapter(ControlNetRFModelConfig)),
            _section(opened, "condition", TypeAdapter(FlowControlConditionConfig)),
            base_model=_section(opened, "diffusion", TypeAdapter(RectifiedFlowModelConfig)),
            autoencoder=_section(opened, "autoencoder", TypeAdapter(KLModelConfig)),
        )
        return _load(opened, network, device)

    @staticmethod
    def load_diffusion(
        path: Source,
        *,
        schedule: str = RECTIFIED_FLOW,
        device: str | torch.device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[DiffusionModelRF]:
        """Rebuild MAISI's stage-2 network from its header and load its weights (averaged ones if there are).

        The factor that latents are multiplied by is ``header["data"]["scale_factor"]``. schedule: the noise it
        must have been trained with; ``ddpm`` for sampling with MONAI's DDPMScheduler.
        """
        opened = CheckpointManager.open(path, stage="maisi_diffusion", prefer=prefer)
        require_schedule(opened.header, schedule, opened.path)
        section = _section(opened, "diffusion", TypeAdapter(RectifiedFlowModelConfig))
        upstream = _section(opened, "autoencoder", TypeAdapter(KLModelConfig))
        network = ModelFactory.create_diffusion(section, latent_channels=upstream.latent_channels)
        return _load(opened, network, device)

    @staticmethod
    def load_refiner(
        path: Source, *, device: str | torch.device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[Refiner]:
        """Rebuild a refiner from its header and load its weights (averaged ones if there are).

        The translator it was trained on is ``header["inputs"]["transformer"]``.
        """
        opened = CheckpointManager.open(path, stage="refiner", prefer=prefer)
        section = _section(opened, "refiner", TypeAdapter(RefinerModelConfig))
        return _load(opened, ModelFactory.create_refiner(section), device)

    @staticmethod
    def load_vae(
        loaded: Loaded[Any] | Opened,
        *,
        path: Source | Loaded[Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> Loaded[AutoencoderKlMaisi]:
        """Load the autoencoder that the diffusion network ``loaded`` was trained on; see :meth:`load_upstream`."""
        load = partial(CheckpointManager.load_autoencoder, stage="maisi_vae", device=device)
        return _load_recorded(loaded, "autoencoder", load, path)

    @staticmethod
    def load_base(
        loaded: Loaded[Any] | Opened,
        *,
        path: Source | Loaded[Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> Loaded[AbstractTokenDecoder]:
        """Load the decoder that the control network ``loaded`` was trained on; see :meth:`load_upstream`."""
        return _load_recorded(
            loaded, "transformer", partial(CheckpointManager.load_transformer, device=device), path
        )

    @staticmethod
    def load_flow(
        loaded: Loaded[Any] | Opened,
        *,
        path: Source | Loaded[Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> Loaded[DiffusionModelRF]:
        """Load the U-Net that the control network ``loaded`` was trained on; see :meth:`load_upstream`."""
        load = partial(CheckpointManager.load_diffusion, device=device)
        return _load_recorded(loaded, "diffusion", load, path)

    @staticmethod
    def from_pretrained(folder: str | Path, *, device: str | torch.device = "cpu") -> Loaded[Any]:
        """Load what ``folder`` holds, whichever stage it is."""
        stage = CheckpointManager.open(folder).header["stage"]
        loaders: dict[str, Callable[..., Loaded[Any]]] = {
            "autoencoder": CheckpointManager.load_autoencoder,
            "maisi_vae": partial(CheckpointManager.load_autoencoder, stage="maisi_vae"),
            "maisi_diffusion": CheckpointManager.load_diffusion,
            "transformer": CheckpointManager.load_transformer,
            "refiner": CheckpointManager.load_refiner,
            "maskgit_controlnet": CheckpointManager.load_controlnet,
            "maisi_controlnet": CheckpointManager.load_flow_controlnet,
        }
        return loaders[stage](folder, device=device)

    @staticmethod
    def load_upstream(
        loaded: Loaded[Any] | Opened,
        *,
        path: Source | Loaded[Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> Loaded[AutoencoderFSQ]:
        """Load the autoencoder that ``loaded`` was trained on, refusing any other.

        It is looked for at ``path`` if given, else where it was, else at the same place relative to the run.
        Raises CheckpointError when it is nowhere, or when its SHA-256 is not the recorded one.
        """
        return _load_recorded(
            loaded, "autoencoder", partial(CheckpointManager.load_autoencoder, device=device), path
        )

    @staticmethod
    def open_recorded(loaded: Loaded[Any] | Opened, name: str, *, path: Source | None = None) -> Opened:
        """Open the earlier stage that ``loaded`` records as ``name`` without building it; see :meth:`load_upstream`."""
        return _recorded(loaded, name, CheckpointManager.open, path)

    @staticmethod
    def export(
        checkpoint: str | Path,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        autoencoder: str | Path | None = None,
        transformer: str | Path | None = None,
    ) -> Path:
        """Write the network of ``checkpoint`` to ``folder`` as safetensors, config, model card and manifest.

        dtype: of the floating-point weights, float32 or float16 (half the size; loading casts back).
        autoencoder: for stage 2, the exported autoencoder to record as its input, by a relative path, so that
        both folders can be moved and shared together. transformer: the same for stage 3, a transformer or, of MAISI, a
        diffusion network; its own autoencoder is recorded with it. Raises CheckpointError.
        """
        opened = CheckpointManager.open(checkpoint)
        header, folder = _without_paths(opened.header), Path(folder)
        if autoencoder is not None:
            family = "maisi_vae" if header["stage"].startswith("maisi") else "autoencoder"
            upstream = CheckpointManager.open(autoencoder, stage=family)
            header["inputs"] = {"autoencoder": describe_input(upstream.path, upstream.sha256, folder)}
        if transformer is not None:
            name, stage = BASES.get(header["stage"], BASES["maskgit_controlnet"])
            base = CheckpointManager.open(transformer, stage=stage)
            header["inputs"] = _describe_base(name, base, folder)
        for recorded in header["inputs"].values():
            recorded["path"] = recorded["relative"]
        prefix = PREFIXES[header["stage"]]
        return exports.write_export(folder, dict(header), weights_of(opened.state_dict, prefix), dtype=dtype)


def _describe_base(name: str, base: Opened, folder: Path) -> dict[str, dict[str, str]]:
    """Return the records of an exported base and of the autoencoder that it records, seen from ``folder``."""
    inputs = {name: describe_input(base.path, base.sha256, folder)}
    recorded = base.header["inputs"].get("autoencoder")
    if recorded is not None:
        place = recorded_places(base.path, recorded)[-1]
        inputs["autoencoder"] = describe_input(place, recorded["sha256"], folder)
    return inputs


def _load_recorded(
    loaded: Loaded[Any] | Opened,
    name: str,
    load: Callable[..., Loaded[Any]],
    path: Source | Loaded[Any] | None,
) -> Loaded[Any]:
    """Load the earlier stage ``name`` that a header records, from ``path`` or where it was."""
    if isinstance(path, Loaded):
        require_recorded(loaded, name, path)
        return path
    return _recorded(loaded, name, load, path)


def _recorded(loaded: Loaded[Any] | Opened, name: str, load: Callable[[Source], M], path: Source | None) -> M:
    recorded = loaded.header["inputs"].get(name)
    if recorded is None:
        raise CheckpointError(f"{loaded.path}: expected the {name} in `inputs`, got none recorded there.")
    tried: list[Source] = [path] if path is not None else [*recorded_places(loaded.path, recorded)]
    for place in tried:
        if expand(Path(place)).exists():
            upstream = load(place)
            require_recorded(loaded, name, upstream)
            return upstream
    raise CheckpointError(
        f"{loaded.path}: expected its {name} at {' or '.join(map(str, tried))}, got nothing there; "
        "give its present path."
    )


def require_recorded(loaded: Loaded[Any] | Opened, name: str, upstream: Loaded[Any] | Opened) -> None:
    """Refuse an earlier stage other than the one that ``loaded`` records as ``name``."""
    recorded = loaded.header["inputs"][name]["sha256"]
    if upstream.sha256 != recorded:
        raise CheckpointError(
            f"{upstream.path}: expected the {name} that {loaded.path} was trained on (SHA-256 "
            f"{recorded[:12]}…), got {upstream.sha256[:12]}…; its tokens mean something else. "
            "Name the right file, or train the later stage again."
        )


def require_schedule(header: Header, schedule: str, source: str | Path) -> None:
    """Refuse a diffusion network that was trained with another noise schedule than ``schedule``."""
    found = header["data"].get("schedule", RECTIFIED_FLOW)
    if found != schedule:
        raise CheckpointError(
            f"{source}: expected a network trained with the schedule {schedule}, got one trained with {found}; "
            f"its output is no velocity of a {schedule}. Load it with CheckpointManager.load_diffusion(path, "
            f"schedule={found!r}) and sample with MONAI's DDPMScheduler, or choose a rectified flow."
        )


def _open_file(file: Path, stage: str | Sequence[str] | None) -> Opened:
    if file.is_dir():
        header, tensors, digest = exports.read_export(file)
        _check_header(file, header, stage)
        prefix = PREFIXES[header["stage"]]
        state = {prefix + name: tensor for name, tensor in tensors.items()}
        return Opened(cast(Header, header), state, file, digest)
    content, digest = read_checkpoint(file)
    header, state = content.get("prod9"), content.get("state_dict")
    if not isinstance(header, dict) or not isinstance(state, dict):
        names = ", ".join(sorted(map(str, content))[:4])
        raise CheckpointError(
            f"{file}: expected a prod9 checkpoint, got a file of another program (it holds {names} …); "
            "use a checkpoint that prod9 wrote."
        )
    _check_header(file, header, stage)
    return Opened(cast(Header, header), state, file, digest)


def _check_header(file: Path, header: dict[str, Any], stage: str | Sequence[str] | None) -> None:
    missing = sorted(set(Header.__annotations__) - set(header))
    if header.get("format") != FORMAT or missing:
        detail = f"format {header.get('format')!r}" + (f" without {', '.join(missing)}" if missing else "")
        raise CheckpointError(
            f"{file}: expected checkpoint format {FORMAT}, got {detail} (written by prod9 "
            f"{header.get('version', 'unknown')}); use the prod9 version that wrote it."
        )
    found = header["stage"]
    allowed = tuple(PREFIXES) if stage is None else (stage,) if isinstance(stage, str) else stage
    if found not in PREFIXES or found not in allowed:
        wanted = " or ".join(allowed)
        raise WrongStageError(
            f"{file}: expected a checkpoint of stage {wanted}, got stage {found}; "
            f"name the {wanted} run instead."
        )


def _section(opened: Opened, name: str, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_python(opened.header["architecture"][name])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{opened.path}: expected an architecture of {name} that prod9 {prod9.__version__} knows, got "
            f"{error}; use the prod9 version that wrote it ({opened.header['version']})."
        ) from error


def _load(opened: Opened, network: N, device: str | torch.device) -> Loaded[N]:
    prefix = PREFIXES[opened.header["stage"]]
    load_strictly(network, weights_of(opened.state_dict, prefix), opened.path)
    return Loaded(network.to(device).eval(), opened.header, opened.path, opened.sha256)


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load ``state`` into ``network``; CheckpointError names missing, unexpected and misshapen weights."""
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(
            f"{path}: expected the weights of {type(network).__name__}, got others: {' '.join(lines)[:400]} "
            "Use a checkpoint of the same architecture."
        ) from error


def weights_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the part of ``state`` under ``prefix``, such as ``decoder.``, named as in the network itself."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _without_paths(header: Header) -> Header:
    """Return a copy that names no folder of this computer: exports are shared."""
    copy = cast(Header, deepcopy(dict(header)))
    config = copy["config"]
    config |= {"output_dir": "outputs"}
    config["data"] |= {"root": "data", "store_dir": None}
    if "split" in config["data"]:  # MedMNIST3D files are divided and kept in memory as they are
        config["data"] |= {"cache_dir": None, "split": config["data"]["split"] | {"file": None}}
    if "inputs" in config:
        config["inputs"] = dict.fromkeys(config["inputs"])
    return copy
