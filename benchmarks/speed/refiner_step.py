"""How long does the refiner take, whole, segment by segment, fused, and on fewer tokens?

    python -m benchmarks.speed.refiner_step
    python -m benchmarks.speed.refiner_step --size 720p 1080p 4k --window 4 8 --minutes 8
    python -m benchmarks.speed.refiner_step --keep 1 0.75 0.5 0.25

One forward of surf_1b (an evaluation without guidance), with random weights: whole and segment by
segment, plain and on comfy-kitchen, on every attention, and with masks that look like those of
videos. Every way is first compared with the plain, whole one in float32 on a small clip; a wrong
one is not timed. Then all are timed in turns and the median is shown. What fails, or does not fit
the minutes, is a row that says so. On a CPU the model has few layers.

Dims: B batch, T latent frames, H, W latent cells, N tokens.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.page import NOT_MEASURED, Page, parser, table
from benchmarks.timing import FAILURES, OVER, TimedCall, device_scalar, in_turns, reason
from surf_core.cost import SURF_1B, ModelShape, activation_bytes, forward_flops, weight_bytes
from surf_core.refiner import RefinerConfig, SurfRefinerDiT, kitchen
from surf_core.refiner.fused import eager, why_not_kitchen
from surf_core.skip import choose, packing
from surf_core.training.live_bytes import LiveBytes
from surf_core.window import BACKENDS, backend, why_not

SIZES = {"tiny": (48, 80), "small": (96, 160), "240p": (240, 416), "480p": (480, 832),
         "720p": (720, 1280), "1080p": (1088, 1920), "4k": (2160, 3840)}  # fmt: skip
FRAMES, LATENT_FRAMES = 81, 21
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""Relative to the root mean square of the reference; other windows differ by more than this."""
COLUMNS = (
    "size | W_t | way | kept, % | first, s | step, ms | TFLOP/s | operations | time | GiB "
    "| cost, GiB"
)  # fmt: skip
LEGEND = """`first` is the first forward: plans, compilation, memory. `operations` (matrix products
of `surf_core.cost`) and `time` are relative to the first row of the same case: where a mask brings
what it promises, both fall alike, and one that keeps everything shows its overhead. GiB is the peak
of one forward beyond weights and inputs, as the allocator saw it on a GPU, of live tensors on a
CPU; `cost` is the estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerMode:
    """How the model runs."""

    segmentwise: bool
    kitchen: bool
    backend: str
    keep: float | None = None
    """Share of tokens that a mask keeps; None without a mask."""

    @property
    def name(self) -> str:
        order = "segment-wise" if self.segmentwise else "whole"
        return f"{order}, {'kitchen' if self.kitchen else 'eager'}, {self.backend}"

    def apply(self, model: SurfRefinerDiT) -> None:
        model.segmentwise = self.segmentwise
        model.fused = kitchen() if self.kitchen else eager
        model.packed = backend(self.backend)


def modes(like: Tensor) -> Iterator[tuple[RefinerMode, str | None]]:
    """Yield every mode, and why it cannot run here; the first is the reference."""
    q = like.expand(1, 1, SURF_1B.heads, SURF_1B.dim // SURF_1B.heads)
    for name in BACKENDS:
        for fused in (False, True):
            for segmentwise in (False, True):
                mode = RefinerMode(segmentwise=segmentwise, kitchen=fused, backend=name)
                yield mode, why_not(name, q) or (why_not_kitchen() if fused else None)


def blobs(grid: tuple[int, int, int], keep: float) -> Tensor:
    """Draw a mask [T, h, w] of bool: smooth noise, coarse in space and time, above a threshold."""
    coarse = [max(2, size // factor) for size, factor in zip(grid, (6, 8, 8), strict=True)]
    noise = torch.rand(1, 1, *coarse, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=grid, mode="trilinear")[0, 0]
    return choose(smooth, source="drawn", keep=keep, hysteresis=1.0).tokens


def build(layers: int, like: Tensor) -> SurfRefinerDiT:
    """Build surf_1b with random weights, none of them zero."""
    with torch.device(like.device):
        model = SurfRefinerDiT(replace(RefinerConfig.surf_1b(), layers=layers)).to(like.dtype)
    generator = torch.Generator(like.device).manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(std=0.7 * weight.shape[-1] ** -0.5, generator=generator)
    return model.requires_grad_(False)


def inputs(frames: int, side: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw latent, timestep and text, the same on every device; sides in pixels."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 16, frames, side[0] // 8, side[1] // 8, generator=generator)
    text = torch.randn(1, 512, 4096, generator=generator)
    return z.to(like), torch.tensor([500.0], device=like.device), text.to(like)


@torch.inference_mode()
def gate(window: int, like: Tensor) -> dict[RefinerMode, str]:
    """Compare every mode with the plain, whole one in float32; full attention must fail.

    Returns:
        What is wrong with those that do not pass.
    """
    model, exact = build(2, like), build(2, like).float()
    exact.load_state_dict(model.state_dict())
    model.window = exact.window = window
    exact.segmentwise = False
    z, t, text = inputs(window + 3, (64, 96), like)
    expected = exact(z.float(), t, text.float())

    def error() -> float:
        difference = (model(z, t, text).float() - expected).abs().max()
        return (difference / expected.square().mean().sqrt()).item()

    allowed, wrong = LARGEST_ERROR[like.dtype], {}
    for mode in (mode for mode, why in modes(like) if why is None):
        try:
            mode.apply(model)
            if not (value := error()) <= allowed:
                wrong[mode] = f"wrong by {value:.2g}, allowed is {allowed:.2g}"
        except FAILURES as failure:
            wrong[mode] = reason(failure)
    model.window = 0
    RefinerMode(segmentwise=False, kitchen=False, backend="sdpa").apply(model)
    if error() <= allowed:
        sys.exit(f"the check cannot fail: full attention passes it at window {window}.")
    return wrong


def peak_bytes(model: SurfRefinerDiT, run: Callable[[], Tensor], given: tuple) -> int:
    """Measure one forward beyond weights and inputs: the allocator's peak, on a CPU tensors'."""
    if not given[0].is_cuda:
        with LiveBytes(model, *given) as live:
            run()
        return live.peak
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@dataclass(kw_only=True, slots=True, eq=False)
class TimedMode(TimedCall):
    """Forwards in one mode."""

    mode: RefinerMode
    mask: Tensor | None
    peak: int = 0
    """Bytes."""

    def row(
        self, shape: ModelShape, side: tuple[int, int], window: int, first: "TimedMode"
    ) -> list:
        """Return its columns, from its name on; `first` is the first of the same case."""
        percent = "all" if self.mask is None else f"{100 * self.mask.float().mean():.1f}"
        if self.took is None:
            return [self.name, percent, f"{NOT_MEASURED}: {self.why_not}", *"------"]
        clip = (shape, FRAMES, *side, window)
        kept = None if self.mask is None else packing(self.mask).counts
        work, whole = forward_flops(*clip, kept), forward_flops(*clip)
        itemsize = 2 if self.cuda else 4
        estimate = activation_bytes(
            *clip, itemsize=itemsize, segmentwise=self.mode.segmentwise, kept=kept
        )
        return [
            self.name, percent, self.first, 1000 * self.took, f"{work / self.took / 1e12:.3g}",
            f"{work / whole:.3f}", f"{self.took / first.took:.3f}" if first.took else "-",
            f"{self.peak / 2**30:.3f}", f"{estimate / 2**30:.3f}",
        ]  # fmt: skip


@torch.inference_mode()
def measure(
    model: SurfRefinerDiT, given, wrong: dict[RefinerMode, str], keeps: list[float], reps: int,
    deadline: float,
) -> list[TimedMode]:  # fmt: skip
    """Call every mode in turns, as long as there is time; masks where the mode is the usual one."""
    cells = zip(given[0].shape[2:], model.config.patch, strict=True)
    grid = tuple(count // patch for count, patch in cells)

    def begin(mode: RefinerMode, why_not: str) -> TimedMode:
        mask = None if mode.keep is None else blobs(grid, mode.keep).to(given[0].device)

        def forward() -> Tensor:
            mode.apply(model)
            return model(*given, keep=mask)

        timed = TimedMode(
            name=mode.name, mode=mode, mask=mask, call=forward, cuda=given[0].is_cuda,
            why_not=why_not,
        )  # fmt: skip

        def look(_: object) -> None:
            timed.peak = peak_bytes(model, forward, given)

        timed.start(look)
        return timed

    timed = []
    for mode, why in modes(given[0].flatten()[0]):
        usual = mode.segmentwise and not mode.kitchen
        masked = [replace(mode, keep=keep) for keep in keeps] if usual else []
        timed += [begin(each, wrong.get(mode, "")) for each in (mode, *masked) if why is None]
    in_turns(timed, reps, deadline)
    return timed


def main() -> None:
    like, line = device_scalar(), parser(__doc__, minutes=60.0)
    size = "720p" if like.is_cuda else "small"
    line.add_argument("--size", nargs="+", default=[size], choices=SIZES)
    line.add_argument("--window", nargs="+", type=int, default=[4])
    line.add_argument("--keep", nargs="+", type=float, default=[], help="0..1, shares of tokens")
    line.add_argument("--layers", type=int, default=40 if like.is_cuda else 2)
    line.add_argument("--reps", type=int, default=5 if like.is_cuda else 3)
    args = line.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    reasons = {mode.backend: why for mode, why in modes(like) if why and not mode.kitchen}
    if kitchen() is None:
        reasons["kitchen"] = why_not_kitchen()
    weights = weight_bytes(replace(SURF_1B, layers=args.layers), like.itemsize) / 2**30
    how = (
        f"surf_1b, {args.layers} layers ({weights:.2f} GiB of weights, not in the peak), {FRAMES} "
        f"frames, {like.dtype}, batch 1, median of up to {args.reps} interleaved calls"
    )
    wrong = {window: gate(window, like) for window in args.window}
    model, rows = build(args.layers, like), []
    shape = replace(ModelShape.of(model.config), layers=args.layers)
    cases = [(size, window) for size in args.size for window in args.window]
    missing = [f"- {name}: not run: {why}" for name, why in reasons.items()]
    with Page(__spec__.name, "One step of the refiner", args.out, LEGEND) as page:
        for index, (size, window) in enumerate(cases):
            now = time.perf_counter()
            if now > deadline:
                rows.append([size, window, "all", "-", f"{NOT_MEASURED}: {OVER}", *"------"])
            else:
                given, model.window = inputs(LATENT_FRAMES, SIZES[size], like), window
                share = now + (deadline - now) / (len(cases) - index)
                timed = measure(model, given, wrong[window], args.keep, args.reps, share)
                rows += [[size, window, *each.row(shape, SIZES[size], window, timed[0])]
                         for each in timed]  # fmt: skip
            page.write([*table(COLUMNS, rows), "", *missing, "", page.origin(how)])
            print(f"{size}, window {window}", file=sys.stderr, flush=True)
    if any(wrong.values()):
        sys.exit("some way was wrong: see its row.")


if __name__ == "__main__":
    main()
