"""Does matching the preview's colours help the training-free refiner? On the embedded model.

    python -m benchmarks.quality.colour --pairs 64 --first 0

For every prompt and seed: the same-seed baseline, the preview, and the preview refined without
training: plain, and with the three colour matches, one in the latent (`colour_match` of the Surf
Refiner) and two on pixels (the methods of Surf Colour Match). The control is a clip of the
preview's mean colour and nothing else. Changes against the plain one are paired by prompt and seed.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import REFINE, batches, prompts, schedule, seeds, shown
from benchmarks.quality.measures import Rows, arguments, mean_and_error
from surf_core.colour import METHODS, match_colour
from surf_core.flow import euler, refine
from surf_core.lowband import wavelet_match
from surf_core.signature import bands, colour_distance, detail
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import CELLS, TinyT2V, to_pixels
from surf_core.tiny.refiner import enlarge

SIGMAS = (0.65, 0.8)
"""Starts of the refiner: its default, and one that invents more."""
PLAIN, GREY = "none", "the preview's mean colour alone"
COLUMN = "match, in %"


def matched(latent: Tensor, start: Tensor, low: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (name of the match, video), the plain one first, then what is matched to, and grey.

    Args:
        latent: what the refiner made.
        start: the enlarged preview that it began with.
        low: the preview's frames [B, 3, T, h, w].
    """
    video = to_pixels(latent)
    yield PLAIN, video
    yield "the preview itself, enlarged", to_pixels(start)
    yield GREY, low.mean(dim=(2, 3, 4), keepdim=True).expand_as(video)
    yield "latent wavelet", to_pixels(wavelet_match(latent, start))
    for method in METHODS:
        pairs = zip(video.unbind(), low.unbind(), strict=True)
        frames = [match_colour(a.movedim(1, 0), b.movedim(1, 0), method) for a, b in pairs]
        yield f"pixel {method}", torch.stack(frames).movedim(2, 1)


def flicker(video: Tensor) -> Tensor:
    """Measure how a frame's mean colour departs from the mean of its neighbours': [B], 0..1."""
    means = video.mean((3, 4))
    return (means[..., 1:-1] - (means[..., :-2] + means[..., 2:]) / 2).square().mean((1, 2)).sqrt()


def measures(video: Tensor, low: Tensor, baseline: Tensor) -> dict[str, Tensor]:
    """Measure each video, in percent: distances of colour, and `bands`, 100 for the same video."""
    values = {
        "colour to baseline": colour_distance(video, baseline),
        "agreement with baseline": bands(video, baseline),
        "colour to preview": colour_distance(video, low),
        "agreement with preview": bands(video, low),
        "flicker": flicker(video),
        "detail": detail(video) / detail(baseline).mean(),
    }
    return {f"{name}, %": 100 * value for name, value in values.items()}


def collect(rows: dict[float, Rows], numbers: list[int], weights) -> None:
    """Refine the previews of some scenes from every sigma, and measure every match."""
    s = Settings()
    tiny = TinyT2V(prompts(numbers), weights)
    full = euler(tiny.velocity(s.cfg), tiny.noise(seeds(numbers)), schedule())
    baseline, low = to_pixels(full), shown(tiny, numbers)
    start, noise = enlarge(low, CELLS), tiny.noise(seeds(numbers, REFINE))
    for sigma in SIGMAS:
        out = refine(tiny.velocity(s.cfg, s.window), start, sigma, s.refine_steps, noise)
        for name, video in matched(out, start, to_pixels(low)):
            rows[sigma].add(name, measures(video, to_pixels(low), baseline))


def changes(rows: Rows) -> list[str]:
    """Lay out paired changes against no match."""
    names = list(rows[PLAIN])
    return table(" | ".join(["change against none", *names]), (
        [match, *(mean_and_error(rows.change(match, PLAIN, name)) for name in names)]
        for match in rows.parts if match != PLAIN
    ))  # fmt: skip


def main() -> None:
    line = arguments(__doc__, pairs=64, batch=64)
    line.add_argument("--first", type=int, default=0, help="which run: other prompts and seeds")
    args, rows, s = line.parse_args(), defaultdict(Rows), Settings()
    numbers = list(range(args.first * args.pairs, (args.first + 1) * args.pairs))
    title = "Colour match after the training-free refiner, on the embedded model"
    with Page(__spec__.name, title, args.out, "Mean +- standard error.") as page:
        for part in batches(numbers, args.batch):
            collect(rows, part, args.weights)
        lines = []
        for sigma, each in rows.items():
            lines += [f"### sigma_start {sigma}", "", *each.table(COLUMN), "", *changes(each), ""]
        how = (
            f"{args.pairs} prompt and seed pairs, first {args.first}, preview {s.steps} steps with "
            f"the switch at {s.switch_step}, refiner {s.refine_steps} steps, window {s.window}, "
            f"cfg {s.cfg}"
        )
        page.write([*lines, page.origin(how)])


if __name__ == "__main__":
    main()
