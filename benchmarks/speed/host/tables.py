"""The tables of the flow in the host, and whether its goals were met."""

from collections.abc import Iterable, Iterator

from surf_core import cost

from .stages import Flow, Machine, Stage

TIMES_FASTER = {"720p": 12.58, "1080p": 51.0}
"""How much faster than the plain run the whole flow is to be."""
PREVIEW_RATE, STEP_OVER_FLOOR, SHARE = 0.85, 1.25, 0.9
NOT = "not measured"
FASTER = "times faster"


def table(columns: str, rows: Iterable[Iterable]) -> list[str]:
    """Markdown; floats in four digits."""

    def cell(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    head = [f"| {columns} |", "| --- " * (columns.count("|") + 1) + "|"]
    return [*head, *(f"| {' | '.join(map(cell, row))} |" for row in rows), ""]


def stage_table(stages: list[Stage]) -> list[str]:
    """What was measured."""
    columns = ("target | guidance | stage | plans | evaluations | measured | first, s | later, s "
               "| rest, s | stage, s | TFLOP/s | peak, GiB")  # fmt: skip

    def row(stage: Stage) -> list:
        start = [stage.target, stage.cfg, stage.name, ", ".join(stage.plans), stage.full]
        if not stage.calls:
            return [*start, f"{NOT}: {stage.why_not}", *["-"] * 6]
        counts = [len(spent) for spent, _ in stage.calls]
        how = "" if stage.whole else ", the rest at the median of the later"
        peak = stage.peak / 2**30 if stage.peak else f"{NOT}: needs CUDA"
        rate = stage.rate / 1e12 if stage.work else "-"
        times = " + ".join(f"{counts.count(n)} x {n}" for n in sorted(set(counts)))
        took = [stage.first, stage.later, stage.rest, stage.total]
        return [*start, f"{times}{how}", *took, rate, peak]

    return table(columns, map(row, stages))


def floor_table(stages: list[Stage], machine: Machine) -> list[str]:
    """How far each evaluation is from what the machine can do, largest gap of a stage first."""
    measured = [stage for stage in stages if stage.work and stage.calls]
    columns = ("target | guidance | stage | later, s | floor of operations, s | floor of bytes, s "
               "| later / floor | gap of the stage, s")  # fmt: skip

    def gap(stage: Stage) -> float:
        return stage.total - stage.full * machine.floor(stage)

    return table(columns, [
        [each.target, each.cfg, each.name, each.later, *machine.floors(each),
         each.later / machine.floor(each), gap(each)]
        for each in sorted(measured, key=gap, reverse=True)
    ])  # fmt: skip


def share_table(stages: list[Stage], kinds: list[str]) -> list[str]:
    """Where the time of one evaluation goes, by kernels."""
    rows = [
        [each.target, each.cfg, each.name, *([each.shares[kind] for kind in kinds]
         if each.shares else [f"{NOT}: {each.no_shares}", *["-"] * (len(kinds) - 1)])]
        for each in stages
    ]  # fmt: skip
    return table(" | ".join(["target", "guidance", "stage", *kinds]), rows)


def flow_table(flows: list[Flow], machine: Machine) -> list[str]:
    """The whole flow against the plain run: the networks alone, and with the VAE."""
    columns = ("target | guidance | refiner | kept | plain, s | first leg, s | second leg, s "
               "| refine, s | networks, s | times faster | times fewer operations | share "
               "| at the floors | upsample, s | decode, s | plain and VAE, s | all, s "
               "| all, times faster | VAE in all")  # fmt: skip

    def row(flow: Flow) -> list:
        start = [flow.plain.target, flow.plan, flow.refine.name]
        if not flow.measured:
            lacks = next(each for each in flow.parts if not each.calls)
            return [*start, "-", f"{NOT}: {lacks.name} ({lacks.cfg}) was not", *["-"] * 14]
        plain, ours = flow.whole
        return [
            *start, kept(flow.refine), flow.plain.total, *(leg.total for leg in flow.legs),
            flow.refine.total, flow.sampling, flow.faster, flow.fewer, flow.faster / flow.fewer,
            flow.faster_at(machine), *(each.total if each else "-" for each in flow.coding),
            plain, ours, plain / ours, 1 - flow.sampling / ours,
        ]  # fmt: skip

    return table(columns, map(row, flows))


def kept(refine: Stage) -> float:
    """Share of the tokens that were refined."""
    work = refine.work
    every = cost.tokens(work.shape, work.frames, work.height, work.width)
    return 1.0 if work.kept is None else sum(work.kept) / every


def goals(flow: Flow, machine: Machine) -> Iterator[tuple]:
    """Yield (goal, stage, sign, wanted, the stages that it needs, its value)."""
    plain, refine = flow.plain, flow.refine
    networks = [plain, *flow.legs, refine]
    for leg in flow.legs:
        yield (
            "operations a second, over the plain run's", leg, ">=", PREVIEW_RATE,
            [leg, plain], lambda leg=leg: leg.rate / plain.rate,
        )  # fmt: skip
    yield (
        "step of the refiner over its floor", refine, "<=", STEP_OVER_FLOOR,
        [refine], lambda: refine.later / machine.floor(refine),
    )  # fmt: skip
    yield (
        "times faster over times fewer operations", refine, ">=", SHARE,
        networks, lambda: flow.faster / flow.fewer,
    )  # fmt: skip
    coding = [each for each in flow.coding if each]
    yield (
        f"{FASTER}, {'with' if coding else 'without'} the VAE", refine, ">=",
        TIMES_FASTER[plain.target], networks + coding, lambda: flow.whole[0] / flow.whole[1],
    )  # fmt: skip


def goal_table(flows: list[Flow], machine: Machine) -> list[str]:
    """Each goal, what was measured, and whether that meets it; then which plans are fast enough."""
    rows, plans = [], {}
    for flow in flows:
        for goal, stage, sign, wanted, needed, value in goals(flow, machine):
            got, met = NOT, "-"
            if all(each.calls for each in needed):
                got = value()
                met = "yes" if (got >= wanted if sign == ">=" else got <= wanted) else "no"
            cell = (flow.plain.target, flow.plan, stage.name)
            rows.append((goal, f"{sign} {wanted}", *cell, got, met))
            if goal.startswith(f"{FASTER}, "):
                verdicts = plans.setdefault(flow.plain.target, {"yes": [], "no": [], "-": []})
                verdicts[met].append(f"guidance {flow.plan} with {flow.refine.name}")
    # Both refiners follow the same preview.
    columns = "goal | wanted | target | guidance | stage | measured | met"
    return [*table(columns, dict.fromkeys(rows)), *verdict(plans), ""]


def verdict(plans: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """Which plans are as fast as wanted, a line for each target."""
    for target, found in plans.items():
        words = {"yes": "met by", "no": "not met by", "-": f"{NOT} for"}
        said = [f"{words[key]} {'; '.join(which)}" for key, which in found.items() if which]
        yield f"- {target}, {TIMES_FASTER[target]:g} times faster: {'. '.join(said)}."
