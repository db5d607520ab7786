"""What does skipping tokens cost in quality, and which tokens may be skipped?

    python -m benchmarks.quality.skip --pairs 128

Held-out scenes of 128 pixels, made four times smaller by averaging, are refined whole and at 75, 50
and 25 % of the tokens, chosen by the oracle (which knows the sharp scene), by the trained
predictor, by the start's own detail (no weights) and at random. All is measured against the
scene: on kept and on skipped pixels, and where they meet. Each scene has a mask of its own.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page
from benchmarks.quality.held_out import NOISE
from benchmarks.quality.measures import Rows, arguments, ssim
from benchmarks.quality.tiny_refiner import PSNR, SIDE, PreviewCase, cases
from surf_core.cost import TINY, forward_flops
from surf_core.signature import psnr
from surf_core.skip import Mask, choose, oracle_mask, packing, predict_mask
from surf_core.skip.predictor import load
from surf_core.tiny import codec
from surf_core.tiny.demo import Settings, to_pixels
from surf_core.tiny.model import FRAMES, MASK
from surf_core.tiny.refiner import TinyRefiner, enlarge

KEEP = (0.75, 0.5, 0.25)
FULL = "100 %, all"
TOKEN = 2 * codec.CELL
"""Pixels along a side of a token."""
STEPS = 10


def sources(case: PreviewCase, predictor, seed: int) -> dict[str, Callable[[float], Mask]]:
    """Return by name how to choose a share of the tokens of one scene."""
    start, sharp = enlarge(case.shown), codec.encode(2 * case.truth - 1)
    grid = (FRAMES, SIDE // TOKEN, SIDE // TOKEN)
    drawn = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    return {
        "oracle": lambda keep: oracle_mask(sharp, keep=keep),
        "predictor": lambda keep: predict_mask(start, predictor, keep=keep),
        "detail": lambda keep: predict_mask(start, keep=keep),
        "random": lambda keep: choose(drawn, source="random", keep=keep, hysteresis=1.0),
    }


def in_pixels(tokens: Tensor) -> Tensor:
    """Blow a mask [T, h, w] up to pixels [T, SIDE, SIDE]."""
    return tokens.repeat_interleave(TOKEN, 1).repeat_interleave(TOKEN, 2)


def flicker(video: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Measure the error of the change from frame to frame, in %, on the same pixels: [1]."""
    wrong = (video.diff(dim=2) - truth.diff(dim=2)).abs().mean(dim=(0, 1))
    return 100 * wrong[where[1:] & where[:-1]].mean()[None]


def seam(video: Tensor, truth: Tensor, tokens: Tensor) -> Tensor:
    """Divide the mean difference over borders of kept and skipped tokens by the truth's: [1]."""
    refined, sums = in_pixels(tokens), []
    for x in (video, truth):
        across, down = (x.diff(dim=dim).abs().mean(dim=(0, 1)) for dim in (4, 3))
        borders = refined.diff(dim=2), refined.diff(dim=1)
        sums.append(torch.cat([across[borders[0]], down[borders[1]]]).mean())
    return (sums[0] / sums[1].clamp_min(1e-4))[None]


def regions(video: Tensor, truth: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Measure what differs between refined and skipped tokens."""
    refined = in_pixels(tokens)
    return {
        "flicker, skipped, %": flicker(video, truth, ~refined),
        "seam": seam(video, truth, tokens),
        "kept": tokens.float().mean()[None],
    }


def measured(refiner: TinyRefiner, case: PreviewCase, mask: Mask | None, seam_cells: int) -> dict:
    """Run once; measure fidelity, time, and operations relative to all tokens."""
    began, s = time.perf_counter(), Settings()
    options = dict(steps=STEPS, cfg=s.refine_cfg, window=s.window, mask=mask, seam=seam_cells)
    video = to_pixels(refiner(case.shown, case.seeds, **options))
    spent = time.perf_counter() - began
    clip = (TINY, FRAMES, SIDE, SIDE, s.window)
    counts = None if mask is None else packing(mask.tokens).counts
    values = {
        PSNR: psnr(video, case.truth),
        "SSIM": ssim(video, case.truth),
        "time, s": torch.tensor([spent]),
        "operations": torch.tensor([forward_flops(*clip, counts) / forward_flops(*clip)]),
    }
    return values | ({} if mask is None else regions(video, case.truth, mask.tokens))


def collect(rows: Rows, number: int, predictor, args) -> None:
    """Refine one scene whole and with every mask."""
    _, case = next(cases([number], args.weights))
    refiner = TinyRefiner(case.prompts, args.refiner)
    rows.add(FULL, measured(refiner, case, None, args.seam))
    for name, choice in sources(case, predictor, NOISE - 1 - number).items():
        for keep in KEEP:
            values = measured(refiner, case, choice(keep), args.seam)
            rows.add(f"{100 * keep:.0f} %, {name}", values)


def main() -> None:
    line = arguments(__doc__, pairs=128)
    line.add_argument("--predictor", type=Path, default=MASK, help="weights of the predictor")
    line.add_argument("--seam", type=int, default=0, help="latent cells of blending")
    args, rows, s = line.parse_args(), Rows(), Settings()
    predictor, _ = load(args.predictor)
    title = "What does skipping tokens cost in quality, and which tokens may be skipped?"
    with Page(
        __spec__.name, title, args.out, "Ratios are to the scene, the change paired."
    ) as page:
        for number in range(args.pairs):
            collect(rows, number, predictor, args)
        how = (
            f"{args.pairs} held-out scenes, 32 to {SIDE} pixels, {STEPS} steps, window {s.window}, "
            f"cfg {s.refine_cfg}, seam {args.seam}, one video at a time; mean +- standard error"
        )
        gains = {"PSNR over all, dB": (PSNR, FULL)}
        page.write([*rows.table("tokens", gains), "", page.origin(how)])


if __name__ == "__main__":
    main()
