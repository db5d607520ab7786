"""How many operations does one forward of the 1B refiner take, and what do windows save?

    python -m benchmarks.cost.refiner_flops

Counted by torch's FlopCounterMode as the model runs on the meta device, where tensors have shapes
and no values, and set beside the estimate of `surf_core.cost`. 81 frames, 512 text tokens.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import provenance
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
    """Operations of one forward, by torch's counter; sizes in pixels, padded to whole tokens."""
    config = RefinerConfig.surf_1b(window)
    model = outline(config, fused=UNCOUNTED)
    model.rows = 10**9
    rows, columns = (2 * -(-side // 16) for side in (height, width))
    z = torch.zeros(1, config.latent_channels, LATENT_FRAMES, rows, columns, device="meta")
    text = torch.zeros(1, SURF_1B.text_tokens, config.text_dim, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(z, torch.zeros(1, device="meta"), text)
    return counter.get_total_flops()


def table() -> list[str]:
    """One row for every size and window."""
    lines = [
        "| size | tokens | W_t | counted, PFLOPs | cost, PFLOPs | cost / counted | full / W_t |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, side in SIZES.items():
        full = None
        for window in WINDOWS:
            found = counted(*side, window)
            priced = forward_flops(SURF_1B, FRAMES, *side, window)
            full = full or found
            lines.append(
                f"| {name} | {tokens(SURF_1B, FRAMES, *side)} | {window or 'full'} | "
                f"{found / 1e15:.4f} | {priced / 1e15:.4f} | {priced / found:.5f} | "
                f"{full / found:.2f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    args = parser.parse_args()
    text = "\n".join(
        [
            "# Operations of one forward of surf_1b",
            "",
            "    python -m benchmarks.cost.refiner_flops",
            "",
            "81 frames (21 latent frames), 512 text tokens, one sample; guidance runs two.",
            "1080p is 1920x1088 in tokens. W_t: latent frames of a window; every second layer is",
            "shifted.",
            "",
            *table(),
            "",
            f"torch's FlopCounterMode on the meta device. {provenance()}",
            "",
        ]
    )
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
