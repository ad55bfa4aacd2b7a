"""The optimizer of a network: AdamW throughout, or Muon for its hidden matrices and AdamW for the rest.

Muon (Jordan et al. 2024; docs/explanation/optimizer.md; scaled as in arXiv 2502.16982) steps along the nearest matrix
with equal singular values instead of the gradient itself, so that rare directions are learnt as fast as frequent ones.
``torch.optim.Muon`` only takes matrices, one after another and in bfloat16. Here kernels of convolutions are matrices
too (output channels by everything else), equal shapes are handled together, and a CPU computes in float32.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from prod9.config.schema import MuonConfig, TrainingConfig
from prod9.training.sharding import slice_like, whole

# Jordan's: five iterations bring singular values from 0.001 up to between 0.7 and 1.2, which is near enough to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_SMALLEST = 16
"""Fewest channels, in and out, of a hidden matrix; a weight with fewer is at an end of its network."""
_ENDS = frozenset(
    {"input", "head", "readout", "error_readout"}
    | {"condition", "modulation", "time_embed", "time_emb_proj"}
    | {"spacing_layer", "top_region_index_layer", "bottom_region_index_layer"}
)
"""Parts that read or predict tokens or voxels, or read one vector per sample: their gradients have few directions."""
_TOGETHER = 2**24
"""Values of weights that are copied, and gathered, at once: 64 MiB, enough to keep any device busy."""
_FUSED = {"qkv": 3}
"""Layers that hold several matrices, one above the other; Muon steps each by itself."""


def build_optimizer(network: nn.Module, training: TrainingConfig, *, rate: float, main: bool) -> Optimizer:
    """Return the optimizer of ``network``; biases and norms are not decayed.

    Args:
        network: to train.
        training: the section with betas, weight decay and Muon.
        rate: peak learning rate.
        main: False for a discriminator, which AdamW always trains: it should not learn faster than what it judges.
    """
    muon = training.muon if main else None
    trained = [p for p in network.parameters() if p.requires_grad]
    hidden = {} if muon is None else hidden_matrices(network)
    rest = [p for p in trained if p not in hidden]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in {"cpu", "cuda"} for p in trained)
    if muon is None:
        return AdamW(groups, lr=rate, betas=training.betas, fused=fused)
    for parts in sorted(set(hidden.values())):
        of_parts = [p for p, count in hidden.items() if count == parts]
        groups.append({"params": of_parts, "weight_decay": training.weight_decay, "parts": parts})
    return Muon(groups, lr=rate, betas=training.betas, muon=muon, fused=fused)


def hidden_matrices(network: nn.Module) -> dict[Tensor, int]:
    """Return the weights of ``network`` that Muon steps, each with the number of matrices it holds.

    These are linear layers and convolutions between hidden features: no first or last layers, no embeddings of
    conditions, no modulations.
    """
    found: dict[Tensor, int] = {}
    for name, module in network.named_modules():
        path = name.split(".")
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) or not _ENDS.isdisjoint(path):
            continue
        weight = module.weight
        if weight.requires_grad and min(weight.shape[:2]) >= _SMALLEST:
            found[weight] = _FUSED.get(path[-1], 1)
    return found


class Muon(Optimizer):
    """Muon for groups with ``parts``, AdamW for those without, in one optimizer: one state, one clipped norm.

    ``parts`` of a group: how many matrices, of equal height, each of its weights holds. Sharded weights are gathered a
    few at a time for their step. Not a subclass of AdamW, which expects its own state for every weight when it loads.

    Args:
        groups: of parameters.
        lr: of both; Muon's is multiplied by ``muon.rate``, and by 0.2 √(longer side), which gives its steps the size of
            AdamW's.
        betas: of AdamW.
        muon: momentum, rate and iterations.
        fused: whether AdamW runs as one kernel.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: Sequence[float],
        muon: MuonConfig,
        fused: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": tuple(betas), "weight_decay": 0.0, "parts": 0})
        self.muon = muon
        self.fused = fused

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every weight that has a gradient; return what ``closure`` does, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights and group["parts"]:
                self._step_matrices(group, weights)
            elif weights:
                self._step_others(group, weights)
        return loss

    def _step_others(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        states = [self.state[p] for p in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                # The fused kernel counts on the device, and so needs no exchange with the host.
                state["step"] = torch.zeros((), device=weight.device if self.fused else "cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            [p.grad for p in weights if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=self.fused,
            foreach=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _step_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        rate, decay = group["lr"] * self.muon.rate, group["weight_decay"]
        for same in _by_shape(weights):
            matrices = [self._direction(p).unflatten(0, (group["parts"], -1)).flatten(2) for p in same]
            steps = orthogonalise(torch.cat(matrices), iterations=self.muon.iterations)
            longer = max(steps.shape[1:])
            for weight, step in zip(same, steps.split(group["parts"]), strict=True):
                moved = slice_like(step.reshape(weight.shape).to(weight.dtype), weight)
                weight.mul_(1 - rate * decay).add_(moved, alpha=-rate * 0.2 * longer**0.5)

    def _direction(self, weight: Tensor) -> Tensor:
        """Update the momentum of ``weight`` and return the gradient that looks ahead along it, whole."""
        state, grad = self.state[weight], weight.grad
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(grad, 1 - self.muon.momentum)
        return whole(grad.lerp(state["momentum"], self.muon.momentum))


def orthogonalise(matrices: Tensor, *, iterations: int = 5) -> Tensor:
    """Return ``[k m n]`` with the singular vectors of ``matrices`` and singular values near 1.

    Newton-Schulz iteration of the quintic polynomial p(X) = (a + b·XXᵀ + c·(XXᵀ)²) X. A matrix of zeros stays zero.
    """
    high = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if high else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    if x.is_cuda:  # in the precision of tensor cores, which Gram matrices would not survive
        x = iterate(x.bfloat16(), iterations)
    else:
        wide = x.shape[2] >= 2 * x.shape[1]
        x = (iterate_gram if wide else iterate)(x.float(), iterations)
    return x.mT if high else x


def iterate(x: Tensor, iterations: int) -> Tensor:
    """Return p applied ``iterations`` times to ``[k m n]``, m ≤ n."""
    for _ in range(iterations):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        x = torch.baddbmm(x, gram, x, beta=_A)
    return x


def iterate_gram(x: Tensor, iterations: int) -> Tensor:
    """Return the same as ``iterate`` from m × m matrices: for kernels and MLPs in a third to half of the time.

    With G = XXᵀ and P = a + b·G + c·G², p(X) = PX and its Gram matrix is PGP, so X is only needed once, at the end.
    """
    gram, factor, factors = x @ x.mT, None, None
    for _ in range(iterations):
        if factor is not None:
            gram = factor @ gram @ factor
        factor = torch.bmm(gram, gram).mul_(_C).add_(gram, alpha=_B)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        factors = factor if factors is None else factor @ factors
    return x if factors is None else factors @ x


def _by_shape(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield weights of one shape together, up to ``_TOGETHER`` values.

    The order depends on shapes only: processes that share sharded weights must agree on it.
    """
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in weights:
        shapes[weight.shape].append(weight)
    for shape, same in shapes.items():
        count = max(1, _TOGETHER // shape.numel())
        yield from (same[i : i + count] for i in range(0, len(same), count))
