"""Do the embedded models draw what they are asked for? Colour, shape and direction.

    python -m benchmarks.quality.prompts --pairs 256

For held-out prompts: the full-resolution baseline, the SURF preview, the preview refined to twice
the baseline's size, and the controls: grey, another seed, half the resolution directly, fewer steps
at full resolution, among them as many operations as a preview's, and the clean estimate at the
switch averaged down. The same measurement on rendered scenes says how far it can be trusted. A
shape is looked for as a person would: the circle, square or triangle that covers most of the pixels
of a colour and little else, at any place and size; specks weigh as much as their area, and what
lies outside the picture or behind another named object is no loss.
"""

from collections import defaultdict
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import (
    LOW,
    REFINE,
    Switched,
    batches,
    numbers_with,
    pixels,
    scenes,
    schedule,
    seeds,
)
from benchmarks.quality.measures import arguments, share_and_error
from benchmarks.quality.saved_rows import SavedRows, Values, fingerprint
from surf_core.flow import euler
from surf_core.resample import resize
from surf_core.reshift import inherit_noise
from surf_core.tiny.demo import Settings, resized, steps_of_equal_cost, to_pixels
from surf_core.tiny.model import CELLS, TinyT2V
from surf_core.tiny.prompt import COLOURS, DIRECTIONS, SHAPES
from surf_core.tiny.refiner import TinyRefiner
from surf_core.training.tiny.scenes import PALETTE, STEPS, distance

SIDE = 32
"""Pixels along a side at which shapes are looked for."""
RADII = torch.linspace(0.1, 0.34, 9)
"""Radii that are tried, in shares of the picture; scenes have 0.17 to 0.23."""
VISIBLE = 0.4
"""Share of a shape that has to be in the picture and not behind another."""
LIKE = 0.4
"""Overlap that the best shape needs, or there is none."""
LEAST = 0.05
"""Share of the picture that an object has to travel from first to last frame; scenes: 0.3."""
ASKED = ("colour", "shape", "colour and shape", "direction", "all")


def masks(video: Tensor) -> Tensor:
    """Find the pixels of each colour, grey being none, in a video in 0..1: [colours, T, H, W]."""
    palette = torch.cat([PALETTE, torch.tensor([[0.35] * 3, [0.5] * 3, [0.65] * 3])])
    nearest = (video[None] - palette[:, :, None, None, None]).square().sum(dim=1).argmin(dim=0)
    return torch.stack([nearest == index for index in range(len(COLOURS))])


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Compute the spectra of every shape at every radius, centred on pixel (0, 0), and their areas.

    [shapes, radii, 2 * SIDE, SIDE + 1] and [shapes, radii].
    """
    ticks = (torch.arange(2 * SIDE) + SIDE) % (2 * SIDE) - SIDE
    kinds = torch.arange(len(SHAPES)).repeat_interleave(len(RADII))
    radius = (RADII.repeat(len(SHAPES)) * SIDE).view(-1, 1, 1)
    far = distance(kinds, ticks.view(1, 1, -1) / radius, ticks.view(1, -1, 1) / radius) * radius
    inside = (0.5 - far).clamp(0, 1).unflatten(0, (len(SHAPES), len(RADII)))
    return torch.fft.rfft2(inside), inside.sum(dim=(-2, -1))


def _around(mask: Tensor) -> Tensor:
    """Sum a mask [T, H, W] under every template at every place: [shapes, radii, T, H, W]."""
    spectra, _ = _templates()
    spectrum = torch.fft.rfft2(mask.float(), s=(2 * SIDE, 2 * SIDE))
    sums = torch.fft.irfft2(spectrum * spectra[:, :, None].conj(), s=(2 * SIDE, 2 * SIDE))
    return sums[..., :SIDE, :SIDE]


def fit(mask: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Fit every shape to a mask.

    Args:
        mask: [T, SIDE, SIDE] bool, pixels of the object's colour.
        hidden: [T, SIDE, SIDE] bool, pixels of other named objects, where anything may be.

    Returns:
        [shapes, T], intersection over union of the best place and size, and [T, 2], the place
        (x, y) of the best shape, in shares of the picture.
    """
    _, areas = _templates()
    shared, visible = _around(mask), _around(~hidden)
    union = mask.sum(dim=(1, 2))[:, None, None] + visible - shared
    overlap = shared / union.clamp_min(1)
    overlap[visible < VISIBLE * areas[:, :, None, None, None]] = 0
    flat = overlap.transpose(1, 2).flatten(2)
    best = overlap.amax(dim=(0, 1)).flatten(1).argmax(dim=1)
    place = torch.stack([best % SIDE, best // SIDE], dim=1) / SIDE
    return flat.amax(dim=2), place


def direction_of(place: Tensor) -> str:
    """Name the direction from the first of the places [T, 2] to the last; "" for standing still."""
    moved = STEPS @ (place[-1] - place[0])
    return DIRECTIONS[moved.argmax()] if moved.max() >= LEAST else ""


def hits(prompt: str, video: Tensor) -> dict[str, bool]:
    """Find what of a prompt a video [3, T, H, W] in 0..1 shows; with two objects, both of them."""
    objects = [words.split() for words in prompt.split(",") if "moving" in words]
    of_colour = masks(resized(video[None], SIDE)[0])
    named = [COLOURS.index(words[0]) for words in objects]
    largest = of_colour.sum(dim=(1, 2, 3)).topk(len(named)).indices.tolist()
    right = {"colour": set(largest) == set(named), "shape": True, "direction": True}
    for index, (_, shape, _, direction) in zip(named, objects, strict=True):
        others = of_colour[[other for other in named if other != index]].any(dim=0)
        overlap, place = fit(of_colour[index], others)
        likeness = overlap.mean(dim=1)
        right["shape"] &= likeness.max() >= LIKE and SHAPES[likeness.argmax()] == shape
        right["direction"] &= direction_of(place) == direction
    right["colour and shape"] = right["colour"] and right["shape"]
    right["all"] = all(right.values())
    return right


def score(prompts: list[str], videos: Tensor) -> dict[str, Tensor]:
    """Score videos by what is asked, [B] of 0 and 1."""
    right = [hits(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
    return {name: torch.tensor([float(one[name]) for one in right]) for name in ASKED}


def sampled(numbers: list[int], prompts: list[str], args) -> dict[str, Tensor]:
    """Sample the videos of each stage and of the controls, in 0..1, of held-out prompts."""
    s, half = Settings(), (LOW, LOW)
    made = Switched(TinyT2V(prompts, args.weights), numbers)
    small = made.preview(s.switch_step, s.noise_policy, s.sigma_policy)
    refined = TinyRefiner(prompts, args.refiner)(
        small, seeds(numbers, REFINE), steps=s.refine_steps, cfg=s.refine_cfg, window=s.window
    )
    large, low = f"{4 * CELLS} pixels", f"{4 * LOW} pixels"
    whole = to_pixels(made.baseline)
    latents = {
        f"full resolution, another seed, {large}": euler(made.high, made.other, made.sigmas),
        f"direct, {low}": euler(made.low, inherit_noise(made.noise, half), made.sigmas),
    }
    for fewer in sorted({round(0.3 * s.steps), steps_of_equal_cost(s), round(0.5 * s.steps)}):
        latents[f"{fewer} steps at full resolution, {large}"] = euler(
            made.high, made.noise, schedule(fewer)
        )
    known = resize(made.clean[s.switch_step - 1], half, "area")
    latents |= {
        f"the switch without low steps, {low}": known, f"SURF preview, {low}": small,
        "SURF refined, 128 pixels": refined,
    }  # fmt: skip
    return {
        f"full resolution, {large}": whole,
        f"grey, {large}": whole.mean(dim=(2, 3, 4), keepdim=True).expand_as(whole),
    } | {name: to_pixels(latent) for name, latent in latents.items()}


def values_of(part: list[int], pairs: list[int], args) -> Values:
    """Score the rendered scenes, and what is sampled of those that are among the pairs."""
    rendered = [scenes(1, SIDE, number) for number in part]
    prompts = [scene.prompts[0] for scene in rendered]
    videos = {"rendered, 64 pixels": pixels(torch.cat([scene.video for scene in rendered]))}
    drawn = [number for number in part if number in pairs]
    if drawn:
        videos |= sampled(drawn, prompts[: len(drawn)], args)
    return {name: score(prompts[: len(video)], video) for name, video in videos.items()}


LEGEND = """Share of videos in which it is right. 12 and 20 steps are the paper's rows of 30 and
50 % of the steps, 16 cost as much as the preview; `the switch without low steps` is the clean
estimate at the switch, averaged down."""


def main() -> None:
    line = arguments(__doc__, pairs=256)
    line.add_argument("--objects", type=int, default=1, choices=(1, 2), help="in every prompt")
    line.add_argument("--state", type=Path, help="folder of what is done, to go on from")
    args, s, found = line.parse_args(), Settings(), defaultdict(lambda: defaultdict(list))
    numbers = numbers_with(args.objects, max(args.pairs, 256))
    pairs = numbers[: args.pairs]
    saved = SavedRows(
        args.state, fingerprint(args.weights, args.refiner, s, args.objects, pairs, ASKED)
    )
    how = (
        f"{args.pairs} held-out prompts with {args.objects} object(s), {s.steps} steps, cfg "
        f"{s.cfg} / {s.cfg_low}, switch at {s.switch_step}; binomial standard errors"
    )
    title = "Do the embedded models draw what they are asked for?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        for part in batches(numbers, args.batch):
            values = saved.batch(part, lambda part=part: values_of(part, pairs, args))
            for name, shares in values.items():
                for asked in ASKED:
                    found[name][asked].append(shares[asked])
        rows = [
            [name, *(share_and_error(torch.cat(parts[asked])) for asked in ASKED)]
            for name, parts in found.items()
        ]
        page.write([*table(" | ".join(["right, %", *ASKED]), rows), "", page.origin(how)])


if __name__ == "__main__":
    main()
