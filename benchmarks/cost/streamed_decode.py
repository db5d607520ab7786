"""How much main memory does a decode into a file take, however long the video is?

    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.cost.streamed_decode

Measured: how much the resident set of a process grows at most, at toy size, through Surf Decode
Video and through Surf VAE Decode, which holds all frames, the control. The VAE repeats cells, so
that frames and encoder are what is measured. Counted: how Surf Decode Video cuts large videos.

Dims: T latent frames.
"""

import multiprocessing
import resource
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from benchmarks.page import NOT_MEASURED, Page, parser, table
from benchmarks.speed.host import models

GB = 2**30
TOY_SIZE, TOY_MEMORY = (320, 512), 0.15
LENGTHS = (81, 161, 321, 641)
SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
LONG = 481
MEMORY = (1.5, 3.0)
CELL, CHANNELS, RATE = 8, 16, 4
MEASURED = (
    "frames | all frames in fp32, GB | Surf VAE Decode, GB | Surf Decode Video, GB | allowed, GB"
)
COUNTED = (
    "size | all frames in fp32, GB | `memory`, GB | needed, GB | latent frames at a time | "
    "rows | work"
)


class RepeatingVae:
    """A VAE of the host's kind without a network: cells become pixels."""

    latent_dim, latent_channels, device = 3, CHANNELS, torch.device("cpu")
    vae_dtype = torch.float32

    def spacial_compression_decode(self) -> int:
        return CELL

    def temporal_compression_decode(self) -> int:
        return RATE

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return 0

    def decode(self, samples: Tensor) -> Tensor:
        """Repeat: [B, C, T, H, W] to [B, F, rows, columns, 3]."""
        grey = samples[:, :3].repeat_interleave(CELL, -1).repeat_interleave(CELL, -2)
        first, rest = grey[:, :, :1], grey[:, :, 1:].repeat_interleave(RATE, 2)
        return torch.cat([first, rest], 2).movedim(1, -1)


def latent(frames: int, size: tuple[int, int], device: str = "cpu") -> Tensor:
    """Make a latent of so many frames; the values are drawn where there is memory for them."""
    shape = (1, CHANNELS, 1 + (frames - 1) // RATE, size[0] // CELL, size[1] // CELL)
    if device == "meta":
        return torch.empty(shape, device=device)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def decode(frames: int, into_file: bool) -> None:
    """Run a node as the host does."""
    from surf.nodes.decode import SurfDecodeVideo, SurfVAEDecode

    samples = {"samples": latent(frames, TOY_SIZE)}
    if into_file:
        SurfDecodeVideo.execute(
            samples, RepeatingVae(), fps=24.0, width=0, height=0, crf=23, memory=TOY_MEMORY, piece=0
        )
    else:
        SurfVAEDecode.execute(samples, RepeatingVae(), width=0, height=0, piece=0)


def grown(frames: int, into_file: bool, answer: Connection) -> None:
    """Send the bytes by which this process grew at most; what loads at first is not counted."""
    torch.set_num_threads(1)
    decode(5, into_file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decode(frames, into_file)
    answer.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def measure(frames: int, into_file: bool) -> float | str:
    """Return the GB by which a process of its own grew."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=grown, args=(frames, into_file, there))
    child.start()
    child.join()
    return here.recv() / GB if child.exitcode == 0 else NOT_MEASURED


def measured(lengths: tuple[int, ...]) -> Iterator[list[Any]]:
    """Yield a row for each length."""
    from surf.nodes.host.vae.video_file import encoder_bytes

    encoder = encoder_bytes(*TOY_SIZE) / GB
    for frames in lengths:
        whole = frames * TOY_SIZE[0] * TOY_SIZE[1] * 12 / GB
        took = [measure(frames, into_file) for into_file in (False, True)]
        assert encoder < TOY_MEMORY
        yield [frames, whole, *took, TOY_MEMORY]


def counted() -> Iterator[list[Any]]:
    """Yield how the node cuts a long video of each size."""
    from surf.nodes.host.vae.streaming import Streaming
    from surf.nodes.host.vae.video_file import encoder_bytes

    for name, size in SIZES.items():
        encoder = encoder_bytes(*size)
        for memory in MEMORY:
            samples = latent(LONG, size, "meta")
            stream = Streaming(RepeatingVae(), samples, memory * GB, encoder).stream
            whole = LONG * size[0] * size[1] * 12 / GB
            needed = (stream.memory + encoder) / GB
            yield [name, whole, memory, needed, stream.latent_frames, stream.rows, stream.work]


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    args = line.parse_args()
    version = models.enter(__spec__.name)
    if version is None:
        return
    if sys.platform != "linux":
        print(f"{__spec__.name}: not run: the resident set is read on Linux alone.")
        return
    size = f"{TOY_SIZE[1]} x {TOY_SIZE[0]}"
    legend = (
        f"GB of 2**30 bytes; ComfyUI {version}. The growth counts the latent too, and what Python "
        "and libav allocate beside `memory`."
    )
    with Page(__spec__.name, "Main memory of a decode into a file", args.out, legend) as page:
        lines = [f"## Counted, {LONG} frames", "", *table(COUNTED, counted()), ""]
        page.write(lines)
        rows = table(MEASURED, measured(tuple(args.lengths)))
        how = f"peak resident set of a process for each cell, {size} pixels, H.264 by 1 thread"
        page.write([*lines, f"## Measured, {size}", "", *rows, "", page.origin(how)])


if __name__ == "__main__":
    main()
