"""How many operations does one forward of the 1B refiner take, and what do windows save?

    python -m benchmarks.cost.refiner_flops

Counted by torch's FlopCounterMode as the model runs on the meta device, where tensors have shapes
and no values, and set beside the estimate of `surf_core.cost`. 81 frames, 512 text tokens.
"""

from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import Page, parser, table
from surf_core.cost import SURF_1B, forward_flops, tokens
from surf_core.refiner import RefinerConfig, outline
from surf_core.refiner.fused import Fused

SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
WINDOWS = (0, 8, 4)
FRAMES, LATENT_FRAMES = 81, 21
UNCOUNTED = Fused(
    name="uncounted",
    modulated_norm=lambda x, scale, shift: x,
    norm_rotate=lambda q, k, norm_q, norm_k, table: (q, k),
    rotate=lambda x, table: x,
)
"""Norms and rotations count as nothing, so they are left out."""


def counted(height: int, width: int, window: int) -> int:
    """Count the operations of one forward by torch's counter; sizes in pixels, padded."""
    config = RefinerConfig.surf_1b(window)
    model = outline(config, fused=UNCOUNTED)
    model.rows = 10**9
    rows, columns = (2 * -(-side // 16) for side in (height, width))
    z = torch.zeros(1, config.latent_channels, LATENT_FRAMES, rows, columns, device="meta")
    text = torch.zeros(1, SURF_1B.text_tokens, config.text_dim, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(z, torch.zeros(1, device="meta"), text)
    return counter.get_total_flops()


def rows() -> Iterator[list]:
    """Yield one row for every size and window."""
    for name, side in SIZES.items():
        works = {window: counted(*side, window) for window in WINDOWS}
        for window, work in works.items():
            estimate = forward_flops(SURF_1B, FRAMES, *side, window)
            yield [
                name, tokens(SURF_1B, FRAMES, *side), window or "full", f"{work / 1e15:.4f}",
                f"{estimate / 1e15:.4f}", f"{estimate / work:.5f}", f"{works[0] / work:.2f}",
            ]  # fmt: skip


def main() -> None:
    args = parser(__doc__).parse_args()
    legend = (
        "81 frames (21 latent frames), 512 text tokens, one sample; guidance runs two.\n"
        "1080p is 1920x1088 in tokens. W_t: latent frames of a window; every second layer is\n"
        "shifted."
    )
    with Page(__spec__.name, "Operations of one forward of surf_1b", args.out, legend) as page:
        columns = (
            "size | tokens | W_t | counted, PFLOPs | cost, PFLOPs | cost / counted | full / W_t"
        )
        how = "torch's FlopCounterMode on the meta device"
        page.write([*table(columns, rows()), "", page.origin(how)])


if __name__ == "__main__":
    main()
