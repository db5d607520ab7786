"""Price a training run in advance: parameters, memory of a GPU, operations.

Everything runs on the meta device, in bf16, with activation checkpointing.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.utils.flop_counter import FlopCounterMode

from ..cost import ModelShape, latent_frames
from ..refiner import RefinerConfig, outline
from ..window import segments
from .live_bytes import LiveBytes

STATE_BYTES = 4 + 4 + 8 + 4
"""Bytes per parameter, in fp32: itself, its gradient, AdamW's two moments, its average."""
BACKWARD = 2.5
"""Operations of a fused attention's backward pass, in forwards: it recomputes the scores."""
FORWARDS = 2
"""Forward passes of a step: one, and one for the recomputation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Cost of one training step."""

    parameters: int
    """Parameters of the network."""
    state: int
    """Bytes of weights, gradients, optimizer and average on each GPU."""
    gathered: int
    """Bytes of two unsharded blocks in bf16: the running one, and the one being prefetched."""
    activations: int
    """Bytes of live tensors at the peak of one sample, without workspaces inside kernels."""
    flops: int
    """Operations of one sample: forward, recomputation and backward."""
    samples: int
    """Samples that each GPU computes in a step, one after the other."""

    @property
    def memory(self) -> int:
        """Bytes on each GPU."""
        return self.state + self.gathered + self.activations

    def lines(self, gpus: int) -> list[str]:
        """Format the cost as lines of text."""
        gib = 2**30
        return [
            f"parameters          {self.parameters / 1e9:.4f} B",
            f"memory per GPU      {self.memory / gib:.1f} GiB on {gpus} GPU(s): state "
            f"{self.state / gib:.1f}, two blocks {self.gathered / gib:.1f}, activations "
            f"{self.activations / gib:.1f}",
            f"operations per step {self.flops * self.samples * gpus / 1e15:.2f} PFLOPs: "
            f"{self.flops / 1e15:.3f} a sample, {self.samples} sample(s) on each GPU",
        ]


class _EmptyAttention(torch.autograd.Function):
    """Attention with the memory of a fused kernel, which saves inputs and output, and no work."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _one_sample(config: RefinerConfig, size: tuple[int, int, int], text: int) -> tuple[int, int]:
    """Measure forward and backward without attention: peak bytes, operations.

    Args:
        size: latent frames, rows and columns.
        text: text tokens.
    """
    model = outline(config, attention=_EmptyAttention.apply).to(torch.bfloat16)
    model.checkpointing = True
    half = partial(torch.empty, device="meta", dtype=torch.bfloat16)
    z = half(1, config.latent_channels, *size)
    context = half(1, text, config.text_dim)
    inputs = z, torch.empty(1, device="meta"), context
    grads = []
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        grads.append(parameter.grad)

    def step() -> None:
        model(*inputs).float().square().mean().backward()

    # Two passes, since the counter of operations keeps tensors alive.
    with LiveBytes(model, *inputs, *grads) as live:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    return live.peak, flops.get_total_flops()


def attention_flops(config: RefinerConfig, size: tuple[int, int, int], text: int) -> int:
    """Count the operations of self- and cross-attention in one forward pass."""
    frame = count_tokens(size[1:], config.patch[1:])
    depth = ceil(size[0] / config.patch[0])
    pairs = [
        sum(
            (frame * (stop - start)) ** 2 for start, stop in segments(depth, config.window, shifted)
        )
        for shifted in (False, True)
    ]
    layers = (config.layers + 1) // 2, config.layers // 2
    own = sum(count * pair for count, pair in zip(layers, pairs, strict=True))
    return 4 * config.dim * (own + config.layers * depth * frame * text)


def count_tokens(size: tuple[int, ...], patch: tuple[int, ...]) -> int:
    """Count the tokens of a size in latent cells."""
    return prod(ceil(cells / side) for cells, side in zip(size, patch, strict=True))


def price(
    config: RefinerConfig,
    *,
    frames: int,
    height: int,
    width: int,
    gpus: int,
    batch: int,
    shard: int | None = None,
    text: int = 512,
) -> Price:
    """Price a training step.

    Args:
        config: the network.
        frames, height, width: of a clip, in pixels.
        gpus: processes; must divide the batch.
        batch: samples of a step.
        shard: GPUs that shard one copy of the state; all by default.
        text: text tokens.

    Raises:
        ValueError: a batch or GPUs that do not divide.
    """
    shard = shard or gpus
    if batch % gpus or gpus % shard:
        raise ValueError(
            f"expected GPUs that divide the batch, and shares that divide the GPUs, got {gpus=}, "
            f"{batch=}, {shard=}; choose a batch that is a multiple of the GPUs."
        )
    shape = ModelShape.of(config)
    cell = shape.cell_pixels
    sides = latent_frames(shape, frames), ceil(height / cell), ceil(width / cell)
    depth, rows, columns = (
        cells * ceil(side / cells) for side, cells in zip(sides, config.patch, strict=True)
    )
    size = depth, rows, columns
    # Every pair of layers adds as much as the second pair.
    (first, work), (second, more) = (
        _one_sample(replace(config, layers=layers), size, text) for layers in (2, 4)
    )
    model = outline(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    block = sum(weight.numel() for weight in model.blocks[0].parameters())
    pairs = (config.layers - 2) // 2
    attention = attention_flops(config, size, text)
    return Price(
        parameters=parameters,
        state=STATE_BYTES * ceil(parameters / shard),
        gathered=2 * 2 * block if shard > 1 else 2 * parameters,
        activations=first + pairs * (second - first),
        flops=work + pairs * (more - work) + round((FORWARDS + BACKWARD) * attention),
        samples=batch // gpus,
    )
