"""Price a training run before anybody pays for it: parameters, memory of a GPU, operations.

Everything runs on the meta device, in bf16, with activations computed again in the backward pass.
"""

from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..cost import ModelShape, latent_frames
from ..refiner import RefinerConfig, outline
from ..window import segments
from .live_bytes import LiveBytes

STATE_BYTES = 4 + 4 + 8 + 4
"""Of a parameter, in fp32: itself, its gradient, AdamW's two moments, its average."""
BACKWARD = 2.5
"""Operations of a fused attention's backward pass, in forwards: it scores once more."""
FORWARDS = 2
"""One, and one more before the backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What one step costs."""

    parameters: int
    """Of the network."""
    state: int
    """Bytes of weights, gradients, optimizer and average on each GPU."""
    gathered: int
    """Bytes of two blocks, whole and in bf16: the one at work, and the next under way."""
    activations: int
    """Bytes of live tensors at the peak of one sample, without what kernels need inside."""
    flops: int
    """Operations of one sample, forward, again, and backward."""
    samples: int
    """Samples that each GPU computes in a step, one after the other."""

    @property
    def memory(self) -> int:
        """Bytes of each GPU."""
        return self.state + self.gathered + self.activations

    def lines(self, gpus: int) -> list[str]:
        """Say it, a line each."""
        gib = 2**30
        return [
            f"parameters          {self.parameters / 1e9:.4f} B",
            f"memory per GPU      {self.memory / gib:.1f} GiB on {gpus} GPU(s): state "
            f"{self.state / gib:.1f}, two blocks {self.gathered / gib:.1f}, activations "
            f"{self.activations / gib:.1f}",
            f"operations per step {self.flops * self.samples * gpus / 1e15:.2f} PFLOPs: "
            f"{self.flops / 1e15:.3f} a sample, {self.samples} sample(s) on each GPU",
        ]


class _Unbuilt(torch.autograd.Function):
    """Attention without its work: what a fused kernel keeps beside its inputs is its output."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _one_sample(config: RefinerConfig, size: tuple[int, int, int], text: int) -> tuple[int, int]:
    """Peak bytes and operations, attention left out, of forward and backward; frames, cells."""
    model = outline(config, attention=_Unbuilt.apply).to(torch.bfloat16)
    model.checkpointing = True
    half = {"device": "meta", "dtype": torch.bfloat16}
    z = torch.empty(1, config.latent_channels, *size, **half)
    context = torch.empty(1, text, config.text_dim, **half)
    inputs = z, torch.empty(1, device="meta"), context
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    grads = [parameter.grad for parameter in model.parameters()]

    def step() -> None:
        model(*inputs).float().square().mean().backward()

    # One after the other: the counter of operations keeps tensors alive.
    with LiveBytes(model, *inputs, *grads) as live:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    return live.peak, flops.get_total_flops()


def attention_flops(config: RefinerConfig, size: tuple[int, int, int], text: int) -> int:
    """Operations of all attention, self and cross, of one forward; mean of both window phases."""
    frame = prod_of(size[1:], config.patch[1:])
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


def prod_of(size: tuple[int, ...], patch: tuple[int, ...]) -> int:
    """Tokens of latent cells."""
    count = 1
    for cells, step in zip(size, patch, strict=True):
        count *= ceil(cells / step)
    return count


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
    """Price a step.

    Args:
        config: the network.
        frames, height, width: of a clip, in pixels.
        gpus: processes; divide the batch.
        batch: samples of a step.
        shard: GPUs that share one copy of the state; all by default.
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
    grid = latent_frames(shape, frames), ceil(height / cell), ceil(width / cell)
    grid = tuple(step * ceil(side / step) for side, step in zip(grid, config.patch, strict=True))
    # Two layers tell what a layer keeps; each of the others keeps as much.
    (first, work), (second, more) = (
        _one_sample(replace(config, layers=layers), grid, text) for layers in (2, 4)
    )
    model = outline(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    block = sum(weight.numel() for weight in model.blocks[0].parameters())
    pairs = (config.layers - 2) // 2
    attention = attention_flops(config, grid, text)
    return Price(
        parameters=parameters,
        state=STATE_BYTES * ceil(parameters / shard),
        gathered=2 * 2 * block if shard > 1 else 2 * parameters,
        activations=first + pairs * (second - first),
        flops=work + pairs * (more - work) + round((FORWARDS + BACKWARD) * attention),
        samples=batch // gpus,
    )
