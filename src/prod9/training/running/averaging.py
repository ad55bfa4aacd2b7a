"""BatchEMA: the moving average of the weights over training batches."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from prod9.training.lightning.base import AbstractLightning
from prod9.training.lightning.sharded_strategy import ShardedStrategy
from prod9.training.sharding import reshard


class BatchEMA(EMAWeightAveraging):
    """Lightning's weight averaging, once per training batch, of parameters only.

    Buffers are copied: the average of integer buffers can turn a level of 6 into 5. Until ``start_step`` the average
    equals the weights; otherwise validation would measure an untrained network.
    """

    def __init__(self, *, decay: float, start_step: int) -> None:
        super().__init__(use_buffers=False, decay=decay)
        self.start_step = start_step
        self._swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shard the average like the weights, which were sharded after it was copied from them."""
        assert self._average_model is not None
        if isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.shard(cast(AbstractLightning, self._average_model.module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after every training batch, for any number of optimizer steps in it."""
        average = self._average_model
        assert average is not None
        average.update_parameters(pl_module)
        # The average of equal values can differ from them in the last bit, which a frozen encoder must keep.
        pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
        with torch.no_grad():
            for kept, weight in pairs:
                if not weight.requires_grad:
                    kept.copy_(weight)
        if cast(AbstractLightning, pl_module).step < self.start_step:
            # A count of zero makes the next update a copy.
            average.n_averaged.zero_()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the only epoch ends with the run, and its last batch is already averaged."""

    def _swap_models(self, pl_module: LightningModule) -> None:
        # The network that has just been validated may still hold whole weights; the average never does.
        reshard(pl_module)
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def put_back(self, pl_module: LightningModule) -> None:
        """Put the trained weights back if a validation was interrupted."""
        if self._swapped:
            self._swap_models(pl_module)
