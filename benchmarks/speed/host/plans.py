"""The plans of a run: which stages make up each, and what they cost before anything runs.

A plan is a target, where there is guidance, a refiner, and the share of tokens that it refines.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from surf_core import cost

from .stages import DECODE, FIRST, PLAIN, SECOND, UPSAMPLE, Flow, Stage
from .tables import TIMES_FASTER, table

GUIDANCE = {
    "on": ("on", "on", "on", "on"),
    "first": ("on", "on", "off", "off"),
    "off": ("off", "off", "off", "off"),
}
"""Name -> guidance of the plain run, of the first leg, of the second, of the refiner."""
Side = tuple[int, int]
"""Pixels, height and width."""
DRY_LEGEND = f"""PFLOPs of `surf_core.cost`: matrix products of the networks, without the VAE and
the text encoder. `guidance` is where there is some: `on` everywhere, `first` until the switch,
`off` nowhere; the plain run of all but `off` has it. With guidance an evaluation runs the network
twice.
`kept` is the share of tokens that a mask leaves to the refiner, here the same in every latent
frame. `needed` is the share of `times fewer operations` that has to come out as time for the goal:
{TIMES_FASTER["720p"]:g} times faster than the plain run at 720p, {TIMES_FASTER["1080p"]:g} at
1080p. The goal counts the VAE on both sides, which makes it harder. Above 1 a plan cannot reach it
but by more operations a second than the plain run. Nothing here is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is compared: models, sizes and steps."""

    sides: dict[str, Side]
    frames: int
    """Pixel frames."""
    base: cost.ModelShape
    refiners: dict[str, tuple[cost.ModelShape, int]]
    """Name -> its shape, its window."""
    steps: int
    """Of the plain run, and of both legs together."""
    switch_step: int
    refine_steps: int
    upsample: bool
    """Whether the preview is enlarged through the VAE, which is a stage then."""
    decode: bool
    """Whether there is a VAE to decode the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One call, and the stages that it measures."""

    call: str
    """Method of `Kit`."""
    stages: tuple[Stage, ...]
    coding: Stage | None = None
    """What the VAE does on the way, if that is a stage."""


class Layout:
    """The calls of one turn, in their order, and how their stages make up flows.

    Plans share what they have in common; what an earlier call measures is not called again.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self.cases: list[Case] = []
        self.flows: list[Flow] = []
        self.stages: dict[tuple, Stage] = {}

    def lay_out(self, guidance: list[str], sizes: list[str], keeps: list[float]) -> "Layout":
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
        low, base = setting.steps - setting.switch_step, setting.base
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
                    Flow(plan=plan, plain=plain, legs=legs, refine=refine, coding=(up, decode))
                )
        if decode:
            self._call("decode", decode)

    def _call(self, call: str, *stages: Stage, coding: Stage | None = None) -> None:
        if all(stage.times for stage in stages):
            return
        for stage in stages:
            stage.times += 1
        self.cases.append(Case(call=call, stages=stages, coding=coding))

    def _network(
        self, plan, target, cfg, name, shape, steps, side, *, refiner="", keep=1.0, window=0
    ) -> Stage:
        clip = (self.setting.frames, *self.setting.sides[side])
        work = cost.Evaluations(
            shape=shape, steps=steps, frames=clip[0], height=clip[1], width=clip[2], window=window,
            guided=cfg != "off",
            kept=None if keep == 1 else evenly(keep, shape, clip),
        )  # fmt: skip
        return self._stage(plan, target, cfg, name, work=work, refiner=refiner, keep=keep)

    def _stage(self, plan: str, target: str, cfg: str, name: str, work=None, **more) -> Stage:
        key = target, cfg, name
        if key not in self.stages:
            self.stages[key] = Stage(target=target, cfg=cfg, name=name, work=work, **more)
        stage = self.stages[key]
        if plan not in stage.plans:
            stage.plans.append(plan)
        return stage


def evenly(keep: float, shape: cost.ModelShape, clip: tuple[int, int, int]) -> tuple[int, ...]:
    """As many kept tokens in every latent frame, before a mask says where they are.

    Args:
        clip: pixel frames, height and width.
    """
    count = cost.latent_frames(shape, clip[0])
    return (round(keep * cost.tokens(shape, *clip) / count),) * count


def priced(plans: list[tuple[str, int, list[Flow]]]) -> list[str]:
    """The table of a dry run, of (base, steps before the switch, flows)."""
    columns = (
        "base | target | guidance | switch at | refiner | kept | plain, PF | first leg, PF "
        "| second leg, PF | refine, PF | all, PF | times fewer operations | needed"
    )
    return table(columns, [row for plan in plans for row in _rows(*plan)])


def _rows(base: str, step: int, flows: list[Flow]) -> Iterator[list]:
    for flow in flows:
        parts = [stage.flops / 1e15 for stage in (*flow.legs, flow.refine)]
        yield [
            base, flow.plain.target, flow.plan, step, flow.refine.refiner,
            f"{flow.refine.keep:g}",
            flow.plain.flops / 1e15, *parts, sum(parts), flow.fewer,
            f"{TIMES_FASTER[flow.plain.target] / flow.fewer:.3f}",
        ]  # fmt: skip
