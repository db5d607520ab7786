"""How much memory do the activations of a layer take, whole and segment by segment?

    python -m benchmarks.cost.block_memory

Two layers, one of each phase. Once with real values at the shape of 1080p and a quarter of its
tokens a side; then at full sizes on the meta device, where nothing is computed and attention gives
back an empty tensor: what a fused kernel leaves beside its inputs. Beside each is the estimate of
`surf_core.cost`. On a GPU, benchmarks/speed/refiner_step.py has the allocator's own figures.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.page import Page, parser, table
from surf_core.cost import ModelShape, activation_bytes, tokens
from surf_core.refiner import RefinerConfig, SurfRefinerDiT, outline
from surf_core.training.live_bytes import LiveBytes
from surf_core.window import sdpa

SIZES = {"720p": (720, 1280), "1080p": (1088, 1920), "1440p": (1440, 2560), "4K": (2160, 3840)}
SCALED = (272, 480)
"""1088 x 1920, a quarter a side."""
FRAMES, LATENT_FRAMES = 81, 21
LEGEND = """Bytes of live tensors at the peak of a forward without gradients, 81 frames, batch 1;
weights, input latent and text are not in it, nor what a kernel needs inside one
operation. The peak does not depend on the number of layers. `stream` is the tokens
alone, which is all that grows with the number of frames when there are windows.
1080p / 4 has real values, heads of 72 and a fourth of the width; the other rows are
the real models at real sizes on the meta device."""


def empty(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Allocate the result of attention without its work."""
    return torch.empty_like(q)


def live(config: RefinerConfig, side: tuple[int, int], dtype, segmentwise: bool, meta: bool) -> int:
    """Measure the peak bytes of live tensors in one forward, without weights and inputs."""
    if meta:
        model = outline(config, attention=empty)
    else:
        model = SurfRefinerDiT(config, attention=sdpa)
        model.initialise(torch.Generator().manual_seed(0))
    model, device = model.to(dtype), "meta" if meta else "cpu"
    model.segmentwise = segmentwise
    shape = (1, config.latent_channels, LATENT_FRAMES, side[0] // 8, side[1] // 8)
    z = torch.zeros(shape, dtype=dtype, device=device)
    text = torch.zeros(1, 512, config.text_dim, dtype=dtype, device=device)
    with LiveBytes(model, z, text) as counter, torch.no_grad():
        model(z, torch.zeros(1, device=device), text)
    return counter.peak


def rows_of(name: str, config: RefinerConfig, side, dtype, windows, meta=True) -> Iterator[list]:
    """Yield the rows of one model at one size, one for each window."""
    for window in windows:
        changed = replace(config, window=window)
        whole, pieces = (live(changed, side, dtype, how, meta) for how in (False, True))
        shape, size = ModelShape.of(config), dtype.itemsize
        estimate = activation_bytes(shape, FRAMES, *side, window, itemsize=size)
        stream = tokens(shape, FRAMES, *side) * shape.dim * size
        yield [
            name, config.block, str(dtype).removeprefix("torch."), window or "full",
            *(f"{count / 2**20:.0f}" for count in (stream, whole, pieces)),
            f"{whole / pieces:.2f}", f"{estimate / pieces:.3f}",
        ]  # fmt: skip


def rows() -> Iterator[list]:
    """Yield the rows of all models."""
    surf = replace(RefinerConfig.surf_1b(), layers=2)
    narrow = replace(surf, dim=288, heads=4, ffn_dim=1152)
    yield from rows_of("1080p / 4, CPU", narrow, SCALED, torch.float32, (4, 8, 0), meta=False)
    for name, side in SIZES.items():
        yield from rows_of(f"{name}, meta", surf, side, torch.bfloat16, (4, 8, 0))
    wan = replace(RefinerConfig.wan_1_3b(), layers=2)
    for name in ("720p", "1080p"):
        yield from rows_of(f"{name}, meta", wan, SIZES[name], torch.bfloat16, (4, 8))


def main() -> None:
    args = parser(__doc__).parse_args()
    title = "Activations of one forward, whole and segment by segment"
    with Page(__spec__.name, title, args.out, LEGEND) as page:
        columns = (
            "size | block | dtype | W_t | stream, MiB | whole, MiB | segment-wise, MiB | ratio | "
            "cost / measured"
        )
        page.write([*table(columns, rows()), "", page.origin("two layers")])


if __name__ == "__main__":
    main()
