"""What does torch.compile cost and bring in the host, and is what comes out still right?

    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.compile --out FILE.md
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.compile --models surf --modes eager surf

The host's own sampler and the nodes of the pack run random models, plain (eager), with the host's
TorchCompileModel (host) and with Surf Compile (surf), one setting after the other, as in a
session: sizes, guidance, windows, masks and tiles change, the compiled model stays. On a CPU, or
with --toy, everything is toy-sized.

Dims: T latent frames, H, W latent cells.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.host import models
from benchmarks.host.watch import Watch
from benchmarks.host_flow import TOY_HUNYUAN, TOY_SURF, TOY_WAN
from benchmarks.provenance import provenance, publish_page
from surf_core import cost
from surf_core.refiner import RefinerConfig

NEEDS = "compile: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it."
MODES = ("eager", "host", "surf")
SIZES = {False: {"high": (60, 104), "low": (30, 52), "target": (90, 160), "other": (60, 104)},
         True: {"high": (12, 16), "low": (8, 12), "target": (8, 12), "other": (12, 8)}}  # fmt: skip
"""Toy or not -> rows and columns of latents."""
STEPS = 4
COLUMNS = ("model | setting | mode | first, s | later, s | times eager | compiled | breaks "
           "| differs by | peak, GiB")  # fmt: skip
LEGEND = """`first` is the first evaluation of a setting, which compiles what is not there yet;
`later` the median of those of a second call, `times eager` the plain model's time over it.
`compiled` counts the graphs that were new in a setting, `breaks` the places where one was cut.
`differs by` is the largest difference of the result from the plain model's, over the largest value
in that; above 0.01 it is WRONG. The settings of a model run in this order; inductor, no cache."""
WRONG = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One call of a sampler."""

    name: str
    run: Callable[[Any], torch.Tensor]


def noise(frames: int, size: tuple[int, int], scale: float = 1.0) -> dict:
    """A LATENT [1, 16, T, H, W]."""
    generator = torch.Generator().manual_seed(2)
    return {"samples": scale * torch.randn(1, 16, frames, *size, generator=generator)}


def preview(model: Any, shape: cost.ModelShape, frames: int, sizes: dict, cfg: float):
    """Reshift KSampler, two legs of two sizes."""
    from surf.nodes.preview import SurfReshiftKSampler

    height, width = (8 * cells for cells in sizes["low"])
    return SurfReshiftKSampler.execute(
        model, *models.prompts(shape), noise(frames, sizes["high"], 0.0), 0, STEPS // 2, cfg, cfg,
        steps=STEPS, shift=3.0, shift_low=3.0, sampler_name="euler", scheduler="simple",
        denoise=1.0, low_resolution="by size", low_scale=0.5, low_width=width, low_height=height,
        sigma_policy="same", noise_policy="fresh", handover="reuse",
    ).args[0]["samples"]  # fmt: skip


def refined(
    model: Any, shape: cost.ModelShape, frames: int, size: tuple[int, int], *, cfg: float = 1.0,
    window: int = 4, tile: int = 0, keep: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Surf Refiner to a size, through the latent; `keep` below 1 masks at random."""
    from surf.nodes.host.masking import SkipMask
    from surf.nodes.host.refining import RefineSettings, refine
    from surf.surf_core.skip import Mask

    start, mask = noise(frames, (size[0] // 2, size[1] // 2)), None
    if keep < 1:
        grid = frames, size[0] // 2, size[1] // 2
        scores = torch.rand(grid, generator=torch.Generator().manual_seed(round(100 * keep)))
        chosen = Mask(tokens=scores < keep, scores=scores, source="random", tau=1.0)
        mask = SkipMask(
            mask=chosen, size=size, start=None, upsample="latent", samples=start["samples"]
        )
    settings = RefineSettings(
        seed=0, sigma_start=0.65, steps=STEPS, cfg=cfg, window=window, low_band_lock=0.0,
        colour_match=False, tile=tile,
    )  # fmt: skip
    out, _ = refine(
        model, *models.prompts(shape), start, settings, upsample="latent", mask=mask,
        resolution="by size", scale=2.0, width=8 * size[1], height=8 * size[0],
    )  # fmt: skip
    return out["samples"]


def settings_of(name: str, shape: cost.ModelShape, toy: bool) -> list[Setting]:
    """What a model runs, in this order."""
    sizes, (clip, other) = SIZES[toy], (9, 7) if toy else (21, 13)
    target, tile = sizes["target"], 256 if toy else 512
    tiles = (48, 80) if toy else target

    def refiner(title: str, frames: int = clip, size: tuple[int, int] = target, **more) -> Setting:
        return Setting(name=title, run=lambda m: refined(m, shape, frames, size, **more))

    found = []
    if name != "surf":
        found = [
            Setting(
                name=f"preview, two sizes{', guided' * (cfg > 1)}",
                run=lambda m, cfg=cfg: preview(m, shape, 3 if toy else clip, sizes, cfg),
            )
            for cfg in ((1.0,) if name == "hunyuan" else (1.0, 5.0))
        ]
    found += [
        refiner("refine in windows"),
        refiner("refine, fewer frames, another size", other, sizes["other"]),
    ]
    if name == "hunyuan":
        return found
    return [
        *found,
        refiner("refine, guided", cfg=4.0),
        refiner("refine half of the tokens", keep=0.5),
        refiner("refine a third of the tokens", keep=0.33),
        refiner("refine in tiles", 5 if toy else clip, tiles, tile=tile),
        refiner("refine in windows, again"),
    ]


def compiled(model: Any, mode: str) -> Any:
    """The model as one of MODES gives it."""
    if mode == "host":
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        return TorchCompileModel.execute(model, "inductor").args[0]
    if mode == "surf":
        from surf.nodes.compile import SurfCompile

        return SurfCompile.execute(model).args[0]
    return model


def counted() -> tuple[int, int]:
    """Graphs and breaks so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def measure(model: Any, settings: list[Setting], mode: str, watch: Watch) -> list[dict]:
    """Run all settings with one compiled model."""
    torch._dynamo.reset()
    given, rows = watch.over(compiled(model, mode)), []
    for setting in settings:
        before, began = counted(), time.perf_counter()
        watch.start()
        out = setting.run(given)
        spent = [each.ended - each.began for each in watch.evaluations]
        # A second call: the second size of a preview is compiled in the first.
        watch.start()
        setting.run(given)
        later, after = [each.ended - each.began for each in watch.evaluations], counted()
        rows.append({
            "out": out.cpu(), "first": spent[0], "later": median(later), "peak": watch.peak(),
            "call": time.perf_counter() - began, "compiled": after[0] - before[0],
            "breaks": after[1] - before[1],
        })  # fmt: skip
        print(f"{mode}: {setting.name}: {rows[-1]['call']:.1f} s", file=sys.stderr)
    return rows


def table(name: str, settings: list[Setting], seen: dict[str, list[dict]]) -> list[str]:
    """The rows of one model."""
    lines = []
    for index, setting in enumerate(settings):
        plain = seen["eager"][index]
        for mode, rows in seen.items():
            row = rows[index]
            gap = (row["out"] - plain["out"]).abs().max() / plain["out"].abs().max()
            said = f"{gap:.1e}" + (", WRONG" if gap > WRONG else "")
            peak = f"{row['peak'] / 2**30:.2f}" if row["peak"] else "not measured: needs CUDA"
            lines.append(
                f"| {name} | {setting.name} | {mode} | {row['first']:.3g} | {row['later']:.3g} "
                f"| {plain['later'] / row['later']:.2f} | {row['compiled']} | {row['breaks']} "
                f"| {said} | {peak} |"
            )
    return lines


def build(name: str, toy: bool, dtype: torch.dtype) -> tuple[Any, cost.ModelShape]:
    """A random model, and the shape whose prompts it takes."""
    if name == "surf":
        config = replace(RefinerConfig.surf_1b(window=4), **(TOY_SURF if toy else {}))
        return models.surf(config, dtype), cost.WAN_14B
    real, small, make = {
        "wan": (cost.WAN_14B, TOY_WAN, models.wan),
        "hunyuan": (cost.HUNYUAN_VIDEO, TOY_HUNYUAN, models.hunyuan),
    }[name]  # fmt: skip
    shape = small if toy else real
    return make(shape, dtype), shape


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["wan", "surf", "hunyuan"],
                        choices=("wan", "surf", "hunyuan"))  # fmt: skip
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--toy", action="store_true", default=not torch.cuda.is_available())
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args()
    args.modes = ["eager", *(mode for mode in args.modes if mode != "eager")]
    return args


def main() -> None:
    args, folder = arguments(), os.environ.get("COMFYUI_PATH")
    if not folder:
        print(NEEDS)
        return
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    cuda = torch.cuda.is_available()
    # As on a GPU; by itself the host takes another attention on a CPU.
    options = [] if cuda else ["--cpu", "--use-pytorch-cross-attention"]
    command = sys.argv
    version = models.enter(Path(folder), options)
    sys.argv = command
    dtype = torch.bfloat16 if cuda else torch.float32
    lines = [f"| {COLUMNS} |", "| --- " * (COLUMNS.count("|") + 1) + "|"]
    with torch.inference_mode():
        for name in args.models:
            model, shape = build(name, args.toy, dtype)
            settings, watch = settings_of(name, shape, args.toy), Watch(cuda)
            seen = {mode: measure(model, settings, mode, watch) for mode in args.modes}
            lines += table(name, settings, seen)
    device = f"{torch.cuda.get_device_name()}, " if cuda else ""
    size = "TOY SIZE: the times say nothing about real models. " if args.toy else ""
    about = f"{size}ComfyUI {version}, random weights, {device}{dtype}. {provenance()}"
    publish_page("Compiled blocks", f"{about}\n\n{LEGEND}", lines, args.out)


if __name__ == "__main__":
    main()
