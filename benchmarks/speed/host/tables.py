"""The tables of the flow in the host."""

from benchmarks.page import NOT_MEASURED, table
from surf_core import cost

from .stages import Machine, MeasuredFlow, TimedStage


def stage_table(stages: list[TimedStage]) -> list[str]:
    """Lay out what was measured."""
    columns = ("target | guidance | stage | plans | evaluations | measured | first, s | later, s "
               "| rest, s | stage, s | TFLOP/s | peak, GiB")  # fmt: skip

    def row(stage: TimedStage) -> list:
        start = [stage.target, stage.cfg, stage.name, ", ".join(stage.plans), stage.full]
        if not stage.calls:
            return [*start, f"{NOT_MEASURED}: {stage.why_not}", *["-"] * 6]
        counts = [len(spent) for spent, _ in stage.calls]
        how = "" if stage.whole else ", the rest at the median of the later"
        peak = stage.peak / 2**30 if stage.peak else f"{NOT_MEASURED}: needs CUDA"
        rate = stage.rate / 1e12 if stage.work else "-"
        times = " + ".join(f"{counts.count(n)} x {n}" for n in sorted(set(counts)))
        took = [stage.first, stage.later, stage.rest, stage.total]
        return [*start, f"{times}{how}", *took, rate, peak]

    return table(columns, map(row, stages))


def floor_table(stages: list[TimedStage], machine: Machine) -> list[str]:
    """Lay out how far each evaluation is from its floor, largest gap of a stage first."""
    measured = [stage for stage in stages if stage.work and stage.calls]
    columns = ("target | guidance | stage | later, s | floor, s "
               "| later / floor | gap of the stage, s")  # fmt: skip

    def gap(stage: TimedStage) -> float:
        return stage.total - stage.full * machine.floor(stage)

    return table(columns, [
        [each.target, each.cfg, each.name, each.later, machine.floor(each),
         each.later / machine.floor(each), gap(each)]
        for each in sorted(measured, key=gap, reverse=True)
    ])  # fmt: skip


def flow_table(flows: list[MeasuredFlow], machine: Machine) -> list[str]:
    """Lay out the whole flow against the plain run: the networks alone, and with the VAE."""
    columns = ("target | guidance | refiner | kept | plain, s | first leg, s | second leg, s "
               "| refine, s | networks, s | times faster | times fewer operations | share "
               "| at the floors | upsample, s | decode, s | plain and VAE, s | all, s "
               "| all, times faster | VAE in all")  # fmt: skip

    def row(flow: MeasuredFlow) -> list:
        start = [flow.plain.target, flow.plan, flow.refine.name]
        if not flow.measured:
            lacks = next(each for each in flow.parts if not each.calls)
            return [*start, "-", f"{NOT_MEASURED}: {lacks.name} ({lacks.cfg}) was not", *["-"] * 14]
        plain, ours = flow.whole
        return [
            *start, refined_share(flow.refine), flow.plain.total, *(leg.total for leg in flow.legs),
            flow.refine.total, flow.sampling, flow.faster, flow.fewer, flow.faster / flow.fewer,
            flow.faster_at(machine), *(each.total if each else "-" for each in flow.coding),
            plain, ours, plain / ours, 1 - flow.sampling / ours,
        ]  # fmt: skip

    return table(columns, map(row, flows))


def refined_share(refine: TimedStage) -> float:
    """Return the share of the tokens that were refined."""
    work = refine.work
    every = cost.tokens(work.shape, work.frames, work.height, work.width)
    return 1.0 if work.kept is None else sum(work.kept) / every
