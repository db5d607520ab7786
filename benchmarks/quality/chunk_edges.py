"""Do chunks of time flicker? Differences of neighbouring frames, at chunk edges and elsewhere.

    python -m benchmarks.quality.chunk_edges --videos 4

A ratio is the mean absolute difference of neighbours where a chunk begins or ends, divided by that
where one chunk is heard alone. Three clips go through two functions that need the frames beside
them, as a video model does; three moving objects go through a whole refine run of the embedded
model, whose own ratio at the same frames, in one chunk, divides its row. Chunks that meet without
an overlap are the control.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.page import Page, parser, table
from surf_core.chunks import Chunk, chunks, in_chunks
from surf_core.flow import refine
from surf_core.tiny import vae
from surf_core.tiny.demo import PROMPTS
from surf_core.tiny.model import TinyT2V, to_pixels

FRAMES, MOST, OVERLAP = 121, 21, 7
"""Of the clips: 481 frames through a model made for 81, as Surf Refiner cuts them."""
TINY_FRAMES, TINY_MOST, TINY_OVERLAP = 32, 16, 7
STEPS, SIGMA = 5, 0.65
COLUMNS = "clip | through | blended | hard, the control"


def edge_ratio(x: Tensor, parts: Sequence[Chunk]) -> float:
    """Divide the mean jump of [B, C, T, H, W] at the edges of chunks by that within one."""
    told = [(part.start + part.lead, part.stop) for part in parts]
    edges = sorted({edge for span in told for edge in span if 0 < edge < x.shape[2]})
    shared = {t for before, after in pairwise(told) for t in range(after[0], before[1] + 1)}
    alone = [t for t in range(4, x.shape[2] - 4) if t not in shared and t not in edges]
    step = x.diff(dim=2).abs().mean((0, 1, 3, 4))
    at_edges, elsewhere = (step[[t - 1 for t in places]].mean() for places in (edges, alone))
    return (at_edges / elsewhere).item()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ramp(frames: int) -> Tensor:
    """Make a smooth ramp of brightness that passes through the picture in 40 frames."""
    place = torch.linspace(0, 1, 32)[:, None] + torch.arange(frames)[:, None, None] / 40
    return (2 * torch.pi * place).sin().expand(1, 2, -1, -1, 4).clone()


def texture(length: float, *shape: int) -> Tensor:
    """Make random pictures [B, C, T, H, W] that change as smoothly as over `length` frames."""
    frames = shape[2]
    low = torch.exp(-2 * (torch.pi * length * torch.fft.rfftfreq(frames)) ** 2)[:, None, None]
    field = torch.fft.irfft(torch.fft.rfft(noise(*shape, seed=3), dim=2) * low, frames, dim=2)
    return field / field.std()


def mean_added(part: Tensor, chunk: Chunk) -> Tensor:
    """Answer with something of all frames of a chunk."""
    return part + 0.5 * part.mean(2, keepdim=True)


def blurred(part: Tensor, chunk: Chunk) -> Tensor:
    """Lack the frames before and after a chunk, and meet zeros there."""
    return torch.nn.functional.avg_pool3d(part, (3, 1, 1), 1, (1, 0, 0))


FUNCTIONS: dict[str, Callable[[Tensor, Chunk], Tensor]] = {
    "its mean over time added": mean_added, "a blur over time": blurred,
}  # fmt: skip


def clips() -> dict[str, Tensor]:
    """Make the clips, [B, C, FRAMES, H, W]."""
    return {
        "smooth ramp": ramp(FRAMES),
        "texture that changes in 6 frames": texture(6.0, 8, 16, FRAMES, 8, 8),
        "texture, new in each frame": texture(0.0, 8, 16, FRAMES, 8, 8),
    }


def last_frames(latent: Tensor) -> Tensor:
    """Decode, and take the last frame of each latent frame: [B, 3, T, 8H, 8W]."""
    return to_pixels(latent)[:, :, :: vae.PERIOD]


@torch.inference_mode()
def refined(videos: int) -> Iterator[list]:
    """Yield the rows of the embedded model, over the same run in one chunk."""
    tiny = TinyT2V(list(PROMPTS[:1]) * videos)
    start = 0.5 * texture(2.0, videos, 16, TINY_FRAMES, 12, 12)

    def run(parts: Sequence[Chunk]) -> Tensor:
        def velocity(z: Tensor, sigma: float) -> Tensor:
            t = torch.full((videos,), 1000 * sigma)
            return in_chunks(lambda part, _: tiny.model(part, t, tiny.context), z, parts)

        return refine(velocity, start, SIGMA, STEPS, noise(*start.shape, seed=4))

    whole = run(chunks(TINY_FRAMES, TINY_FRAMES, 0))
    blended = chunks(TINY_FRAMES, TINY_MOST, TINY_OVERLAP, lead=1)
    hard = chunks(TINY_FRAMES, TINY_MOST, 0)
    runs = [(parts, run(parts)) for parts in (blended, hard)]
    for name, see in (("latent", lambda z: z), ("pixels", last_frames)):
        ratios = [edge_ratio(see(z), parts) / edge_ratio(see(whole), parts) for parts, z in runs]
        yield [f"embedded model, {name}", "a whole refine run", *map(text, ratios)]


def rows() -> Iterator[list]:
    """Yield the rows of the clips."""
    cuts = chunks(FRAMES, MOST, OVERLAP, lead=1), chunks(FRAMES, MOST, 0)
    for name, clip in clips().items():
        for through, function in FUNCTIONS.items():
            ratios = [edge_ratio(in_chunks(function, clip, parts), parts) for parts in cuts]
            yield [name, through, *map(text, ratios)]


def text(ratio: float) -> str:
    return f"{ratio:.3f}"


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--videos", type=int, default=4)
    args = line.parse_args()
    how = (
        f"clips of {FRAMES} latent frames in chunks of {MOST}, overlap {OVERLAP}; {args.videos} "
        f"videos of the embedded model, {TINY_FRAMES} frames in chunks of {TINY_MOST}, overlap "
        f"{TINY_OVERLAP}, {STEPS} steps from {SIGMA}"
    )
    legend = "1 is no flicker; the limit that the tests hold is 1.05."
    with Page(__spec__.name, "Chunks of time", args.out, legend) as page:
        lines = table(COLUMNS, [*rows(), *refined(args.videos)])
        page.write([*lines, "", page.origin(how)])


if __name__ == "__main__":
    main()
