"""Which way of switching keeps most at an equal cost, and does any of them beat fewer full steps?

    python -m benchmarks.quality.tiny_signature --pairs 96 --state runs/signature
    python -m benchmarks.quality.tiny_switch --pairs 96 --controls runs/signature
    python -m benchmarks.quality.tiny_switch --second runs/second --steps 50 --cfg 7.5 5

The paper's preview has 10 steps before and 30 after the switch. Here it is drawn in other ways for
as many operations, and for half of them, on the embedded model of either generation: the low band
held to what the switch has settled, the low leg begun lower, the positions stretched, the steps
before the switch spread further down, and other guidance after it. The controls stand beside them:
those of `tiny_signature`, kept from a run of it with the same prompts and seeds, or drawn here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import FRESH, LOW, OTHER, batches, scenes, seeds
from benchmarks.quality.measures import Rows, arguments, mean_and_error
from benchmarks.quality.prompts import score
from benchmarks.quality.saved_rows import SavedRows, Values, fingerprint
from benchmarks.quality.tiny_signature import FEWER, POLICIES, RIGHT, SMALL
from surf_core import checkpoint
from surf_core.cost import plan_flops
from surf_core.flow import Velocity, euler
from surf_core.refiner import SurfRefinerDiT
from surf_core.refiner.rope import split_axes
from surf_core.resample import resize
from surf_core.reshift import hold_low_band, implied_noise, inherit_noise, reshift
from surf_core.schedule import SwitchedSchedule, flow_sigmas, reach_sigma, switch
from surf_core.signature import HEADLINE, scores
from surf_core.tiny.adherence import read
from surf_core.tiny.demo import Settings, leg, to_pixels
from surf_core.tiny.model import CELLS, TinyT2V
from surf_core.training.tiny import controls, paint, stages
from surf_core.training.tiny.scenes import PALETTE

HALF = (LOW, LOW)
K, BELOW = 10, 30
"""Steps of the paper before and after the switch."""
FEW, FEW_BELOW, FEW_FULL = 5, 15, 8
"""The same for half of the operations, and as many steps at full resolution alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to draw a preview; the defaults are the nodes'."""

    k: int = K
    """Steps at full resolution."""
    below: int = BELOW
    """Steps at half of it."""
    sigma: str = "snr_equal"
    noise: str = "inherited"
    """Policies, see `surf_core.reshift`."""
    ratio: float = 2.0
    """Ratio that the low leg begins as low for, 2 being that of the sizes."""
    lock: float = 0.0
    """Share of the low steps that hold the low band."""
    reach: float | None = None
    """Sigma that the steps before the switch go down to; None: the schedule's."""
    stretch: float = 1.0
    """Factor of the positions at the first low step, which falls to 1."""
    more_cfg: float = 0.0
    """Added to the guidance after the switch."""

    def cut(self) -> SwitchedSchedule:
        """Cut the schedule where the resolution drops."""
        sigmas = flow_sigmas(self.k + self.below, Settings().shift)
        if self.reach is not None:
            sigmas = reach_sigma(sigmas, self.k, self.reach)
        return switch(sigmas, self.k, ratio=self.ratio, sigma_policy=self.sigma)


PAPER, OURS = "the paper's rule", "the nodes' defaults"
HELD, ALL_HELD = "B: low band held for a third of the low steps", "B over all of them"
WAYS = {
    PAPER: Way(sigma="same", noise="fresh"),
    OURS: Way(),
    "the paper's rule with B": Way(sigma="same", noise="fresh", lock=1 / 3),
    "A: begun lower, as for a ratio of 4": Way(ratio=4.0),
    HELD: Way(lock=1 / 3),
    ALL_HELD: Way(lock=1.0),
    "C: positions stretched by 2, falling to 1": Way(stretch=2.0),
    "D: steps before the switch spread to sigma .75": Way(reach=0.75),
    "A and B": Way(ratio=4.0, lock=1 / 3),
    "B and C": Way(stretch=2.0, lock=1 / 3),
    "B and D": Way(reach=0.75, lock=1 / 3),
    "guidance after the switch higher by 1": Way(more_cfg=1.0),
    "guidance after the switch lower by 1": Way(more_cfg=-1.0),
    "5 + 15, the nodes' defaults": Way(k=FEW, below=FEW_BELOW),
    "5 + 15, B": Way(k=FEW, below=FEW_BELOW, lock=1 / 3),
    "5 + 15, B and D": Way(k=FEW, below=FEW_BELOW, lock=1 / 3, reach=0.75),
}
"""All with 10 + 30 steps, and the nodes' defaults, but where the name says otherwise."""
BASELINE, GREY, OTHER_SEED, DIRECT = "baseline", "grey", "another seed", "half resolution"
COPY, IN_LATENT = "baseline, averaged down in pixels", "baseline, averaged down in the latent"
ESTIMATE = f"clean estimate after {K}, averaged down"


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Held-out prompts of a batch, their noise, and the model of either generation."""

    model: SurfRefinerDiT
    velocity: Callable[[float], Velocity]
    """Guidance -> velocity."""
    noise: Tensor
    other: Tensor
    """Noise of another seed."""
    fresh: Tensor
    """Noise at half the resolution."""
    pixels: Callable[[Tensor], Tensor]
    """Latents -> video in 0..1."""
    right: Callable[[Tensor], Tensor]
    """Video -> share of what is asked that is right, [B]."""
    palette: Tensor
    known: dict[tuple, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Steps before a switch -> latent of the last evaluation, and clean estimate."""


def first(numbers: list[int], weights: Path) -> Embedded:
    """Take the shipped model: one or two flat shapes at 64 pixels, all of a prompt or nothing."""
    prompts = [scenes(1, 8, number, frames=1).prompts[0] for number in numbers]
    tiny = TinyT2V(prompts, weights)
    return Embedded(
        model=tiny.model, velocity=tiny.velocity, noise=tiny.noise(seeds(numbers)),
        other=tiny.noise(seeds(numbers, OTHER)), fresh=tiny.noise(seeds(numbers, FRESH), LOW),
        pixels=to_pixels, right=lambda video: score(prompts, video)["all"], palette=PALETTE,
    )  # fmt: skip


def second(numbers: list[int], made: controls.Controls) -> Embedded:
    """Take the second generation from the folder of its training, 128 pixels and 13 frames."""
    part = slice(numbers[0], numbers[-1] + 1)
    things = made.things[part]

    def right(video: Tensor) -> Tensor:
        return torch.tensor([sum(row) / len(row) for row in read(video, things)])

    generator = torch.Generator().manual_seed(2)
    return Embedded(
        model=made.model, velocity=lambda cfg: made.velocity(part, cfg), noise=made.noise[part],
        other=torch.randn(made.noise.shape, generator=generator)[part].to(made.noise),
        fresh=made.fresh[part], pixels=made.pixels, right=right,
        palette=torch.tensor(paint.PALETTE),
    )  # fmt: skip


def stretched(velocity: Velocity, model: SurfRefinerDiT, steps: int, factor: float) -> Velocity:
    """Stretch the positions of rows and columns in the calls of one run, evenly less to none."""
    if factor == 1:
        return velocity
    calls = iter(torch.linspace(factor, 1.0, steps).tolist())
    plain = model._table

    def stretching(z: Tensor, sigma: float) -> Tensor:
        scale = next(calls)
        model._table = lambda grid, _: table_of(grid, model.config.head_dim, scale)  # type: ignore[method-assign]
        try:
            return velocity(z, sigma)
        finally:
            model._table = plain  # type: ignore[method-assign]

    return stretching


def table_of(grid: tuple[int, int, int], head_dim: int, scale: float) -> Tensor:
    """Build `surf_core.refiner.rope.rotary_table` with rows and columns `scale` times as far."""
    parts = []
    for axis, (size, width) in enumerate(zip(grid, split_axes(head_dim), strict=True)):
        rates = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(size)[:, None] * (scale if axis else 1.0) * rates
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)
        shape = [size if other == axis else 1 for other in range(3)]
        parts.append(turn.float().view(*shape, width // 2, 2, 2).expand(*grid, width // 2, 2, 2))
    return torch.cat(parts, dim=3).flatten(0, 2)[None, :, None]


def before_switch(toy: Embedded, way: Way, cfg: float) -> tuple[Tensor, Tensor]:
    """Return what the last evaluation before the switch saw, and its clean estimate."""
    key = way.k, way.below, way.reach
    if key not in toy.known:
        seen: list[Tensor] = []
        high = toy.velocity(cfg)
        x0 = euler(high, toy.noise, way.cut().high, lambda _, z, clean: seen.append(z))
        toy.known[key] = seen[-1], x0
    return toy.known[key]


def switched(toy: Embedded, way: Way, cfg: float, cfg_low: float) -> Tensor:
    """Draw a preview: latents at half the resolution."""
    evaluated, x0 = before_switch(toy, way, cfg)
    cut, noise = way.cut(), toy.fresh
    if way.noise == "inherited":
        noise = inherit_noise(implied_noise(evaluated, x0, cut.high[-2].item()), HALF)
    low = stretched(toy.velocity(cfg_low + way.more_cfg), toy.model, way.below, way.stretch)
    held = hold_low_band(low, resize(x0, HALF), round(way.lock * way.below))
    return euler(held, reshift(x0, cut.sigma, HALF, noise), cut.low)


def fewer_steps(steps: int) -> list[int]:
    """List steps at full resolution alone: the paper's 30 and 50 %, and those of equal cost."""
    return sorted({round(0.3 * steps), round(0.5 * steps), 16, FEW_FULL})


def drawn(toy: Embedded, steps: int, cfg: float, cfg_low: float) -> dict[str, Callable[[], Tensor]]:
    """Name all rows but the baseline: name -> what makes its latents."""
    high, shift = toy.velocity(cfg), Settings().shift
    sigmas, half = flow_sigmas(steps, shift), toy.velocity(cfg_low)
    rows: dict[str, Callable[[], Tensor]] = {
        OTHER_SEED: lambda: euler(high, toy.other, sigmas),
        DIRECT: lambda: euler(half, inherit_noise(toy.noise, HALF), sigmas),
    }
    for fewer in fewer_steps(steps):
        rows[f"{fewer} steps"] = partial(euler, high, toy.noise, flow_sigmas(fewer, shift))
    for name, way in WAYS.items():
        rows[name] = partial(switched, toy, way, cfg, cfg_low)
    return rows | {ESTIMATE: lambda: resize(before_switch(toy, Way(), cfg)[1], HALF, "area")}


KEPT = {
    GREY: "grey", COPY: "40 steps, averaged down in pixels", OTHER_SEED: "40 steps, another seed",
    IN_LATENT: "40 steps, averaged down in the latent", DIRECT: "half resolution, 40 steps",
    "12 steps": "12 steps", "16 steps": "16 steps", "20 steps": "20 steps",
    ESTIMATE: "k = 10, no low steps", PAPER: "k = 10, fresh, same",
    OURS: "k = 10, inherited, snr_equal",
}  # fmt: skip
"""Rows here -> the same rows as `tiny_signature` keeps them."""


def values_of(toy: Embedded, kept: Values, steps: int, cfg: tuple[float, float]) -> Values:
    """Make and measure all videos of some pairs; `kept` has those that need not be made."""
    latent = euler(toy.velocity(cfg[0]), toy.noise, flow_sigmas(steps, Settings().shift))
    baseline = toy.pixels(latent)
    small = (baseline.shape[-2] // 2, baseline.shape[-1] // 2)
    mean = baseline.mean(dim=(2, 3, 4), keepdim=True)
    videos: dict[str, Callable[[], Tensor]] = {
        BASELINE: lambda: baseline,
        GREY: lambda: mean.expand_as(baseline),
        COPY: lambda: resize(baseline, small, "area"),
        IN_LATENT: lambda: toy.pixels(resize(latent, HALF, "area")),
    }
    for name, make in drawn(toy, steps, *cfg).items():
        videos[name] = lambda make=make: toy.pixels(make())
    found: Values = {}
    for name, video in videos.items():
        if kept and name in KEPT:
            found[name] = {each: kept[KEPT[name]][each] for each in (*HEADLINE, RIGHT)}
            continue
        shown = video()
        values = scores(resize(shown, small, "area"), baseline, toy.palette)
        found[name] = {each: values[each] for each in HEADLINE} | {RIGHT: toy.right(shown)}
    return found


def is_full(name: str) -> bool:
    """Tell whether a row is steps at full resolution alone, e.g. "16 steps"."""
    return re.fullmatch(r"\d+ steps", name) is not None


def legs_of(name: str, steps: int) -> list[tuple[int, int]]:
    """List steps and latent cells along a side of what made a row."""
    if name in WAYS:
        return [(WAYS[name].k, CELLS), (WAYS[name].below, LOW)]
    if is_full(name):
        return [(int(name.split()[0]), CELLS)]
    return {GREY: [], DIRECT: [(steps, LOW)], ESTIMATE: [(K, CELLS)]}.get(name, [(steps, CELLS)])


def tables(rows: Rows, steps: int, price: Callable[..., float]) -> list[str]:
    """Lay out agreement, and paired differences to the paper's rule and to fewer full steps."""
    costs = {name: price(*legs_of(name, steps)) for name in rows.parts}
    measures = {**dict.fromkeys(HEADLINE, (3, 1.0)), RIGHT: (1, 100.0)}

    def cells(values: Callable[[str], Tensor]) -> list[str]:
        return [mean_and_error(values(each), *how) for each, how in measures.items()]

    head = " | ".join([*HEADLINE, "right, %"])
    agreement = table(f"video | GFLOPs | {head}", (
        [name, f"{costs[name]:.1f}", *cells(rows[name].__getitem__)] for name in rows.parts
    ))  # fmt: skip
    pairs = [
        (name, other)
        for name, way in WAYS.items()
        for other in (PAPER, OURS, f"{FEW_FULL if way.k == FEW else 16} steps")
        if name != other
    ]
    differences = table(f"preview | less | GFLOPs | {head}", (
        [one, other, f"{costs[one] - costs[other]:+.1f}",
         *cells(lambda each, one=one, other=other: rows.change(one, other, each))]
        for one, other in pairs
    ))  # fmt: skip
    return [
        "## Agreement with the baseline", "", *agreement, "",
        "## Previews less what they have to beat", "", *differences, "",
    ]  # fmt: skip


LEGEND = f"""All is averaged to the preview's size and compared with the baseline of its own prompt
and seed by `surf_core.signature`: 1 is the same video, and neither grey nor blur nor another place
wins. `right` needs no baseline: for the shipped model, whether colour, shape and direction of every
object are as asked, for the second generation the share of the things that are. Previews have
{K} + {BELOW} steps, the paper's, but where their name says others. The shipped model is a toy for
which few steps suffice: its table says which switch is better, and not what a switch gains."""


def main() -> None:
    line = arguments(__doc__, pairs=96, batch=8)
    line.add_argument("--state", type=Path, help="folder of what is done, to go on from")
    line.add_argument("--controls", type=Path, help="folder that tiny_signature kept of --pairs")
    line.add_argument("--second", type=Path, help="folder of the second generation's training")
    line.add_argument("--steps", type=int, default=Settings().steps, help="of the baseline")
    line.add_argument("--cfg", type=float, nargs=2, default=(Settings().cfg, Settings().cfg_low),
                      help="guidance before and after the switch")  # fmt: skip
    args, rows = line.parse_args(), Rows()
    cfg = (args.cfg[0], args.cfg[1])
    price, files = price_of_first, [args.weights]
    if args.second:
        made = controls_of(args.second, args.pairs, cfg[0])
        price = price_of_second
        files = [args.second / "t2v" / f"{stages.T2V}.safetensors",
                 args.second / "vae" / f"{stages.VAE}.safetensors"]  # fmt: skip
    saved = SavedRows(args.state, fingerprint(*files, WAYS, args.steps, cfg, HEADLINE))
    kept = SavedRows(args.controls, kept_by(args.weights)) if args.controls else None
    title = "Which way of switching keeps most at an equal cost?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        done = 0
        for part in batches(list(range(args.pairs)), args.batch):

            def make(part: list[int] = part) -> Values:
                toy = second(part, made) if args.second else first(part, args.weights)
                return values_of(toy, kept.batch(part, dict) if kept else {}, args.steps, cfg)

            found = saved.batch(part, make)
            for name in order(found):
                rows.add(name, found[name])
            done += len(part)
            how = (
                f"{done} held-out prompt and seed pairs, baseline of {args.steps} steps, shift "
                f"{Settings().shift}, cfg {cfg[0]} / {cfg[1]}, Euler; mean +- standard error, "
                "differences paired by prompt and seed"
            )
            page.write([*tables(rows, args.steps, price), page.origin(how)])


def price_of_first(*legs: tuple[int, int]) -> float:
    return plan_flops([leg(*each) for each in legs]) / 1e9


def price_of_second(*legs: tuple[int, int]) -> float:
    return controls.flops_of(*legs) / 1e9


def controls_of(folder: Path, pairs: int, cfg: float) -> controls.Controls:
    """Load the second generation as its own controls do."""
    settings = stages.StageSettings(out=folder)
    model = checkpoint.load(folder / "t2v" / f"{stages.T2V}.safetensors")
    return controls.Controls(model, stages.load_vae(settings), pairs, cfg, Settings().shift)


def kept_by(weights: Path) -> str:
    """Return the fingerprint of what `tiny_signature` keeps of these weights."""
    return fingerprint(weights, Settings(), (FEWER, POLICIES, SMALL, HEADLINE))


def order(found: Values) -> list[str]:
    """Name all rows: the baseline and its controls first, then previews."""
    first_rows = [BASELINE, COPY, IN_LATENT, GREY, OTHER_SEED, DIRECT]
    full = sorted((name for name in found if is_full(name)), key=lambda name: int(name.split()[0]))
    return [*first_rows, *full, ESTIMATE, *WAYS]


if __name__ == "__main__":
    main()
