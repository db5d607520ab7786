"""Optimizers of a recipe, and the average of the weights that is exported."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from .muon import Muon
from .task import Recipe

Optimizers = list[torch.optim.Optimizer]


def optimizers(model: nn.Module, recipe: Recipe, processes: int = 1) -> Optimizers:
    """Make what the recipe names; a group's rate is the recipe's times its `scale`.

    Raises:
        ValueError: Muon over more than one process; it needs whole matrices.
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
    """Muon for the matrices inside blocks, AdamW for everything else.

    A step of Adam moves an output by up to rate * inputs, so the text layer, with its 4096 inputs,
    gets a rate smaller by the ratio to the model's width.
    """
    inside = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in inside]
    wide = model.text_embedding[0].weight
    others = [p for p in model.parameters() if id(p) not in inside and p is not wide]
    ratio = wide.shape[0] / wide.shape[1]
    groups = [{"params": others, "scale": 1.0}, {"params": [wide], "scale": ratio}]
    return [
        Muon([{"params": matrices, "scale": 1.0}], weight_decay=recipe.weight_decay),
        _adamw(groups, recipe),
    ]


def take_step(opts: Optimizers, rate: float) -> None:
    """Update the weights at a rate, and forget the gradients."""
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate * group["scale"]
        opt.step()
        opt.zero_grad()


class Average:
    """A moving average of the weights, sharded as they are."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the weights by 1 - decay."""
        averaged, current = list(self.weights.values()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """Give the model its averaged weights, in evaluation mode; afterwards all is as before."""
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
        # Gathered copies of sharded weights outlive a forward pass; they would be read again.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for name, weight in self.model.named_parameters():
            _swap(weight, self.weights[name])


def _swap(one: Tensor, other: Tensor) -> None:
    kept = one.detach().clone()
    one.copy_(other)
    other.copy_(kept)
