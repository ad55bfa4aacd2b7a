"""Whether the weights fit that ``--init-from`` starts a run from."""

import warnings
from typing import TYPE_CHECKING

from prod9.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from prod9.config.schema import RunConfig


def check_start(config: "RunConfig", networks: "dict[str, nn.Module]", path: str) -> None:
    """Refuse a run or checkpoint ``path`` that the ``networks`` of ``config`` could not start from; CheckpointError.

    networks: on the meta device, the main one first.
    """
    from prod9.generator.single_stream import TransformerDecoderSingleStream
    from prod9.models.checkpoint_encoder import require_same_encoding
    from prod9.models.checkpoint_manager import CheckpointManager, load_strictly, weights_of

    opened = CheckpointManager.open(path, stage=config.stage)
    if config.stage == "maisi_diffusion":
        from prod9.models.checkpoint_header import require_flow
        from prod9.training.recipes.distilled import load_student

        require_flow(opened.header, opened.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that loading into the meta device keeps nothing
            load_student(networks["diffusion"], opened)
        return
    if (config.stage == "autoencoder" or config.stage == "maisi_vae") and config.freeze_encoder:
        require_same_encoding(config, opened)
    decoder, kind = networks.get("decoder"), opened.header["config"]["model"]["kind"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that loading into the meta device keeps nothing
        if isinstance(decoder, TransformerDecoderSingleStream) and kind == "label_conditional":
            try:
                decoder.start_from(CheckpointManager.load_transformer(opened).network)
            except ValueError as error:
                raise CheckpointError(f"{opened.path}: {error}") from error
            return
        for position, (name, network) in enumerate(networks.items()):
            state = weights_of(opened.state_dict, f"{name}.")
            if state or position == 0:
                load_strictly(network, state, opened.path)
