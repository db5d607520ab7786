"""What does skipping tokens cost where it matters, and which tokens may be skipped?

    python -m benchmarks.quality.skip --pairs 48 --state runs/skip

Held-out scenes of 256 pixels, made four times smaller by averaging, are refined whole and at 75, 50
and 25 % of the tokens, chosen by the oracle (which knows the sharp scene), by the network on the
enlarged preview's pixels, by the detail of its pixels or latent (no weights) and at random. The
error to the scene is measured apart on the tokens that must be refined, on those that are skipped
and across the borders, each less that of the whole run on the same pixels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import NOISE, batches
from benchmarks.quality.measures import Rows, arguments, mean_and_error
from benchmarks.quality.saved_rows import SavedRows, Values, fingerprint
from benchmarks.quality.tiny_refiner import RATIO, SIDE, PreviewCase, cases
from surf_core.cost import ModelShape, forward_flops
from surf_core.skip import (
    Mask,
    choose,
    down_up,
    oracle_mask,
    packing,
    pixel_detail,
    pixel_net,
    predict_mask,
    scores,
)
from surf_core.tiny import vae
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import CLIP, FRAMES, VAE, to_pixels
from surf_core.tiny.refiner import TinyRefiner, enlarge, shape_of

KEEP = (0.75, 0.5, 0.25)
NETWORK = "network on pixels"
SOURCES = ("oracle", NETWORK, "pixel detail", "latent detail", "random")
FULL, NONE = "100 %, all", "0 %, the enlarged preview"
TOKEN = 2 * vae.CELL
"""Pixels along a side of a token."""
CELL = (vae.PERIOD, vae.CELL)
"""Pixel frames and pixels a side of a latent cell."""
MUST = 3.0
"""Score of the oracle from which on a token must be refined, in 1/255 of the range of a pixel."""
STEPS = 10
LESS = "less all"
COLUMNS = ("must: missed, %", "must: error, %", "must: high band", "skipped: error, %",
           "skipped: high band error, %", "borders: error, %")  # fmt: skip


def sources(case: PreviewCase, seed: int) -> dict[str, Callable[[float], Mask]]:
    """Return by name how to choose a share of the tokens of one scene."""
    start, video = enlarge(case.shown), to_pixels(case.shown)
    found = pixel_detail(video, (SIDE, SIDE), RATIO, cell=CELL)
    told = pixel_net.load().scores(video, (SIDE, SIDE), RATIO, cell=CELL)
    grid = (FRAMES, SIDE // TOKEN, SIDE // TOKEN)
    drawn = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    return {
        "oracle": lambda keep: oracle_mask(2 * case.truth - 1, keep=keep, ratio=RATIO, cell=CELL),
        NETWORK: lambda keep: choose(told, source=NETWORK, keep=keep),
        "pixel detail": lambda keep: choose(found, source="pixel detail", keep=keep),
        "latent detail": lambda keep: predict_mask(start, keep=keep),
        "random": lambda keep: choose(drawn, source="random", keep=keep, hysteresis=1.0),
    }


def in_pixels(tokens: Tensor) -> Tensor:
    """Blow a mask [T, h, w] up to pixels [CLIP, SIDE, SIDE]; the first latent frame is one."""
    frames = torch.cat([tokens[:1], tokens[1:].repeat_interleave(vae.PERIOD, 0)])
    return frames.repeat_interleave(TOKEN, 1).repeat_interleave(TOKEN, 2)


def high_band(video: Tensor) -> Tensor:
    """Subtract the mean of the 3x3 pixels around each: [1, 3, T, H, W]."""
    frames = video[0].transpose(0, 1)
    mean = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (frames - mean).transpose(0, 1)[None]


def error(one: Tensor, other: Tensor, where: Tensor) -> float:
    """Root mean square difference on the pixels `where` [T, H, W], in %; NaN of none."""
    return 100 * (one - other).square().mean(dim=(0, 1))[where].mean().sqrt().item()


def across(video: Tensor, kept: Tensor) -> Tensor:
    """Differences of neighbours over the borders of kept and skipped tokens: [3, count]."""
    right, down = video[0].diff(dim=3), video[0].diff(dim=2)
    return torch.cat([right[:, kept.diff(dim=2)], down[:, kept.diff(dim=1)]], dim=1)


def regions(video: Tensor, truth: Tensor, must: Tensor, tokens: Tensor) -> dict[str, float]:
    """Measure one video [1, 3, T, SIDE, SIDE] on the tokens that matter.

    Args:
        must: [T, h, w] bool, the tokens that must be refined.
        tokens: [T, h, w] bool, those that were.
    """
    kept, needed = in_pixels(tokens), in_pixels(must)
    bands, edges = [high_band(x) for x in (video, truth)], [across(x, kept) for x in (video, truth)]
    energy = [band.square().mean(dim=(0, 1))[needed].sum() for band in bands]
    jump = (edges[0] - edges[1]).square().mean().sqrt().item()
    found = (error(video, truth, needed), (energy[0] / energy[1]).item(),
             error(video, truth, ~kept), error(*bands, ~kept), 100 * jump)  # fmt: skip
    return dict(zip(COLUMNS[1:], found, strict=True))


def measured(
    video: Tensor, full: Tensor, truth: Tensor, must: Tensor, tokens: Tensor, shape: ModelShape
) -> dict[str, Tensor]:
    """Measure a run of a model of this shape beside the whole one on the same pixels."""
    ours, theirs = (regions(x, truth, must, tokens) for x in (video, full))
    clip = (shape, CLIP, SIDE, SIDE, Settings().window)
    less = forward_flops(*clip, packing(tokens).counts) if tokens.any() else 0
    missed = 100 * (must & ~tokens).sum() / must.sum()
    values = {COLUMNS[0]: missed.item(), "operations": less / forward_flops(*clip)} | ours
    values |= {f"{name} {LESS}": ours[name] - theirs[name] for name in ours}
    return {name: torch.tensor([float(value)]) for name, value in values.items()}


def values_of(number: int, args) -> Values:
    """Refine one scene whole and with every mask."""
    _, case = next(cases([number], args.weights))
    refiner, s = TinyRefiner(case.prompts, args.refiner), Settings()
    options = dict(steps=STEPS, cfg=s.refine_cfg, window=s.window)
    truth, shape = case.truth, shape_of(refiner)
    must = scores(2 * truth - 1, down_up(2 * truth - 1, RATIO), cell=CELL)[0] >= MUST

    def run(mask: Mask | None) -> Tensor:
        return to_pixels(refiner(case.shown, case.seeds, mask=mask, seam=args.seam, **options))

    full, all_of_them = run(None), torch.ones_like(must)
    start = to_pixels(enlarge(case.shown))
    found = {
        FULL: measured(full, full, truth, must, all_of_them, shape),
        NONE: measured(start, full, truth, must, ~all_of_them, shape),
    }
    for name, choice in sources(case, NOISE - 1 - number).items():
        for keep in KEEP:
            mask = choice(keep)
            found[f"{100 * keep:.0f} %, {name}"] = measured(
                run(mask), full, truth, must, mask.tokens, shape
            )
    found[FULL]["must, share"] = must.float().mean()[None]
    return found


def laid_out(rows: Rows) -> list[str]:
    """Lay out every measure, and its paired difference to the whole run."""

    def cell(method: str, name: str) -> str:
        values = rows[method].get(name)
        values = None if values is None else values[~values.isnan()]
        digits = 3 if name.startswith(COLUMNS[2]) else 2
        return "-" if values is None or len(values) < 2 else mean_and_error(values, digits)

    names = [COLUMNS[0]]
    for name in COLUMNS[1:]:
        names += [name, f"{name} {LESS}"]
    heads = [LESS if name.endswith(LESS) else name for name in names]
    order = [NONE, FULL, *(name for name in rows.parts if name not in (NONE, FULL))]
    return table(" | ".join(["tokens refined", *heads, "operations"]), (
        [method, *(cell(method, name) for name in names),
         f"{rows[method]['operations'].mean():.3f}"]
        for method in order
    ))  # fmt: skip


LEGEND = f"""`must` are the tokens that the oracle scores {MUST:g} or more: what enlarging the small
scene lost, in 1/255 of a pixel's range. Errors are root mean squares to the scene in percent of the
range; `high band` is the energy of what a 3x3 mean removes, over the scene's, and its error is that
of a pixel; `borders` compares differences of neighbours across the edges of what is kept. `{LESS}`
is the paired difference to refining all tokens, on the same pixels: a positive error is the
price."""


def main() -> None:
    line = arguments(__doc__, pairs=48, batch=4)
    line.add_argument("--seam", type=int, default=0, help="latent cells of blending")
    line.add_argument("--state", type=Path, help="folder of what is done, to go on from")
    args, rows, s = line.parse_args(), Rows(), Settings()
    made_of = fingerprint(args.refiner, VAE, pixel_net.WEIGHTS, s, args.seam, KEEP, MUST, COLUMNS)
    saved = SavedRows(args.state, made_of)
    title = "What does skipping tokens cost where it matters, and which may be skipped?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        for part in batches(list(range(args.pairs)), 1):
            found = saved.batch(part, lambda part=part: values_of(part[0], args))
            for name in (FULL, NONE, *(f"{100 * keep:.0f} %, {source}" for source in SOURCES
                                       for keep in KEEP)):  # fmt: skip
                rows.add(name, found[name])
            share = 100 * rows[FULL]["must, share"].mean().item()
            how = (
                f"{part[-1] + 1} held-out scenes, {SIDE // RATIO} to {SIDE} pixels, {STEPS} steps, "
                f"window {s.window}, cfg {s.refine_cfg}, seam {args.seam}, a mask for each scene; "
                f"{share:.1f} % of the tokens must be refined; mean +- standard error over scenes"
            )
            page.write([*laid_out(rows), "", page.origin(how)])


if __name__ == "__main__":
    main()
