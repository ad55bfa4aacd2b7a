"""CheckpointManager: from a run folder, a checkpoint file or an export folder to a network that is ready.

Everything read has a typed header (``Header``), so a file of another stage or of another program is refused
by name, before any weight is looked at. Weights are loaded strictly; nothing is ever unpickled.
"""

import logging
import stat
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import prod9
from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import (
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
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.errors import CheckpointError
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.refiner import Refiner
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.models import export as exports
from prod9.models.checkpoint_file import read_checkpoint
from prod9.models.checkpoint_header import FORMAT as FORMAT
from prod9.models.checkpoint_header import Header as Header
from prod9.models.checkpoint_header import Loaded as Loaded
from prod9.models.checkpoint_header import N, NewerFormatError, WrongStageError, check_header
from prod9.models.checkpoint_header import Opened as Opened
from prod9.models.checkpoint_header import Source as Source
from prod9.models.checkpoint_header import make_header as make_header
from prod9.models.checkpoint_places import named_place, recorded_places
from prod9.models.checkpoint_weights import build_for
from prod9.models.checkpoint_weights import load_strictly as load_strictly
from prod9.models.checkpoint_weights import weights_of as weights_of
from prod9.models.exporting import PREFIXES, export_whole
from prod9.models.factory import ModelFactory
from prod9.models.released import RECTIFIED_FLOW
from prod9.models.run_folder import find_checkpoints
from prod9.system.machine import expand

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
        try:
            kind = path.stat().st_mode
        except (OSError, ValueError) as error:
            got = "nothing there" if isinstance(error, FileNotFoundError) else f"none ({error})"
            raise CheckpointError(
                f"{path}: expected a run folder, a checkpoint or an export folder, got {got}; "
                "check the path, or train that stage first."
            ) from error
        if not stat.S_ISDIR(kind) or exports.is_export(path):
            return [path]
        found = find_checkpoints(path, prefer=prefer)
        if not found:
            raise CheckpointError(
                f"{path}: expected the checkpoints of a run in it, got none; train that stage first, or name "
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
            except (WrongStageError, NewerFormatError):
                # The path is wrong, and the files beside this one are of that stage too; or this program is too old,
                # and would go on from an older file and put its own in the place of the newer one.
                raise
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
        return _load(opened, lambda: ModelFactory.create_autoencoder(section), device)

    @staticmethod
    def load_transformer(
        path: Source, *, device: str | torch.device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[AbstractTokenDecoder]:
        """Rebuild the stage-2 decoder from its header and load its weights (averaged ones if there are)."""
        opened = CheckpointManager.open(path, stage="transformer", prefer=prefer)
        section = _section(opened, "transformer", TypeAdapter(TransformerModelConfig))
        upstream = _section(opened, "autoencoder", TypeAdapter(FSQModelConfig))
        return _load(opened, lambda: ModelFactory.create_transformer(section, levels=upstream.levels), device)

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
        model = _section(opened, "controlnet", TypeAdapter(ControlNetMaskGiTModelConfig))
        condition = _section(opened, "condition", TypeAdapter(ControlConditionConfig))

        def build() -> ControlNetMaskGiT:
            # The base's shapes are wanted; what is copied of its weights is overwritten at once.
            decoder = ModelFactory.create_transformer(section, levels=upstream.levels)
            return ModelFactory.create_controlnet(
                model, condition, base=decoder, base_model=section, autoencoder=upstream
            )

        return _load(opened, build, device)

    @staticmethod
    def load_flow_controlnet(
        path: Source, *, device: str | torch.device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[ControlNetRF]:
        """Rebuild MAISI's stage-3 network from its header and load its weights (averaged if any)."""
        opened = CheckpointManager.open(path, stage="maisi_controlnet", prefer=prefer)
        model = _section(opened, "controlnet", TypeAdapter(ControlNetRFModelConfig))
        condition = _section(opened, "condition", TypeAdapter(FlowControlConditionConfig))
        base = _section(opened, "diffusion", TypeAdapter(RectifiedFlowModelConfig))
        autoencoder = _section(opened, "autoencoder", TypeAdapter(KLModelConfig))

        def build() -> ControlNetRF:
            return ModelFactory.create_controlnet(model, condition, base_model=base, autoencoder=autoencoder)

        return _load(opened, build, device)

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
        channels = upstream.latent_channels
        return _load(opened, lambda: ModelFactory.create_diffusion(section, latent_channels=channels), device)

    @staticmethod
    def load_refiner(
        path: Source, *, device: str | torch.device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[Refiner]:
        """Rebuild a refiner from its header and load its weights (averaged ones if there are).

        The translator it was trained on is ``header["inputs"]["transformer"]``.
        """
        opened = CheckpointManager.open(path, stage="refiner", prefer=prefer)
        section = _section(opened, "refiner", TypeAdapter(RefinerModelConfig))
        return _load(opened, lambda: ModelFactory.create_refiner(section), device)

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
        diffusion network; its own autoencoder is recorded with it. What the model builds on and neither names is
        exported into a folder below, so that the export is whole. Raises CheckpointError, and leaves nothing, when
        that cannot be found.
        """
        opened = CheckpointManager.open(checkpoint)
        family = "maisi_vae" if opened.header["stage"].startswith("maisi") else "autoencoder"
        name, stage = BASES.get(opened.header["stage"], BASES["maskgit_controlnet"])
        given: dict[str, Opened] = {}
        if autoencoder is not None:
            given["autoencoder"] = CheckpointManager.open(autoencoder, stage=family)
        if transformer is not None:
            given[name] = CheckpointManager.open(transformer, stage=stage)
        return export_whole(opened, Path(folder), dtype=dtype, given=given, open_input=CheckpointManager.open)


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
    tried: list[Source]
    if path is not None:
        tried = [path]
    else:
        # A place that holds another file by now is no mistake of the user's: the run may have a copy of its own.
        found = named_place(loaded.path, loaded.header, name)
        tried = [found] if found is not None else [*recorded_places(loaded.path, recorded, name)]
    for place in tried:
        if expand(Path(place)).exists():
            upstream = load(place)
            require_recorded(loaded, name, upstream)
            return upstream
    raise CheckpointError(
        f"{loaded.path}: expected its {name} at {' or '.join(map(str, tried))}, got nothing there; "
        f"give its present path (--{name} PATH in commands)."
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
    wrong = [
        name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        raise CheckpointError(
            f"{file}: expected weights that are tensors, got something else under {str(wrong[0])[:60]!r}; use another "
            "checkpoint of the run, or copy the file again."
        )
    return Opened(cast(Header, header), state, file, digest)


def _check_header(file: Path, header: dict[str, Any], stage: str | Sequence[str] | None) -> None:
    allowed = tuple(PREFIXES) if stage is None else (stage,) if isinstance(stage, str) else tuple(stage)
    check_header(file, header, allowed, tuple(PREFIXES))


def _section(opened: Opened, name: str, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_python(opened.header["architecture"][name])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{opened.path}: expected an architecture of {name} that prod9 {prod9.__version__} knows, got "
            f"{error}; use the prod9 version that wrote it ({opened.header['version']})."
        ) from error


def _load(opened: Opened, build: Callable[[], N], device: str | torch.device) -> Loaded[N]:
    state = weights_of(opened.state_dict, PREFIXES[opened.header["stage"]])
    network = build_for(state, build, opened)
    load_strictly(network, state, opened.path)
    return Loaded(network.to(device).eval(), opened.header, opened.path, opened.sha256)
