"""Does the embedded model draw what it is asked for? Colour, shape and direction of single objects.

    python -m benchmarks.prompts --videos 96

The same measurement on rendered scenes says how far it can be trusted.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.provenance import provenance
from surf_core.flow import euler
from surf_core.schedule import flow_sigmas
from surf_core.tiny.demo import to_pixels
from surf_core.tiny.model import CELLS, FRAMES, TinyT2V
from surf_core.tiny.prompt import COLOURS, DIRECTIONS, SHAPES
from surf_core.training.tiny.scenes import PALETTE, STEPS, render

FILL = {"circle": 0.785, "square": 1.0, "triangle": 0.5}
"""Share of its bounding box that a shape fills."""


def masks(video: Tensor) -> Tensor:
    """Which pixels have which colour, grey being none: [colours, T, H, W] of a video in 0..1."""
    palette = torch.cat([PALETTE, torch.tensor([[0.35] * 3, [0.5] * 3, [0.65] * 3])])
    nearest = (video[None] - palette[:, :, None, None, None]).square().sum(dim=1).argmin(dim=0)
    return torch.stack([nearest == index for index in range(len(COLOURS))])


def shape_of(mask: Tensor) -> str:
    """Name the shape of a mask [T, H, W] by how much of its bounding box it fills."""
    fills = []
    for frame in mask:
        rows, columns = frame.any(dim=1).nonzero(), frame.any(dim=0).nonzero()
        if len(rows):
            box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            fills.append((frame.sum() / box).item())
    fill = torch.tensor(fills).median().item() if fills else 0.0
    return min(FILL, key=lambda name: abs(FILL[name] - fill))


def direction_of(mask: Tensor) -> str:
    """Name the direction in which the centre of a mask [T, H, W] moves, first to last frame."""
    ticks = torch.arange(mask.shape[-1], dtype=torch.float32)
    area = mask.sum(dim=(1, 2)).clamp_min(1)
    x, y = (mask * ticks).sum(dim=(1, 2)) / area, (mask * ticks[:, None]).sum(dim=(1, 2)) / area
    moved = torch.stack([x[-1] - x[0], y[-1] - y[0]])
    return DIRECTIONS[(STEPS @ moved).argmax()]


def score(prompts: list[str], videos: Tensor) -> dict[str, float]:
    """Share of videos whose colour, shape and direction are those of the prompt."""
    right = {"colour": 0, "shape": 0, "direction": 0}
    for prompt, video in zip(prompts, videos, strict=True):
        colour, shape, _, direction = prompt.split(",")[0].split()
        found = masks(video)
        mask = found[COLOURS.index(colour)]
        right["colour"] += found.sum(dim=(1, 2, 3)).argmax() == COLOURS.index(colour)
        right["shape"] += shape_of(mask) == shape
        right["direction"] += direction_of(mask) == direction
    return {name: float(count) / len(prompts) for name, count in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=96)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args()
    scenes = render(4 * args.videos, FRAMES, 4 * CELLS, torch.Generator().manual_seed(77))
    single = [i for i, prompt in enumerate(scenes.prompts) if prompt.count("moving") == 1]
    single = single[: args.videos]
    prompts = [scenes.prompts[index] for index in single]
    tiny = TinyT2V(prompts)
    noise = tiny.noise([2_000_000 + index for index in range(len(prompts))])
    videos = to_pixels(euler(tiny.velocity(4.0), noise, flow_sigmas(40, 3.0)))
    rows = {
        "rendered": score(prompts, (scenes.video[single] + 1) / 2),
        "generated": score(prompts, videos),
        "chance": {name: 1 / len(c) for name, c in zip(
            ("colour", "shape", "direction"), (COLOURS, SHAPES, DIRECTIONS), strict=True)},
    }  # fmt: skip
    lines = ["| videos | colour | shape | direction |", "| --- | --- | --- | --- |"]
    for name, shares in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{s:.0%}" for s in shares.values()) + " |")
    lines += ["", f"{len(prompts)} prompts with one object, 40 steps, cfg 4. {provenance()}", ""]
    text = "\n".join(lines)
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
