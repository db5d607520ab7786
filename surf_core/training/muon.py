"""Muon in fp32, batched over matrices of one shape.

torch.optim.Muon iterates in bf16 and matrix by matrix; on a CPU without bf16 units that takes
longer than forward and backward pass of the tiny model together.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of [B, rows, cols] matrices close to 1.

    Source: Newton-Schulz iteration with the quintic of Jordan et al., Muon (2024).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Updates matrices along their orthogonalised Nesterov momentum, scaled to AdamW's RMS.

    The kernel of a convolution is a matrix with a row for each output.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                by_shape[param.shape].append(param)
            for shape, params in by_shape.items():
                momenta = torch.stack([self._momentum(p, group).flatten(1) for p in params])
                updates = orthogonalise(momenta).view(-1, *shape)
                rate = group["lr"] * 0.2 * max(momenta.shape[1:]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates.unbind()), alpha=-rate)

    def _momentum(self, param: Tensor, group: dict) -> Tensor:
        assert param.grad is not None
        buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
        buffer.lerp_(param.grad, 1 - group["momentum"])
        return param.grad.lerp(buffer, group["momentum"])
