"""What does the embedded refiner add to a preview of a quarter of the size, and how true is it?

    python -m benchmarks.quality.tiny_refiner --pairs 128

Held-out scenes at 256 pixels are made four times smaller, by averaging and by the training's
degradation, encoded, and brought back by interpolation, by the untrained text-to-video model
(SDEdit: at 256 pixels, and at the 128 of its training with bicubic beyond) and by the trained
refiner in 1 to 12 steps, with windows and without. Then real previews, for which no truth exists:
their sharpness is that of the mean scene, their fidelity the low band.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page
from benchmarks.quality.held_out import REFINE, batches, painted, prompts, seeds, shown
from benchmarks.quality.measures import Rows, against_truth, arguments, low_band
from surf_core.degrade import degrade, draw
from surf_core.resample import resize
from surf_core.signature import detail
from surf_core.tiny import vae
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import CELLS, PIXELS, TinyT2V, to_latent, to_pixels
from surf_core.tiny.refiner import LARGE, TinyRefiner

SIDE = LARGE * vae.CELL
RATIO = 4
STEPS = (1, 4, 8, 10, 12)
"""Of the paper's Tab. 5."""
BICUBIC = "bicubic"
TEN = "refiner, 10 steps"
STARTS = ("clean", "degraded")
PSNR, SHARP = "PSNR, dB", "sharpness"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewCase:
    """Some previews, and what they are measured against."""

    prompts: list[str]
    """One per video."""
    seeds: list[int]
    """Of the refiner's noise."""
    shown: Tensor
    """Latents [B, 16, T, h, w]."""
    truth: Tensor | None
    """[B, 3, T, SIDE, SIDE] in 0..1, or None."""
    detail: Tensor
    """Variance of the Laplacian of scenes at SIDE."""

    def measure(self, video: Tensor) -> dict[str, Tensor]:
        preview = to_pixels(self.shown)
        if self.truth is not None:
            return against_truth(video, self.truth, preview)
        return {
            SHARP: detail(video) / self.detail.mean(),
            "low band, dB": low_band(video, preview),
        }


def smaller(video: Tensor, numbers: list[int], kind: str) -> Tensor:
    """Make scenes [B, 3, T, SIDE, SIDE] in 0..1 `RATIO` times smaller: "clean" or "degraded"."""
    if kind == "clean":
        return resize(video, (SIDE // RATIO,) * 2, "area")
    videos = [
        degrade(clip.transpose(0, 1), draw(0, f"held-out-{number}", scale=RATIO)).transpose(0, 1)
        for clip, number in zip(video, numbers, strict=True)
    ]
    return torch.stack(videos)


def cases(numbers: list[int], weights: Path) -> Iterator[tuple[str, PreviewCase]]:
    """Yield (kind of preview, case): clean and degraded scenes, then real previews."""
    truth, asked = painted(numbers, SIDE), prompts(numbers)
    known = dict(prompts=asked, seeds=seeds(numbers, REFINE), detail=detail(truth))
    for kind in STARTS:
        low = smaller(truth, numbers, kind)
        yield kind, PreviewCase(shown=to_latent(low), truth=truth, **known)
    yield (
        "previews",
        PreviewCase(shown=shown(TinyT2V(asked, weights), numbers), truth=None, **known),
    )


def interpolated(case: PreviewCase, method: str) -> Tensor:
    """Enlarge in pixels, and nothing else."""
    return resize(to_pixels(case.shown), (SIDE, SIDE), method).clamp(0, 1)


def refined(case: PreviewCase, weights: Path, **options) -> Tensor:
    """Videos of the trained refiner, with the demo's guidance."""
    refiner = TinyRefiner(case.prompts, weights)
    options = {"cfg": Settings().refine_cfg, **options}
    return to_pixels(refiner(case.shown, case.seeds, **options))


def untrained(case: PreviewCase, weights: Path, cells: int) -> Tensor:
    """Videos of the text-to-video model as a refiner, with the demo's settings."""
    s = Settings()
    video = refined(
        case, weights, cells=cells, steps=s.refine_steps, sigma_start=s.sigma_start, cfg=s.cfg,
        window=s.window,
    )  # fmt: skip
    return video if cells == LARGE else resize(video, (SIDE, SIDE), BICUBIC).clamp(0, 1)


def methods(case: PreviewCase, args) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield (name, how to make its videos)."""
    yield "bilinear", lambda: interpolated(case, "bilinear")
    yield BICUBIC, lambda: interpolated(case, BICUBIC)
    yield f"training-free, {SIDE} pixels", lambda: untrained(case, args.weights, LARGE)
    yield f"training-free, {PIXELS} pixels, bicubic", lambda: untrained(case, args.weights, CELLS)
    for steps in STEPS:
        make = partial(refined, case, args.refiner, steps=steps)
        yield f"refiner, {steps} steps", make
    yield f"{TEN}, full attention", lambda: refined(case, args.refiner, steps=10, window=0)
    if case.truth is not None:
        yield "the scene through the VAE", lambda: to_pixels(to_latent(case.truth))


def main() -> None:
    args, rows = arguments(__doc__, pairs=128, batch=8).parse_args(), defaultdict(Rows)
    title = "What does the embedded refiner add?"
    with Page(__spec__.name, title, args.out, "Changes are paired.") as page:
        for part in batches(list(range(args.pairs)), args.batch):
            for kind, case in cases(part, args.weights):
                for name, make in methods(case, args):
                    rows[kind].add(name, case.measure(make()))
        lines, s = [], Settings()
        for kind, values in rows.items():
            name = SHARP if kind == "previews" else PSNR
            gains = {f"{name} over bicubic": (name, BICUBIC), f"over {TEN}": (name, TEN)}
            lines += [*values.table(kind, gains), ""]
        how = (
            f"{args.pairs} held-out scenes and previews, {SIDE // RATIO} to {SIDE} pixels; refiner "
            f"in windows of its file, at the noise of its file, cfg {s.refine_cfg}; training-free "
            f"from {s.sigma_start}, {s.refine_steps} steps, window {s.window}, cfg {s.cfg}; mean "
            f"+- standard error"
        )
        page.write([*lines, page.origin(how)])


if __name__ == "__main__":
    main()
