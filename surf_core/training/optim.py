"""The optimizers of a recipe, and the moving average of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .muon import Muon
from .task import Recipe

Optimizers = list[torch.optim.Optimizer]
REST = 0.3
"""Rate of what Muon leaves to AdamW over its own, in a model that names its matrices."""


def optimizers(model: nn.Module, recipe: Recipe, processes: int = 1) -> Optimizers:
    """Build the optimizers of a recipe; a group's rate is the recipe's times its `scale`.

    Raises:
        ValueError: Muon with more than one process; it needs unsharded matrices.
    """
    if recipe.optimizer == "muon":
        if processes > 1:
            raise ValueError(f"expected one process for muon, got {processes}; use adamw.")
        return _muon(model, recipe)
    groups = [{"params": list(model.parameters()), "scale": 1.0}]
    return [_adamw(groups, recipe)]


def _adamw(groups: list[dict], recipe: Recipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def _muon(model: nn.Module, recipe: Recipe) -> Optimizers:
    """Build Muon for the matrices inside blocks, AdamW for everything else.

    A model without blocks names its matrices in a method `matrices`. An update of Adam changes an
    output by up to rate * inputs, so the text layer, with its 4096 inputs, gets a rate smaller by
    the ratio to the model's width.
    """
    if hasattr(model, "matrices"):
        return _muon_for(cast(Callable[[], list[nn.Parameter]], model.matrices)(), model, recipe)
    blocks = cast(nn.Module, model.blocks)
    inside = {id(p) for p in blocks.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    wide = model.get_parameter("text_embedding.0.weight")
    others = [p for p in model.parameters() if id(p) not in inside and p is not wide]
    ratio = wide.shape[0] / wide.shape[1]
    groups = [{"params": others, "scale": 1.0}, {"params": [wide], "scale": ratio}]
    return [
        Muon([{"params": matrices, "scale": 1.0}], weight_decay=recipe.weight_decay),
        _adamw(groups, recipe),
    ]


def _muon_for(matrices: list[nn.Parameter], model: nn.Module, recipe: Recipe) -> Optimizers:
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        Muon([{"params": matrices, "scale": 1.0}], weight_decay=recipe.weight_decay),
        _adamw([{"params": others, "scale": REST}], recipe),
    ]


def take_step(opts: Optimizers, rate: float) -> None:
    """Update the weights at a rate, and clear the gradients."""
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate * group["scale"]
        opt.step()
        opt.zero_grad()


class Average:
    """The exponential moving average of a model's weights, sharded as they are.

    Not torch.optim.swa_utils.AveragedModel: that deep-copies the model, which FSDP2 refuses for a
    sharded one, and it evaluates the copy, which would have to be sharded and compiled once more.
    This holds the averaged tensors alone and swaps them into the one model. The update is that of
    swa_utils.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, decay: float) -> None:
        """Set the average to decay * average + (1 - decay) * weights."""
        averaged, current = tuple(self.weights.values()), tuple(self.model.parameters())
        get_ema_multi_avg_fn(decay)(averaged, current, None)

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """Swap the averaged weights into the model, in evaluation mode, and back at the end."""
        training = self.model.training
        self._exchange()
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self._exchange()
            self.model.train(training)

    @torch.no_grad()
    def _exchange(self) -> None:
        # Unsharded copies of weights outlive a forward pass and would be read instead of these.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for name, weight in self.model.named_parameters():
            _swap(weight, self.weights[name])


def _swap(one: Tensor, other: Tensor) -> None:
    copy = one.detach().clone()
    one.copy_(other)
    other.copy_(copy)
