"""The plans of a run: which stages make up each, and what they cost before anything runs.

A plan is a target, where there is guidance, a refiner, and the share of tokens that it refines.
"""

from dataclasses import dataclass

from benchmarks.page import table
from surf_core import cost

from .stages import DECODE, FIRST, PLAIN, SECOND, UPSAMPLE, MeasuredFlow, TimedStage

GUIDANCE = {
    "on": ("on", "on", "on", "on"),
    "first": ("on", "on", "off", "off"),
    "off": ("off", "off", "off", "off"),
}
"""Name -> guidance of the plain run, of the first leg, of the second, of the refiner."""
Side = tuple[int, int]
"""Pixels, height and width."""
TIMES_FASTER = {"720p": 12.58, "1080p": 51.0}
"""How much faster than the plain run the whole flow is to be."""
CARDS = (8, 12, 16, 24, 32, 48, 80)
RESERVED = 1.5
"""GiB that are left to the driver, to the host, and to what kernels need inside: an assumption."""
LATENTS = 8
"""In float32, of the whole picture: the start and its noise, what is sampled, the estimates with
and without the prompt, their mix, the difference of the sampler, and one to be composed."""
MODES = {"whole": (False, None), "segment-wise": (True, None),
         "segment-wise, tiles of 720p": (True, "720p")}  # fmt: skip
"""Name -> whether a block takes one window after the other, size of a tile."""
DRY_LEGEND = f"""PFLOPs of `surf_core.cost`: matrix products of the networks, without the VAE and
the text encoder. `guidance` is where there is some: `on` everywhere, `first` until the switch,
`off` nowhere; the plain run of all but `off` has it. With guidance an evaluation runs the network
twice. `steps` are those of the first leg, the second and the refiner; the paper's are 10 + 30 + 10
(SURF Tab. 4, 5). `kept` is the share of tokens that a mask leaves to the refiner, here the same in
every latent frame. `needed` is the share of `times fewer operations` that has to come out as time
for {TIMES_FASTER["720p"]:g} times faster than the plain run at 720p, {TIMES_FASTER["1080p"]:g} at
1080p with the VAE on both sides, which makes it harder. Above 1 a plan cannot reach it but by more
operations a second than the plain run. Nothing here is measured.

The paper states 658.46 PFLOPs for the plain run at 720p and 34.3 for its flow (Tab. 1). Ours are
within 1 % of the former. The latter cannot be had with guidance on both legs, which Tab. R6 gives:
ten guided steps at 480p alone take nearly as much."""
CARD_LEGEND = f"""Bytes that one evaluation must hold, by `surf_core.cost`, of the networks of
`surf_core` in bf16, without guidance or with its two runs one after the other. `whole` and
`segment-wise` are how a block goes over the windows; tiles are blended where they overlap.
{LATENTS} latents are kept in float32. The smallest card is the first of
{", ".join(map(str, CARDS))} GiB that is left with {RESERVED:g} GiB beside the sum, for the driver,
the host and the inside of kernels: an assumption. The host's own Wan runs whole. The VAE is not in
it, nor the base model, which the host moves away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSetting:
    """What is compared: models, sizes and steps."""

    sides: dict[str, Side]
    frames: int
    """Pixel frames."""
    base: cost.ModelShape
    refiners: dict[str, tuple[cost.ModelShape, int]]
    """Name -> its shape, its window."""
    steps: int
    """Of the plain run."""
    preview_steps: int
    """Of both legs together."""
    switch_step: int
    refine_steps: int
    upsample: bool
    """Whether the preview is enlarged through the VAE, which is a stage then."""
    decode: bool
    """Whether there is a VAE to decode the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCall:
    """One call, and the stages that it measures."""

    call: str
    """Method of `Kit`."""
    stages: tuple[TimedStage, ...]
    coding: TimedStage | None = None
    """What the VAE does on the way, if that is a stage."""


class PlanLayout:
    """The calls of one turn, in their order, and how their stages make up flows.

    Plans share what they have in common; what an earlier call measures is not called again.
    """

    def __init__(self, setting: FlowSetting):
        self.setting = setting
        self.cases: list[StageCall] = []
        self.flows: list[MeasuredFlow] = []
        self.stages: dict[tuple, TimedStage] = {}

    def lay_out(self, guidance: list[str], sizes: list[str], keeps: list[float]) -> "PlanLayout":
        """Add all plans; those named first are called first.

        Args:
            keeps: shares of tokens that are refined, 1 for all.
        """
        for plan in guidance:
            for size in sizes:
                self._add(plan, size, keeps)
        return self

    def _add(self, plan: str, size: str, keeps: list[float]) -> None:
        setting, (alone, first, second, third) = self.setting, GUIDANCE[plan]
        low, base = setting.preview_steps - setting.switch_step, setting.base
        plain = self._network(plan, size, alone, PLAIN, base, setting.steps, size)
        legs = (self._network(plan, "-", first, FIRST, base, setting.switch_step, "480p"),
                self._network(plan, "-", second, SECOND, base, low, "240p"))  # fmt: skip
        self._call("plain", plain)
        self._call("preview", *legs)
        decode = self._stage(plan, size, "-", DECODE) if setting.decode else None
        for keep in keeps:
            up = None
            if setting.upsample:
                name = UPSAMPLE if keep == 1 else f"{UPSAMPLE}, mask of {keep:g}"
                up = self._stage(plan, size, "-", name)
            for refiner, (shape, window) in setting.refiners.items():
                name = refiner if keep == 1 else f"{refiner}, keep {keep:g}"
                refine = self._network(
                    plan, size, third, name, shape, setting.refine_steps, size,
                    refiner=refiner, keep=keep, window=window,
                )  # fmt: skip
                self._call("refine", refine, coding=up)
                self.flows.append(
                    MeasuredFlow(
                        plan=plan, plain=plain, legs=legs, refine=refine, coding=(up, decode)
                    )
                )
        if decode:
            self._call("decode", decode)

    def _call(self, call: str, *stages: TimedStage, coding: TimedStage | None = None) -> None:
        if all(stage.times for stage in stages):
            return
        for stage in stages:
            stage.times += 1
        self.cases.append(StageCall(call=call, stages=stages, coding=coding))

    def _network(
        self, plan, target, cfg, name, shape, steps, side, *, refiner="", keep=1.0, window=0
    ) -> TimedStage:
        clip = (self.setting.frames, *self.setting.sides[side])
        work = cost.Evaluations(
            shape=shape, steps=steps, frames=clip[0], height=clip[1], width=clip[2], window=window,
            guided=cfg != "off",
            kept=None if keep == 1 else evenly(keep, shape, clip),
        )  # fmt: skip
        return self._stage(plan, target, cfg, name, work=work, refiner=refiner, keep=keep)

    def _stage(self, plan: str, target: str, cfg: str, name: str, work=None, **more) -> TimedStage:
        key = target, cfg, name
        if key not in self.stages:
            self.stages[key] = TimedStage(target=target, cfg=cfg, name=name, work=work, **more)
        stage = self.stages[key]
        if plan not in stage.plans:
            stage.plans.append(plan)
        return stage


def evenly(keep: float, shape: cost.ModelShape, clip: tuple[int, int, int]) -> tuple[int, ...]:
    """Keep as many tokens in every latent frame, before a mask says where they are.

    Args:
        clip: pixel frames, height and width.
    """
    count = cost.latent_frames(shape, clip[0])
    return (round(keep * cost.tokens(shape, *clip) / count),) * count


def operations_table(plans: list[tuple[str, list[MeasuredFlow]]]) -> list[str]:
    """Lay out the operations of (base, flows)."""
    columns = (
        "base | target | guidance | steps | refiner | kept | plain, PF | first leg, PF "
        "| second leg, PF | refine, PF | all, PF | times fewer operations | needed"
    )

    def row(base: str, flow: MeasuredFlow) -> list:
        stages = (*flow.legs, flow.refine)
        parts = [stage.flops / 1e15 for stage in stages]
        steps = " + ".join(str(stage.full) for stage in stages)
        needed = TIMES_FASTER[flow.plain.target] / flow.fewer
        return [
            base, flow.plain.target, flow.plan, steps, flow.refine.refiner,
            f"{flow.refine.keep:g}", flow.plain.flops / 1e15, *parts, sum(parts), flow.fewer,
            f"{needed:.3f}",
        ]  # fmt: skip

    return table(columns, [row(base, flow) for base, flows in plans for flow in flows])


def card_table(setting: FlowSetting) -> list[str]:
    """Lay out which card each refiner would fit, by what can be counted without one."""

    def row(size: str, name: str, mode: str) -> list:
        (shape, window), (segmentwise, tile) = setting.refiners[name], MODES[mode]
        height, width = setting.sides[size]
        cells = cost.latent_frames(shape, setting.frames) * height * width / shape.cell_pixels**2
        weights, latents = cost.weight_bytes(shape, 2), LATENTS * shape.latent_channels * cells * 4
        activations = cost.activation_bytes(
            shape, setting.frames, *setting.sides[tile or size], window, itemsize=2,
            segmentwise=segmentwise,
        )  # fmt: skip
        parts = [each / 2**30 for each in (weights, latents, activations)]
        fits = [card for card in CARDS if card >= sum(parts) + RESERVED]
        return [size, name, mode, *parts, sum(parts), fits[0] if fits else "none of these"]

    columns = (
        "size | refiner | blocks | weights, GiB | latents, GiB | activations, GiB | sum, GiB "
        "| smallest card, GiB"
    )
    return table(columns, [row(size, name, mode) for size in ("720p", "1080p", "4k")
                           for name in setting.refiners for mode in MODES
                           if MODES[mode][1] != size])  # fmt: skip
