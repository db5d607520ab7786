"""How much of the full-resolution video does a preview keep, what does it cost, and what else does?

    python -m benchmarks.quality.tiny_signature --pairs 96 --state runs/signature

For every held-out prompt and seed: the same-seed baseline, the SURF preview with the switch at k of
40 steps, with the policies of the paper and ours, and the controls that a preview has to beat:
grey, another seed, half the resolution directly, fewer steps at full resolution for as many
operations, and the clean estimate at the switch averaged down, with no low-resolution steps at all.
All are averaged to the preview's size and compared with the baseline there; differences are paired.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import LOW, PALETTE, Switched, batches, prompts, schedule, things
from benchmarks.quality.measures import RIGHT, Rows, answers, arguments, mean_and_error
from benchmarks.quality.saved_rows import SavedRows, Values, fingerprint
from surf_core.cost import plan_flops
from surf_core.flow import euler
from surf_core.resample import resize
from surf_core.reshift import inherit_noise
from surf_core.schedule import switch
from surf_core.signature import HEADLINE, scores
from surf_core.tiny.caption import Thing
from surf_core.tiny.demo import SMALL as SIDE
from surf_core.tiny.demo import Settings, leg
from surf_core.tiny.model import CELLS, CLIP, PIXELS, VAE, TinyT2V, to_pixels

SMALL = (SIDE, SIDE)
"""Rows and columns in pixels at which all is compared."""
BASELINE, OTHER_SEED, DIRECT = "40 steps", "40 steps, another seed", "half resolution, 40 steps"
GREY, COPY = "grey", "40 steps, averaged down in pixels"
IN_LATENT = "40 steps, averaged down in the latent"
FEWER = (3, 10, 12, 16, 20, 24)
"""Steps at full resolution alone: a few; 12 and 20, the paper's 30 and 50 %; and as many operations
as the previews of k = 2, 5, 10 and 20 take, 10, 12, 16 and 24."""
SWITCHES = {2: 10, 5: 12, 10: 16, 20: 24}
"""k -> the steps at full resolution alone that cost about as much as the preview."""
PAPER, OURS = "fresh, same", "inherited, snr_equal"
ALL = (PAPER, "fresh, snr_equal", "inherited, same", OURS)
POLICIES = {2: (PAPER, OURS), 5: ALL, 10: ALL, 20: (PAPER, OURS)}
PRINTED = "k = 10, eq. 2 as printed"
BESIDE = ("structure", "sharpness", "magnitude", "place, %")


def estimate(k: int) -> str:
    return f"k = {k}, no low steps"


def full(steps: int) -> str:
    return f"{steps} steps"


class Compared(Switched):
    """The rows of the table."""

    def printed(self, k: int) -> Tensor:
        """Preview with eq. 2 as printed, x0 + sigma * noise."""
        cut = switch(self.sigmas, k, ratio=2.0)
        start = resize(self.clean[k - 1], (LOW, LOW)) + cut.sigma * self.fresh
        return euler(self.low, start, cut.low)

    def videos(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, video in 0..1 of any size), the baseline first."""
        video = to_pixels(self.baseline)
        yield BASELINE, video
        yield COPY, resize(video, SMALL, "area")
        yield IN_LATENT, to_pixels(resize(self.baseline, (LOW, LOW), "area"))
        yield GREY, video.mean(dim=(2, 3, 4), keepdim=True).expand_as(video)
        for name, latent in self.latents():
            yield name, to_pixels(latent)

    def latents(self) -> Iterator[tuple[str, Tensor]]:
        yield OTHER_SEED, euler(self.high, self.other, self.sigmas)
        yield DIRECT, euler(self.low, inherit_noise(self.noise, (LOW, LOW)), self.sigmas)
        for steps in FEWER:
            yield full(steps), euler(self.high, self.noise, schedule(steps))
        for k, policies in POLICIES.items():
            yield estimate(k), resize(self.clean[k - 1], (LOW, LOW), "area")
            for policy in policies:
                yield f"k = {k}, {policy}", self.preview(k, *policy.split(", "))
        yield PRINTED, self.printed(10)


def measured(video: Tensor, baseline: Tensor, asked: list[list[Thing]]) -> dict[str, Tensor]:
    """Compare at the preview's size, and read what the prompts ask for."""
    found = scores(resize(video, SMALL, "area"), baseline, PALETTE)
    found["place, %"] = found.pop("place")
    return found | {RIGHT: answers(video, asked)[RIGHT]}


def gflops(name: str) -> float:
    """Count the operations of one video, guidance included."""
    steps, words = Settings().steps, name.replace(",", "").split()
    if name == GREY:
        return 0.0
    if name == DIRECT:
        return plan_flops([leg(steps, LOW)]) / 1e9
    if words[0] != "k":
        return plan_flops([leg(int(words[0]), CELLS)]) / 1e9
    k, low = int(words[2]), 0 if name.endswith("no low steps") else steps - int(words[2])
    return plan_flops([leg(k, CELLS), *([leg(low, LOW)] if low else [])]) / 1e9


def values_of(numbers: list[int], weights: Path) -> Values:
    """Make and measure all videos of some pairs."""
    made, baseline, found = Compared(TinyT2V(prompts(numbers), weights), numbers), None, {}
    for name, video in made.videos():
        baseline = video if baseline is None else baseline
        found[name] = measured(video, baseline, things(numbers))
    return found


def agreement(rows: Rows) -> list[str]:
    """Lay out the headline measures, where 1 is the baseline, and what prompts ask for."""
    columns = " | ".join(["video", "GFLOPs", *HEADLINE, "right, %"])
    return table(columns, (
        [name, f"{gflops(name):.1f}", *(mean_and_error(rows[name][each], 3) for each in HEADLINE),
         mean_and_error(rows[name][RIGHT], 1, 100.0)]
        for name in rows.parts
    ))  # fmt: skip


def beside(rows: Rows) -> list[str]:
    """Lay out what says how agreement was lost, and is won by blur, noise or absence."""
    return table(" | ".join(["video", *BESIDE]), (
        [name, *(mean_and_error(known(rows[name][each]), 2) for each in BESIDE)]
        for name in rows.parts
    ))  # fmt: skip


def known(values: Tensor) -> Tensor:
    """Leave out videos whose baseline shows no named colour, which have no place."""
    return values[~values.isnan()]


def differences(rows: Rows) -> list[str]:
    """Lay out paired differences of previews to what each of them has to beat."""
    columns = " | ".join(["preview", "less", "GFLOPs", *HEADLINE, "right, points"])

    def row(one: str, other: str) -> list[str]:
        changes = [mean_and_error(rows.change(one, other, each), 3) for each in HEADLINE]
        right = mean_and_error(rows.change(one, other, RIGHT), 1, 100.0)
        return [one, other, f"{gflops(one) - gflops(other):+.1f}", *changes, right]

    pairs = []
    for k, steps in SWITCHES.items():
        ours, paper = f"k = {k}, {OURS}", f"k = {k}, {PAPER}"
        pairs += [(ours, paper), (ours, DIRECT), (ours, estimate(k)), (ours, full(steps))]
        pairs += [(paper, DIRECT), (paper, estimate(k)), (paper, full(steps))]
        mixed = [f"k = {k}, {policy}" for policy in POLICIES[k] if policy not in (PAPER, OURS)]
        pairs += [(name, paper) for name in mixed]
    pairs += [(PRINTED, f"k = 10, {PAPER}")]
    return table(columns, (row(*pair) for pair in pairs))


def tables(rows: Rows) -> list[str]:
    return [
        "## Agreement with the baseline", "", *agreement(rows), "",
        "## Previews less what they have to beat", "", *differences(rows), "",
        "## Beside them", "", *beside(rows), "",
    ]  # fmt: skip


LEGEND = f"""The embedded model, of {PIXELS} pixels and {CLIP} frames, is a toy: this table says how
the switch works and what it costs on it, and not what it gains on a large model. On Wan the paper's
rows of 30 and 50 % of the steps fall from 41.8 to 18.2 and 25.5 in its semantic adherence.

Every video is averaged to {SMALL[0]} pixels and compared with the {BASELINE} of its own seed by the
measures of `surf_core.signature`, 1 is the same; `right` needs no baseline: it is the share of the
things that prompts name which are as they say, see `surf_core.tiny.adherence`. `no low steps` is
the clean estimate at the switch, averaged down."""


def main() -> None:
    line = arguments(__doc__, pairs=96, batch=8)
    line.add_argument("--state", type=Path, help="folder of what is done, to go on from")
    args, rows, s = line.parse_args(), Rows(), Settings()
    methods = (FEWER, POLICIES, SMALL, HEADLINE)
    saved = SavedRows(args.state, fingerprint(args.weights, VAE, s, methods))
    title = "How much of the signature does a preview keep, and what keeps more?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        done = 0
        for part in batches(list(range(args.pairs)), args.batch):
            found = saved.batch(part, lambda part=part: values_of(part, args.weights))
            for name, values in found.items():
                rows.add(name, values)
            done += len(part)
            how = (
                f"{done} held-out prompt and seed pairs, {s.steps} steps, shift {s.shift}, cfg "
                f"{s.cfg} / {s.cfg_low}, Euler; mean +- standard error, "
                "differences paired by prompt and seed"
            )
            page.write([*tables(rows), page.origin(how)])


if __name__ == "__main__":
    main()
