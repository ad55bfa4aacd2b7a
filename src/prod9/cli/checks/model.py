"""Whether the weights fit that ``--init-from`` starts a run from."""

import warnings
from typing import TYPE_CHECKING

from prod9.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from prod9.config.schema import RunConfig
    from prod9.models.checkpoint_manager import Opened


def check_start(config: "RunConfig", networks: "dict[str, nn.Module]", path: str) -> None:
    """Refuse a run or checkpoint ``path`` that training could not start from (``--init-from``); CheckpointError.

    networks: of ``config``, on the meta device.
    """
    from prod9.models.checkpoint_manager import CheckpointManager, load_strictly, weights_of

    opened = CheckpointManager.open(path, stage=config.stage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that loading into the meta device keeps nothing
        if _starts_from_labels(config, opened):
            _check_labels(networks["decoder"], opened)
            return
        for position, (name, network) in enumerate(networks.items()):
            state = weights_of(opened.state_dict, f"{name}.")
            if state or position == 0:
                load_strictly(network, state, opened.path)


def _starts_from_labels(config: "RunConfig", opened: "Opened") -> bool:
    kinds = config.model.kind, opened.header["config"]["model"]["kind"]
    return kinds == ("single_stream", "label_conditional")


def _check_labels(decoder: "nn.Module", opened: "Opened") -> None:
    """Refuse a label-conditional transformer of another size than ``decoder``, which reads sources."""
    from prod9.generator.single_stream import TransformerDecoderSingleStream
    from prod9.models.checkpoint_manager import CheckpointManager

    assert isinstance(decoder, TransformerDecoderSingleStream)
    try:
        decoder.start_from(CheckpointManager.load_transformer(opened).network)
    except ValueError as error:
        raise CheckpointError(f"{opened.path}: {error}") from error
