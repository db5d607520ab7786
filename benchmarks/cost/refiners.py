"""What does each refiner cost at 720p, 1080p and 4K?

    python -m benchmarks.cost.refiners

Counted by `surf_core.cost`: nothing is run. The table of web/docs/guide/refiners.md is this one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.page import Page, parser, table
from surf_core import cost
from surf_core.cost import Evaluations, ModelShape

SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
WINDOWS = {"720p": 9, "1080p": 4, "4K": 4}
"""Latent frames of a window, as the workflows have them."""


@dataclass(frozen=True, kw_only=True)
class RefinerRow:
    """A refinement, priced at every size."""

    name: str
    shape: ModelShape
    steps: int
    guided: bool = False
    windows: bool = True
    frames: int = 81
    """Five seconds of the model's own."""
    share: float = 1.0
    """Of the tokens, spread evenly."""

    def flops(self, size: str) -> int:
        """Price it at one of SIZES."""
        height, width = SIZES[size]
        each = cost.tokens(self.shape, 1, height, width)
        depth = cost.latent_frames(self.shape, self.frames)
        kept = None if self.share == 1 else (round(self.share * each),) * depth
        return Evaluations(
            shape=self.shape, steps=self.steps, frames=self.frames, height=height, width=width,
            window=WINDOWS[size] if self.windows else 0, guided=self.guided, kept=kept,
        ).flops  # fmt: skip


SEED = {"steps": 1, "windows": False}
REFINERS = (
    RefinerRow(name="surf_1b", shape=cost.SURF_1B, steps=10, guided=True),
    RefinerRow(name="Wan 2.1 1.3B", shape=cost.WAN_1_3B, steps=10, guided=True),
    RefinerRow(name="Wan 2.2 A14B low-noise", shape=cost.WAN_14B, steps=10, guided=True),
    RefinerRow(name="the same with the 4-step LoRA", shape=cost.WAN_14B, steps=4),
    RefinerRow(name="the same, half of the tokens", shape=cost.WAN_14B, steps=4, share=0.5),
    RefinerRow(name="SeedVR2 3B", shape=cost.SEEDVR2_3B, **SEED),
    RefinerRow(name="SeedVR2 3B, half of the tokens", shape=cost.SEEDVR2_3B, share=0.5, **SEED),
    RefinerRow(name="SeedVR2 7B", shape=cost.SEEDVR2_7B, **SEED),
    RefinerRow(name="LTX-2.3's second stage", shape=cost.LTX_2, steps=3, frames=121, windows=False),
    RefinerRow(name="the same in Surf Refiner", shape=cost.LTX_2, steps=3, frames=121),
    RefinerRow(
        name="HunyuanVideo 1.5's super-resolution", shape=cost.HUNYUAN_VIDEO_15, steps=8,
        frames=121, windows=False,
    ),
)  # fmt: skip
COLUMNS = "refiner | evaluations | guidance | frames | " + " | ".join(SIZES)
LEGEND = """PFLOPs of one video of about five seconds; guidance runs the network twice. Windows of 9
latent frames at 720p and of 4 above, but for SeedVR2, whose own they are, and for LTX-2.3's and
HunyuanVideo 1.5's own stages, which have full attention. Half of the tokens: spread evenly. VAE,
text encoder and latent upsampler are left out."""


def rows() -> Iterator[list]:
    """Yield the refiners with their PFLOPs at every size."""
    for each in REFINERS:
        priced = [f"{each.flops(size) / 1e15:.2f}" for size in SIZES]
        yield [each.name, each.steps, "on" if each.guided else "off", each.frames, *priced]


def main() -> None:
    args = parser(__doc__).parse_args()
    with Page(__spec__.name, "What refiners cost", args.out, LEGEND) as page:
        page.write([*table(COLUMNS, rows()), "", page.origin("Counted")])


if __name__ == "__main__":
    main()
