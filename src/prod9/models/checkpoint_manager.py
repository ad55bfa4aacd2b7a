"""CheckpointManager: from a run folder, a checkpoint file or an export folder to a network that is ready.

Every file has a typed header (``Header``), so a file of another stage or of another program is refused
by name, before any weight is looked at. Weights are loaded strictly; nothing is ever unpickled.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from pydantic import TypeAdapter, ValidationError

import prod9
from prod9.autoencoder.autoencoder_fsq import AutoencoderFSQ
from prod9.autoencoder.autoencoder_maisi import AutoencoderKlMaisi
from prod9.config.schema import (
    CONFIGS,
    ControlConditionConfig,
    ControlNetMaskGiTModelConfig,
    ControlNetRFModelConfig,
    DetailModelConfig,
    FlowControlConditionConfig,
    FSQModelConfig,
    KLModelConfig,
    RectifiedFlowModelConfig,
    RefinerModelConfig,
    TransformerModelConfig,
    TranslationDetailModelConfig,
)
from prod9.controlnet.controlnet_model import ControlNetRF
from prod9.detail.network import DetailNetwork
from prod9.diffusion.diffusion_model import DiffusionModelRF
from prod9.errors import CheckpointError
from prod9.generator.controlnet_maskgit import ControlNetMaskGiT
from prod9.generator.refiner import Refiner
from prod9.generator.token_decoder import AbstractTokenDecoder
from prod9.models.checkpoint_header import FORMAT as FORMAT
from prod9.models.checkpoint_header import Header as Header
from prod9.models.checkpoint_header import Loaded as Loaded
from prod9.models.checkpoint_header import N
from prod9.models.checkpoint_header import Opened as Opened
from prod9.models.checkpoint_header import Source as Source
from prod9.models.checkpoint_header import make_header as make_header
from prod9.models.checkpoint_opening import (
    Prefer,
    candidates,
    find_base,
    load_base,
    open_checkpoint,
    open_refiner,
    resolve,
)
from prod9.models.checkpoint_opening import require_recorded as require_recorded
from prod9.models.checkpoint_opening import require_scans as require_scans
from prod9.models.checkpoint_opening import require_schedule as require_schedule
from prod9.models.checkpoint_weights import build_for
from prod9.models.checkpoint_weights import load_strictly as load_strictly
from prod9.models.checkpoint_weights import weights_of as weights_of
from prod9.models.exporting import export_guided, export_whole
from prod9.models.factory import ModelFactory
from prod9.models.released import RECTIFIED_FLOW
from prod9.models.weak import open_weak
from prod9.stages import STAGES, first_stage_of

Device = str | torch.device
DETAILS = ("detail", "translation_detail", "maisi_detail")
"""The stages of detail flows."""
Place = Source | Loaded[Any] | None
"""Where a base is now, or the base itself; None for where it was."""


class CheckpointManager:
    """Finds, checks and loads what training and ``export`` wrote.

    Networks are rebuilt from the header of their checkpoint and come in evaluation mode, with averaged weights where
    the run kept an average.
    """

    resolve = staticmethod(resolve)
    candidates = staticmethod(candidates)
    open = staticmethod(open_checkpoint)

    @overload
    @staticmethod
    def load_autoencoder(
        path: Source,
        *,
        stage: Literal["autoencoder"] = "autoencoder",
        device: Device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[AutoencoderFSQ]: ...

    @overload
    @staticmethod
    def load_autoencoder(
        path: Source,
        *,
        stage: Literal["maisi_vae"],
        device: Device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[AutoencoderKlMaisi]: ...

    @staticmethod
    def load_autoencoder(
        path: Source,
        *,
        stage: Literal["autoencoder", "maisi_vae"] = "autoencoder",
        device: Device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[Any]:
        """Load the stage-1 network of ``stage``.

        Args:
            path: a run folder, checkpoint file or export folder, or one that was opened.
            stage: ``autoencoder`` or ``maisi_vae``.
            device: of the network.
            prefer: ``best`` or ``last`` of a run's checkpoints.
        """
        opened = open_checkpoint(path, stage=stage, prefer=prefer)
        section = _section(opened, "autoencoder", CONFIGS[stage].model_fields["model"].annotation)
        return _load(opened, lambda: ModelFactory.create_autoencoder(section), device)

    @staticmethod
    def load_transformer(
        path: Source, *, device: Device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[AbstractTokenDecoder]:
        """Load the decoder of stage 2 of MaskGiT."""
        opened = open_checkpoint(path, stage="transformer", prefer=prefer)
        section = _section(opened, "transformer", TransformerModelConfig)
        autoencoder = _section(opened, "autoencoder", FSQModelConfig)
        return _load(
            opened, lambda: ModelFactory.create_transformer(section, levels=autoencoder.levels), device
        )

    @staticmethod
    def load_controlnet(
        path: Source,
        *,
        base: Loaded[AbstractTokenDecoder] | None = None,
        device: Device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[ControlNetMaskGiT]:
        """Load the control network of MaskGiT.

        Args:
            path: a run folder, a checkpoint, an export folder, or what was opened of one.
            base: the decoder that it steers, refused if it is another than the one that it was trained on.
            device: where the network goes.
            prefer: which checkpoint of a run folder.
        """
        opened = open_checkpoint(path, stage="maskgit_controlnet", prefer=prefer)
        if base is not None:
            require_recorded(opened, "transformer", base)
        section = _section(opened, "transformer", TransformerModelConfig)
        autoencoder = _section(opened, "autoencoder", FSQModelConfig)
        model = _section(opened, "controlnet", ControlNetMaskGiTModelConfig)
        condition = _section(opened, "condition", ControlConditionConfig)

        def build() -> ControlNetMaskGiT:
            # The base's shapes are wanted; what is copied of its weights is overwritten at once.
            decoder = ModelFactory.create_transformer(section, levels=autoencoder.levels)
            return ModelFactory.create_controlnet(
                model, condition, base=decoder, base_model=section, autoencoder=autoencoder
            )

        return _load(opened, build, device)

    @staticmethod
    def load_flow_controlnet(
        path: Source, *, device: Device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[ControlNetRF]:
        """Load the control network of MAISI."""
        opened = open_checkpoint(path, stage="maisi_controlnet", prefer=prefer)
        model = _section(opened, "controlnet", ControlNetRFModelConfig)
        condition = _section(opened, "condition", FlowControlConditionConfig)
        base = _section(opened, "diffusion", RectifiedFlowModelConfig)
        autoencoder = _section(opened, "autoencoder", KLModelConfig)

        def build() -> ControlNetRF:
            return ModelFactory.create_controlnet(model, condition, base_model=base, autoencoder=autoencoder)

        return _load(opened, build, device)

    @staticmethod
    def load_diffusion(
        path: Source,
        *,
        schedule: str = RECTIFIED_FLOW,
        device: Device = "cpu",
        prefer: Prefer = "best",
    ) -> Loaded[DiffusionModelRF]:
        """Load the U-Net of stage 2 of MAISI; latents are multiplied by ``header["data"]["scale_factor"]``.

        Args:
            path: a run folder, a checkpoint, an export folder, or what was opened of one.
            schedule: the noise schedule of its training, others are refused; ``ddpm`` is for sampling with MONAI's
                DDPMScheduler.
            device: where the network goes.
            prefer: which checkpoint of a run folder.
        """
        opened = open_checkpoint(path, stage="maisi_diffusion", prefer=prefer)
        require_schedule(opened.header, schedule, opened.path)
        section = _section(opened, "diffusion", RectifiedFlowModelConfig)
        autoencoder = _section(opened, "autoencoder", KLModelConfig)
        channels = autoencoder.latent_channels
        return _load(opened, lambda: ModelFactory.create_diffusion(section, latent_channels=channels), device)

    @staticmethod
    def load_refiner(path: Source, *, device: Device = "cpu", prefer: Prefer = "best") -> Loaded[Refiner]:
        """Load a refiner; the translator that it was trained on is ``header["inputs"]["transformer"]``."""
        opened = open_checkpoint(path, stage="refiner", prefer=prefer)
        section = _section(opened, "refiner", RefinerModelConfig)
        return _load(opened, lambda: ModelFactory.create_refiner(section), device)

    @staticmethod
    def load_detail(
        path: Source, *, stage: str | Sequence[str] = DETAILS, device: Device = "cpu", prefer: Prefer = "best"
    ) -> Loaded[DetailNetwork]:
        """Load the network of a detail flow.

        The levels of noise of its training scans are ``header["data"]["noise"]``, the base that it belongs to is in
        ``header["inputs"]``.

        Args:
            path: a run folder, checkpoint file or export folder, or one that was opened.
            stage: the stages that may be loaded.
            device: of the network.
            prefer: ``best`` or ``last`` of a run's checkpoints.
        """
        opened = open_checkpoint(path, stage=stage, prefer=prefer)
        section = _section(opened, "detail", TranslationDetailModelConfig | DetailModelConfig)
        return _load(opened, lambda: ModelFactory.create_detail(section), device)

    @staticmethod
    def load_vae(
        loaded: Loaded[Any] | Opened, *, path: Place = None, device: Device = "cpu"
    ) -> Loaded[AutoencoderKlMaisi]:
        """Load the autoencoder that the diffusion network ``loaded`` was trained on; see :meth:`load_upstream`."""
        load = partial(CheckpointManager.load_autoencoder, stage="maisi_vae", device=device)
        return load_base(loaded, "autoencoder", load, path)

    @staticmethod
    def load_base(
        loaded: Loaded[Any] | Opened, *, path: Place = None, device: Device = "cpu"
    ) -> Loaded[AbstractTokenDecoder]:
        """Load the decoder that the control network ``loaded`` was trained on; see :meth:`load_upstream`."""
        return load_base(
            loaded, "transformer", partial(CheckpointManager.load_transformer, device=device), path
        )

    @staticmethod
    def load_flow(
        loaded: Loaded[Any] | Opened, *, path: Place = None, device: Device = "cpu"
    ) -> Loaded[DiffusionModelRF]:
        """Load the U-Net that the control network ``loaded`` was trained on; see :meth:`load_upstream`."""
        load = partial(CheckpointManager.load_diffusion, device=device)
        return load_base(loaded, "diffusion", load, path)

    @staticmethod
    def load_weak(loaded: Loaded[N], place: str, *, device: Device = "cpu") -> Loaded[N]:
        """Load the weaker network that guides the stage-2 network ``loaded``; see :func:`open_weak`."""
        opened = open_weak(loaded, place)
        loaders: dict[str, Callable[..., Loaded[Any]]] = {
            "transformer": CheckpointManager.load_transformer,
            "maisi_diffusion": CheckpointManager.load_diffusion,
        }
        return loaders[opened.header["stage"]](opened, device=device)

    @staticmethod
    def from_pretrained(folder: str | Path, *, device: Device = "cpu") -> Loaded[Any]:
        """Load what ``folder`` holds, whichever stage it is."""
        opened = open_checkpoint(folder)
        loaders: dict[str, Callable[..., Loaded[Any]]] = {
            "autoencoder": CheckpointManager.load_autoencoder,
            "maisi_vae": partial(CheckpointManager.load_autoencoder, stage="maisi_vae"),
            "maisi_diffusion": CheckpointManager.load_diffusion,
            "transformer": CheckpointManager.load_transformer,
            "refiner": CheckpointManager.load_refiner,
            **dict.fromkeys(DETAILS, CheckpointManager.load_detail),
            "maskgit_controlnet": CheckpointManager.load_controlnet,
            "maisi_controlnet": CheckpointManager.load_flow_controlnet,
        }
        return loaders[opened.header["stage"]](opened, device=device)

    @staticmethod
    def load_upstream(
        loaded: Loaded[Any] | Opened, *, path: Place = None, device: Device = "cpu"
    ) -> Loaded[AutoencoderFSQ]:
        """Load the autoencoder that the MaskGiT network ``loaded`` was trained on, refusing any other.

        It is looked for at ``path`` if given, else where it was, else at the same place relative to the run.
        Raises CheckpointError when it is nowhere, or when its SHA-256 is not the recorded one.
        """
        return load_base(
            loaded, "autoencoder", partial(CheckpointManager.load_autoencoder, device=device), path
        )

    @staticmethod
    def open_recorded(loaded: Loaded[Any] | Opened, name: str, *, path: Source | None = None) -> Opened:
        """Open the base that ``loaded`` records as ``name`` without building it; see :meth:`load_upstream`."""
        return find_base(loaded, name, open_checkpoint, path)

    @staticmethod
    def export(
        checkpoint: Source,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        autoencoder: str | Path | None = None,
        transformer: str | Path | None = None,
        weak: str | None = None,
    ) -> Path:
        """Write the network of ``checkpoint`` to ``folder`` as safetensors, config, model card and manifest.

        What the model builds on and no argument names is exported into a folder below, and so is the refiner of a
        translator, so that the export is whole.

        Args:
            checkpoint: a run folder, a checkpoint or an export.
            folder: of the export.
            dtype: of the floating-point weights, float32 or float16 (half the size; loading casts back).
            autoencoder: the exported autoencoder to record as the base of a stage 2, by a relative path, so that
                both folders can be moved and shared together.
            transformer: the same for a refiner or a stage 3: a transformer or, for MAISI, a diffusion network; its own
                autoencoder is recorded with it.
            weak: of a stage 2, the weaker network to take along for autoguidance, into the folder ``weak``; as for
                :func:`open_weak`.

        Raises CheckpointError, and leaves nothing, when a base cannot be found.
        """
        opened = open_checkpoint(checkpoint)
        stage = STAGES[opened.header["stage"]]
        given: dict[str, Opened] = {}
        if autoencoder is not None:
            given["autoencoder"] = open_checkpoint(autoencoder, stage=first_stage_of(stage).name)
        if transformer is not None:
            if stage.base_key in (None, "autoencoder"):
                raise CheckpointError(
                    f"{opened.path}: expected no transformer for stage {stage.name}, which builds on none, got "
                    f"{transformer}; leave it out."
                )
            given[stage.base_key] = open_checkpoint(transformer, stage=stage.bases[stage.base_key])
        how: dict[str, Any] = {"dtype": dtype, "given": given, "open_input": open_checkpoint}
        refiner = open_refiner(opened) if stage.name == "transformer" else None
        if weak is None:
            return export_whole(opened, Path(folder), **how, refiner=refiner)
        if stage.base_key != "autoencoder":
            raise CheckpointError(
                f"{opened.path}: expected a stage 2 to take a weak model along, got stage {stage.name}; export its "
                "stage 2 with --weak-model, and name that export."
            )
        return export_guided(opened, open_weak(opened, weak), Path(folder), **how, refiner=refiner)


def _section(opened: Opened, name: str, kind: Any) -> Any:
    """Return the section ``name`` of the header's architecture as ``kind``, a section or a union of them."""
    try:
        return TypeAdapter(kind).validate_python(opened.header["architecture"][name])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{opened.path}: expected an architecture of {name} that prod9 {prod9.__version__} knows, got "
            f"{error}; use the prod9 version that wrote it ({opened.header['version']})."
        ) from error


def _load(opened: Opened, build: Callable[[], N], device: str | torch.device) -> Loaded[N]:
    state = weights_of(opened.state_dict, STAGES[opened.header["stage"]].prefix)
    network = build_for(state, build, opened)
    load_strictly(network, state, opened.path)
    return Loaded(network.to(device).eval(), opened.header, opened.path, opened.sha256)
