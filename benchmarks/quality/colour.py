"""Does matching the preview's colours help the training-free refiner? On the embedded model.

    python -m benchmarks.quality.colour --pairs 64 --first 0

For every prompt and seed: the same-seed baseline, the preview, and the preview refined without
training: plain, and with the three colour matches, one in the latent (`colour_match` of the Surf
Refiner) and two on pixels (the methods of Colour Match). Changes against the plain one are paired
by prompt and seed.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import provenance
from benchmarks.quality.held_out import scenes, seeds
from benchmarks.quality.measures import mean_and_error
from surf_core.colour import METHODS, match_colour
from surf_core.flow import euler, refine
from surf_core.lowband import wavelet_match
from surf_core.reshift import DEFAULT_NOISE, DEFAULT_SIGMA, preview
from surf_core.schedule import flow_sigmas
from surf_core.signature import colour_distance, detail, layout_distance
from surf_core.tiny.demo import Settings, to_pixels
from surf_core.tiny.model import CELLS, TinyT2V
from surf_core.tiny.refiner import enlarge

SIGMAS = (0.65, 0.8)
"""Starts of the refiner: its default, and one that invents more."""
PLAIN = "none"


def matched(latent: Tensor, start: Tensor, shown: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (name of the match, video), the plain one first, then what is matched to.

    Args:
        latent: what the refiner made.
        start: the enlarged preview that it began with.
        shown: the preview's frames [B, 3, T, h, w].
    """
    video = to_pixels(latent)
    yield PLAIN, video
    yield "the preview itself, enlarged", to_pixels(start)
    yield "latent wavelet", to_pixels(wavelet_match(latent, start))
    for method in METHODS:
        pairs = zip(video.unbind(), shown.unbind(), strict=True)
        frames = [match_colour(a.movedim(1, 0), b.movedim(1, 0), method) for a, b in pairs]
        yield f"pixel {method}", torch.stack(frames).movedim(2, 1)


def flicker(video: Tensor) -> Tensor:
    """How the mean colour of a frame departs from the mean of its neighbours': [B], 0..1."""
    means = video.mean((3, 4))
    return (means[..., 1:-1] - (means[..., :-2] + means[..., 2:]) / 2).square().mean((1, 2)).sqrt()


def measures(video: Tensor, shown: Tensor, baseline: Tensor) -> dict[str, Tensor]:
    """Name -> one value for each video."""
    return {
        "colour to baseline": 100 * colour_distance(video, baseline),
        "layout to baseline": 100 * layout_distance(video, baseline),
        "colour to preview": 100 * colour_distance(video, shown),
        "layout to preview": 100 * layout_distance(video, shown),
        "flicker": 100 * flicker(video),
        "detail": 100 * detail(video) / detail(baseline).mean(),
    }


def collect(tiny: TinyT2V, drawn: list[int]) -> dict[float, dict[str, dict[str, Tensor]]]:
    """Sample everything: sigma_start -> match -> measure -> [pairs]."""
    s, found = Settings(), {}
    sigmas, full = flow_sigmas(s.steps, s.shift), tiny.noise(drawn)
    baseline = to_pixels(euler(tiny.velocity(s.cfg), full, sigmas))
    low = preview(
        tiny.velocity(s.cfg), full, sigmas, s.switch_step, (CELLS // 2, CELLS // 2),
        noise=None, velocity_low=tiny.velocity(s.cfg_low),
        sigma_policy=DEFAULT_SIGMA, noise_policy=DEFAULT_NOISE,
    )  # fmt: skip
    start, shown = enlarge(low, CELLS), to_pixels(low)
    noise = tiny.noise([seed + 20_000 for seed in drawn])
    for sigma in SIGMAS:
        out = refine(tiny.velocity(s.cfg, s.window), start, sigma, s.refine_steps, noise)
        found[sigma] = {
            name: measures(video, shown, baseline) for name, video in matched(out, start, shown)
        }
    return found


def table(rows: dict[str, dict[str, Tensor]], sigma: float) -> list[str]:
    """Lay out one start: values, then paired changes against no match."""
    names = list(rows[PLAIN])
    lines = [f"### sigma_start {sigma}", ""]
    head = "| " + " | ".join(["match, in %", *names]) + " |"
    lines += [head, "| --- " * (len(names) + 1) + "|"]
    for match, values in rows.items():
        lines.append("| " + " | ".join([match, *map(mean_and_error, values.values())]) + " |")
    lines += ["", "| " + " | ".join(["change against none", *names]) + " |"]
    lines += ["| --- " * (len(names) + 1) + "|"]
    for match in list(rows)[1:]:
        change = [mean_and_error(rows[match][name] - rows[PLAIN][name]) for name in names]
        lines.append("| " + " | ".join([match, *change]) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--first", type=int, default=0, help="which run: other prompts and seeds")
    parser.add_argument("--out", type=Path, help="a Markdown file to append the tables to")
    args = parser.parse_args()
    began, count = time.time(), args.pairs
    numbers = list(range(args.first * count, (args.first + 1) * count))
    tiny = TinyT2V(scenes(count, 8, numbers[0], frames=1).prompts)

    lines = []
    for sigma, rows in collect(tiny, seeds(numbers)).items():
        lines += table(rows, sigma)
    s = Settings()
    lines += [
        f"{count} prompt and seed pairs, first {args.first}, preview {s.steps} steps with the "
        f"switch at {s.switch_step}, refiner {s.refine_steps} steps, window {s.window}, cfg "
        f"{s.cfg}; mean +- standard error; {time.time() - began:.0f} s. {provenance()}",
        "",
    ]
    if args.out:
        with args.out.open("a") as file:
            file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
