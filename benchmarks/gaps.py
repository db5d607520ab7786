"""How large is each gap between the flow and its floor expected to be, before it is measured?

    python -m benchmarks.gaps

Predictions: operations and bytes are counted, rates are those that others measured, named with
their source. No number on the page was measured by this project. What measures each gap stands
beside it. 81 frames, 50 steps of which 10 at 480p, 10 of the refiner in windows of 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.host.minutes import CODING
from benchmarks.host.plans import Layout, Setting
from benchmarks.host.stages import Flow, Machine, Stage
from benchmarks.host.tables import TIMES_FASTER, table
from benchmarks.host_flow import SIDES
from benchmarks.provenance import publish_counted
from surf_core import cost
from surf_core.window import segments, strided_ranges, token_bounds

SIZES = ("720p", "1080p")
FRAMES, LATENT_FRAMES, WINDOW = 81, 21, 4
H200 = Machine(matmul=790e12, attention={128: 595e12, 72: 400e12}, copy=4.3e12, itemsize=2)
SLOWER = {128: 370e12, 72: 255e12}
"""Dense attention by FlashAttention 2."""
VAE_RATE, LINK, PLAN, LAUNCH = 170e12, 25e9, 0.05, 5e-6
SOURCES = (
    ("matrix products", "790 TFLOP/s", "one product of 8192^3 in bf16 on an H200; the data sheet "
     "says 989"),
    ("attention, heads of 128", "595 TFLOP/s", "cuDNN on an H100, 16k tokens: figure of the "
     "FlashAttention-3 paper"),
    ("attention, heads of 72", "400 TFLOP/s", "405 (FA3) and 398 (cuDNN) with heads of 80 on an "
     "H100: sgl-project/sglang #30089"),
    ("the same by FlashAttention 2", "370 and 255 TFLOP/s", "heads of 128: the same figure; of 72: "
     "340, between its figures for 64 and 128, times 72/96, the width that it pads to"),
    ("copies, read and written", "4.3 TB/s", "one copy on an H200"),
    ("Wan's VAE", "170 TFLOP/s", "2.8 s for 61 frames of 1280 x 704 on an H200: "
     "sgl-project/sglang #34125"),
    ("GPU to main memory", "25 GB/s", "assumed: less than half of PCIe 5 x16"),
    ("a plan of cuDNN's attention", "50 ms", "the first call of a shape: pytorch/pytorch #191576"),
    ("a launch", "5 us", "assumed, for a small kernel of torch"),
)  # fmt: skip
"""What the predictions assume: what it is, how much, and who measured it."""
PASSES = (67, 27)
"""Times that norm, modulation, rotation, activation and gates of a block read or write all tokens:
one operation of torch after the other, and fused by comfy-kitchen. Read off the block's code."""
LAUNCHES = 700
"""Kernels of a forward."""
BICUBIC = "what it does on the processor is not predicted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Something that keeps the flow from its floor, or its floor from falling."""

    name: str
    seconds: tuple[float, float]
    """Predicted, at 720p and at 1080p."""
    how: str
    """The arithmetic."""
    today: str
    """What the code does about it."""
    command: str
    """What measures it."""


def flows() -> dict[tuple, Flow]:
    """(size, guidance, refiner, share of tokens) -> its stages."""
    setting = Setting(
        sides=SIDES, frames=FRAMES, base=cost.WAN_14B, steps=50, switch_step=10, refine_steps=10,
        refiners={"surf_1b": (cost.SURF_1B, WINDOW), "wan_1_3b": (cost.WAN_1_3B, WINDOW)},
        upsample=True, decode=True,
    )  # fmt: skip
    made = Layout(setting).lay_out(["on", "first"], list(SIZES), [1.0, 0.5])
    return {
        (flow.plain.target, flow.plan, flow.refine.refiner, flow.refine.keep): flow
        for flow in made.flows
    }


def seconds(*stages: Stage) -> float:
    """All evaluations of some stages at their floors."""
    return sum(stage.full * H200.floor(stage) for stage in stages)


def coding(how: str, size: str) -> float:
    """Operations of the VAE for all frames at a size."""
    height, width = SIDES[size]
    return CODING[how] * height * width * FRAMES


def upsampling(size: str) -> float:
    return (coding("decode", "240p") + coding("encode", size)) / VAE_RATE


def whole() -> list[str]:
    """The table of plans at these rates."""
    columns = ("target | guidance | refiner | kept | plain, s | first leg, s | second leg, s "
               "| refine, s | times faster | times fewer operations | upsample, s | decode, s "
               "| all, times faster")  # fmt: skip

    def row(size, plan, refiner, keep, flow: Flow) -> list:
        plain, ours = seconds(flow.plain), seconds(*flow.legs, flow.refine)
        up, decode = upsampling(size), coding("decode", size) / VAE_RATE
        return [
            size, plan, refiner, f"{keep:g}", plain, *(seconds(leg) for leg in flow.legs),
            seconds(flow.refine), plain / ours, flow.fewer, up, decode,
            (plain + decode) / (ours + up + decode),
        ]  # fmt: skip

    rows = [row(*key, flow) for key, flow in flows().items()]
    return [*table(columns, rows), *reached(rows)]


def reached(rows: list[list]) -> Iterator[str]:
    """Say which plans would be as fast as wanted."""
    for size in SIZES:
        wanted = TIMES_FASTER[size]
        found = [f"{plan} with {refiner} at {keep} of the tokens"
                 for target, plan, refiner, keep, *_, faster in rows
                 if target == size and faster >= wanted]  # fmt: skip
        yield f"- {size}, {wanted:g} times faster: {'; '.join(found) or 'none of these'}."
    yield ""


def shapes(size: str) -> int:
    """Attention shapes of a flow: both legs and the refiner, each with its text."""
    per_frame = cost.tokens(cost.SURF_1B, FRAMES, *SIDES[size]) // LATENT_FRAMES
    ours = {
        (run.length, run.count)
        for shifted in (False, True)
        for run in strided_ranges(token_bounds(per_frame, segments(LATENT_FRAMES, WINDOW, shifted)))
    }
    return 2 * 2 + len(ours) + 1


def gaps() -> list[Gap]:
    """All of them, largest first."""
    found = flows()

    def both(value) -> tuple[float, float]:
        return tuple(value(size) for size in SIZES)

    def legs_and_refiner(size: str, plan="first", keep=1.0) -> tuple[Stage, ...]:
        flow = found[size, plan, "surf_1b", keep]
        return *flow.legs, flow.refine

    def slower(size: str) -> float:
        spent = 0.0
        for stage in legs_and_refiner(size):
            width = stage.work.shape.dim // stage.work.shape.heads
            work = stage.full * stage.operations()[1]
            spent += work / SLOWER[width] - work / H200.attention[width]
        return spent

    def passes(size: str) -> float:
        tokens = cost.tokens(cost.SURF_1B, FRAMES, *SIDES[size])
        each = tokens * cost.SURF_1B.dim * H200.itemsize / H200.copy
        return (PASSES[0] - PASSES[1]) * each * cost.SURF_1B.layers * 10

    def moved(size: str) -> float:
        (height, width), (rows, columns) = SIDES[size], SIDES["240p"]
        return FRAMES * 3 * 4 * (rows * columns + 2 * height * width) / LINK

    def part(size: str, plan: str, index: int) -> float:
        return seconds(legs_and_refiner(size, plan)[index])

    return sorted([
        Gap(
            name="guidance after the switch",
            seconds=both(lambda size: part(size, "on", 1) - part(size, "first", 1)),
            how="40 evaluations of the second leg run the network once instead of twice",
            today="cfg_low of Reshift KSampler, 1 (nodes/host/preview/guider.py): an input, not "
            "its default",
            command="host_flow --cfg on first",
        ),
        Gap(
            name="guidance in the refiner",
            seconds=both(lambda size: part(size, "on", 2) - part(size, "first", 2)),
            how="10 evaluations of surf_1b run the network once instead of twice",
            today="cfg of Surf Refiner, 1 (nodes/refine.py): an input, not its default",
            command="host_flow --cfg on first",
        ),
        Gap(
            name="attention backend",
            seconds=both(slower),
            how="self-attention of the plan `first` by FlashAttention 2 instead of cuDNN; the "
            "plain run loses as much of its own, so the ratio moves little",
            today="the host's attention, which is torch's choice unless the user made one: cuDNN "
            "first from torch 2.11 on Hopper and on Blackwell's servers, FlashAttention 2 before "
            "(surf_core/window/attention.py); in windows of equal length in one call",
            command="window_attention --size 720p 1080p; host_flow, the share of attention",
        ),
        Gap(
            name="VAE decode over its floor",
            seconds=both(lambda size: coding("decode", size) * (1 / VAE_RATE - 1 / H200.matmul)),
            how="8.6e6 operations for a pixel of a frame at 170 instead of 790 TFLOP/s; on either "
            "side of the comparison. Of it, channels last saves 6 to 7 % of the decode "
            "(sgl-project/sglang #18540)",
            today="in one piece where it fits, else in the cheapest pieces: Surf VAE Decode "
            "(nodes/decode.py, nodes/host/vae/decode.py)",
            command="host_flow, VAE decode; vae_decode",
        ),
        Gap(
            name="the way through pixels",
            seconds=both(upsampling),
            how="decode at 240p and encode at the target at 170 TFLOP/s; with upsample latent 0",
            today="once for mask and refiner: the mask hands its start over "
            "(nodes/host/refine/run.py)",
            command="host_flow --upsample pixel, then latent",
        ),
        Gap(
            name="tokens that need no refining",
            seconds=both(lambda size: part(size, "first", 2)
                         - seconds(legs_and_refiner(size, keep=0.5)[2])),
            how="10 evaluations of surf_1b on half of the tokens, as many in every frame",
            today="Surf Skip Mask (nodes/skip.py, surf_core/skip): off unless connected; kept "
            "counts are not rounded up to tiles",
            command="host_flow --cfg first --keep 1 0.5; skip_time --size 720p 1080p",
        ),
        Gap(
            name="norm, rotation and modulation one by one",
            seconds=both(passes),
            how=f"{PASSES[0]} instead of {PASSES[1]} passes over all tokens a block, 40 blocks, 10 "
            "forwards at 4.3 TB/s",
            today="comfy-kitchen's kernels where it is installed (surf_core/refiner/fused.py); "
            "the base has the host's own",
            command="refiner_step --size 720p 1080p",
        ),
        Gap(
            name="frames through main memory",
            seconds=both(moved),
            how="float32 frames of the preview down, of the target up, of the result down, at "
            f"25 GB/s; {BICUBIC}",
            today="the host's VAE gives frames in main memory; enlarged there, some at a time "
            "(nodes/host/vae/upsample.py); latents are 1 % of that",
            command="host_flow, upsample and decode; vae_decode",
        ),
        Gap(
            name="the first step",
            seconds=both(lambda size: PLAN * shapes(size)),
            how=f"{' and '.join(str(shapes(size)) for size in SIZES)} attention shapes of 50 ms; a "
            "mask makes every window a shape",
            today="windows of equal length share one (surf_core/window/geometry.py: runs); no "
            "autotuning of ours",
            command="host_flow, `first` less `later`; window_attention, `first`",
        ),
        Gap(
            name="launches, without compile",
            seconds=both(lambda size: (10 * 2 + 40 + 10) * LAUNCHES * LAUNCH),
            how=f"{LAUNCHES} launches of 5 us in each of 70 forwards, if none ran behind another "
            "kernel; what compile saves beside is the row of norm, rotation and modulation, not "
            "once more",
            today="Surf Compile, opt-in (nodes/compile.py)",
            command="compile",
        ),
    ], key=lambda gap: sum(gap.seconds), reverse=True)  # fmt: skip


def page() -> Iterator[str]:
    """Yield the lines of the page but its last."""
    yield from [
        "# Gaps: predicted, not measured", "", "    python -m benchmarks.gaps", "",
        "What each gap between the flow and its floor may cost on an H200, counted before one was",
        "measured: operations of `surf_core.cost` and bytes, over the rates below. Wan 2.1 14B,",
        "81 frames, 50 steps, 10 of them at 480p, others at 240p, then 10 of surf_1b in windows",
        "of 4; guidance `first` (until the switch) where nothing else is said. The commands are",
        "`python -m benchmarks.<command>`; `benchmarks.on_gpu` has them with their minutes.", "",
        "## Assumed", "",
    ]  # fmt: skip
    yield from table("rate | assumed | source", SOURCES)
    yield from ["## Gaps, largest first", ""]
    columns = "gap | 720p, s | 1080p, s | how it is counted | today | measured by | measured"
    yield from table(columns, [
        [gap.name, *(float(f"{each:.3g}") for each in gap.seconds), gap.how, gap.today, gap.command,
         "not measured"] for gap in gaps()
    ])  # fmt: skip
    yield from ["## The whole flow at these rates", "",
                "What every plan would be if each evaluation took its floor, and the VAE its rate.",
                ""]  # fmt: skip
    yield from whole()


if __name__ == "__main__":
    publish_counted(__doc__, page)
