"""ShardedStrategy: Lightning's DDP with the weights in slices (FSDP2) in place of a copy on every device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from prod9.training.lightning.base import AbstractLightning
from prod9.training.sharding import gather, shard, slice_optimizer_state


class ShardedStrategy(DDPStrategy):
    """Slices the networks of an adapter over all processes; processes, devices and reductions are those of DDP.

    Weights are loaded whole before they are sliced, and gathered before a checkpoint is written, so the files are those
    of any other strategy. Lightning's ModelParallelStrategy has a format and a reader of its own, which support neither
    averaged weights nor our atomic writer. Outside of training nothing is sliced.
    """

    _mesh: DeviceMesh | None = None

    @property
    def mesh(self) -> DeviceMesh:
        """All processes in one dimension; exists once they are connected."""
        if self._mesh is None:
            self._mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        return self._mesh

    def shard(self, module: AbstractLightning) -> None:
        """Slice every network of ``module``, in place."""
        for network in module.networks().values():
            shard(network, self.mesh)

    def model_to_device(self) -> None:
        """Slice what is trained, then move the rest; in this order no device holds a whole network."""
        module = cast(AbstractLightning, self.lightning_module)
        if module.trainer.state.fn == TrainerFn.FITTING:
            self.shard(module)
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Do nothing: the units of the networks reduce their gradients themselves."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Slice the optimizer state of a checkpoint like the weights."""
        states = [
            slice_optimizer_state(state, optimizer)
            for state, optimizer in zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Gather the slices on the first process, which writes the file."""
        content = gather(checkpoint, keep=self.is_global_zero)
        super().save_checkpoint(content, filepath, storage_options)
