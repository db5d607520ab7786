"""What does decoding a video cost, whole and in pieces, and in which memory layout?

    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.speed.vae_decode
    COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks.speed.vae_decode --time --size 720p 1080p

Operations of Wan 2.1's VAE: torch's FlopCounterMode counts the host's own module on the meta
device, where tensors have shapes and no values, whole, in the pieces of Surf VAE Decode, and in the
tiles of the host's tiled decoder, as either's own code cuts them. With --time the real calls, the
most telling first, then with channels-last convolution weights, in turns with those as loaded. What
fails, or does not fit the minutes, is a row that says so. On a CPU everything timed is toy-sized.

Dims: H, W rows and columns in pixels.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import provenance, publish_page
from benchmarks.speed.host import decodes, models
from benchmarks.speed.host.decodes import CELL, CHANNELS, LAST, LOADED, OVERLAP, Size
from benchmarks.speed.host.tables import table

SIZES = {"480p": (480, 832), "720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
TOY_SIZES = {"480p": (64, 96), "720p": (160, 224), "1080p": (192, 320), "4K": (256, 480)}
SIDES = (256, 512, 768, 1024, 1536)
TOY_SIDES = (128, 160, 192)
CARD, TOY_CARD = 24, 0.001
"""GB; timed are the pieces that Surf VAE Decode chooses there."""
CARDS = (12, 16, 24, 32, 48, 80)
WIDTH, TOY_WIDTH = 96, 4
NEEDS = "vae_decode: not run: set COMFYUI_PATH to a ComfyUI checkout, and use the Python of it."
LEGEND = """`x whole` is operations over those of one piece; they are counted at three sizes, and
those of others follow from them to the last one. GiB is the host's estimate in bf16 and the decoded
frames of a piece, no measurement; a card takes what needs at most {share:g} of it, which is what
Surf VAE Decode goes by. Pieces and tiles overlap by {overlap} pixels. Surf VAE Decode makes all
pieces of a picture equally large; the host's are as large as asked for, and its last ones what is
left. {frames} frames; {version}, Wan 2.1's VAE of {width} channels. {where}"""
TIMED = """Each way was called once before it was timed, and rows were measured in this order.
`times faster` is the median as loaded, of the same turns, over that of channels-last.
`for {card:g} GB` are the pieces that Surf VAE Decode chooses on such a card."""


def on_meta(width: int) -> Any:
    """The host's VAE object round Wan 2.1's module, without any values."""
    import comfy.ldm.wan.vae
    import comfy.sd

    with torch.device("meta"):
        module = comfy.ldm.wan.vae.WanVAE(
            dim=width, z_dim=CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        made = comfy.sd.VAE(sd=module.state_dict())
    made.first_stage_model.to("meta")
    # What a GPU decodes in; this process may have none.
    made.vae_dtype = torch.bfloat16
    return made


def counter(made: Any, steps: int) -> Callable[[Size], int]:
    """Operations of a decode by its size in pixels.

    Convolutions follow the area, attention within frames its square: two counts give both shares,
    and a third must lie on them.
    """

    def count(size: Size) -> int:
        latent = torch.zeros(1, CHANNELS, steps, size[0] // CELL, size[1] // CELL, device="meta")
        with FlopCounterMode(display=False) as counted:
            made.first_stage_model.float().decode(latent)
        return counted.get_total_flops()

    (small, one), (large, four) = ((a * b, count((a, b))) for a, b in ((128, 128), (256, 256)))
    square = (Fraction(four, large) - Fraction(one, small)) / (large - small)
    plain = Fraction(one, small) - square * small

    def law(size: Size) -> int:
        area = size[0] * size[1]
        return int(plain * area + square * area**2)

    assert law((136, 240)) == count((136, 240)), "this module's operations follow another law"
    return law


def host_tiles(size: Size, side: int) -> list[Size]:
    """The tiles that the host's tiled decoder cuts, as its own loop hands them out."""
    import comfy.utils

    seen = []

    def one(part: torch.Tensor) -> torch.Tensor:
        seen.append((part.shape[-2] * CELL, part.shape[-1] * CELL))
        return part

    cells = torch.zeros(1, 1, 1, size[0] // CELL, size[1] // CELL)
    comfy.utils.tiled_scale_multidim(
        cells, one, tile=(1, side // CELL, side // CELL), out_channels=1, upscale_amount=1,
        overlap=(0, OVERLAP // CELL, OVERLAP // CELL),
    )  # fmt: skip
    return seen


def our_pieces(size: Size, limit: Size) -> list[Size]:
    """The pieces of Surf VAE Decode."""
    from surf.nodes.host.vae.memory import PIECE_OVERLAP
    from surf.surf_core.tiles import boxes

    cut = boxes(size, limit, PIECE_OVERLAP, CELL)
    return [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in cut]


def counted(made: Any, sizes: dict[str, Size], sides: tuple[int, ...], steps: int) -> list[str]:
    """Operations and memory, whole and in pieces; then what the node chooses for each card."""
    from surf.nodes.host.vae import decode, memory

    count, rows, chosen = counter(made, steps), [], []
    for name, size in sizes.items():
        latent = torch.zeros(1, CHANNELS, steps, size[0] // CELL, size[1] // CELL, device="meta")
        job, whole = decode.Decoding(made, latent), count(size)

        def row(cut: str, by: str, parts: list[Size], name=name, job=job, whole=whole) -> list:
            work, needed = sum(map(count, parts)), max(map(job.needed, parts))
            largest = max(parts, key=lambda part: part[0] * part[1])
            return [name, cut, by, len(parts), told(largest), work / 1e15, work / whole,
                    needed / 2**30, card(needed)]  # fmt: skip

        rows.append(row("whole", "both", [size]))
        for side in [side for side in sides if side < max(size)]:
            rows.append(row(f"{side} / {OVERLAP}", "Surf", our_pieces(size, (side, side))))
            rows.append(row(f"{side} / {OVERLAP}", "host", host_tiles(size, side)))
        for gigabytes in CARDS:
            room = memory.USABLE_MEMORY * gigabytes * 2**30
            limit = memory.choose_piece(made, size, CELL, job.needed, room=room)
            parts = our_pieces(size, limit)
            work, needed = sum(map(count, parts)), job.needed(parts[0])
            chosen.append([name, gigabytes, len(parts), told(parts[0]), work / whole,
                           needed / 2**30])  # fmt: skip
    columns = "size | cut | by | pieces | the largest | PFLOPs | x whole | GiB | smallest card, GB"
    return [
        "## Operations", "", *table(columns, rows), "## What Surf VAE Decode chooses", "",
        *table("size | card, GB | pieces | of | x whole | GiB", chosen),
    ]  # fmt: skip


def told(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def card(needed: float) -> str:
    """The smallest card that takes so many bytes."""
    from surf.nodes.host.vae.memory import USABLE_MEMORY

    fitting = [size for size in CARDS if needed <= USABLE_MEMORY * size * 2**30]
    return str(fitting[0]) if fitting else f"above {CARDS[-1]}"


def timed(
    args: argparse.Namespace, sizes: dict[str, Size], sides: tuple[int, ...], card: float,
    tell: Callable[[list[str]], None],
) -> None:  # fmt: skip
    """Seconds and memory of the real calls; the table is told after each row."""
    import comfy.model_management

    coders = {layout: models.vae(args.width) for layout in (LOADED, LAST)}
    for coder in coders.values():
        comfy.model_management.load_models_gpu([coder.patcher])
    decodes.channels_last(coders[LAST].first_stage_model)
    kind = str(coders[LOADED].vae_dtype).removeprefix("torch.")
    planned = decodes.cases(coders[LOADED], sizes, sides, card, args.steps)

    def told() -> None:
        rows = [case.row(kind) for case in planned]
        tell(["## Time", "", TIMED.format(card=card), "", *table(decodes.COLUMNS, rows)])

    told()
    for case in planned:
        decodes.measure(case, coders, args.reps, args.deadline)
        print(*case.row(kind), sep=", ", file=sys.stderr, flush=True)
        told()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--frames", type=int, default=81, help="four times a number and one")
    parser.add_argument("--time", action="store_true", help="the real calls, too")
    parser.add_argument("--reps", type=int, default=3, help="timed calls of each, at most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all of it")
    parser.add_argument("--toy", action="store_true", help="small sizes and a thin VAE throughout")
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables, or a folder")
    args = parser.parse_args()
    args.deadline = time.perf_counter() + 60 * args.minutes
    if args.frames % 4 != 1:
        parser.error(f"--frames must be four times a number and one, got {args.frames}.")
    args.steps = 1 + args.frames // 4
    return args


def main() -> None:
    args, asked = arguments(), list(sys.argv)
    folder = os.environ.get("COMFYUI_PATH")
    if not folder:
        print(NEEDS)
        return
    cuda, where = torch.cuda.is_available(), provenance()
    options = [] if cuda else ["--cpu", "--use-pytorch-cross-attention"]
    version = models.enter(Path(folder), options)
    sys.argv = asked
    from surf.nodes.host.vae.memory import USABLE_MEMORY

    def scale(toy: bool) -> tuple[dict[str, Size], tuple[int, ...]]:
        sizes = TOY_SIZES if toy else SIZES
        return {name: sizes[name] for name in args.size}, TOY_SIDES if toy else SIDES

    legend = LEGEND.format(
        share=USABLE_MEMORY, overlap=OVERLAP, frames=args.frames, where=where,
        version=f"ComfyUI {version}", width=TOY_WIDTH if args.toy else WIDTH,
    )  # fmt: skip
    if args.toy:
        legend = f"TOY SIZE: says nothing about real models. {legend}"

    def publish(times: list[str], final: bool) -> None:
        title = "What decoding a video costs"
        publish_page(title, legend, [*lines, *times], args.out, final=final)

    with torch.inference_mode():
        lines = counted(on_meta(TOY_WIDTH if args.toy else WIDTH), *scale(args.toy), args.steps)
        times = ["Seconds, peaks and layouts on a GPU: not measured.", ""]
        try:
            if args.time:
                toy = args.toy or not cuda
                args.width = TOY_WIDTH if toy else WIDTH
                lines += ["TOY SIZE: says nothing about real models.", ""] if toy else []

                def tell(rows: list[str]) -> None:
                    times[:] = rows
                    publish(times, final=False)

                timed(args, *scale(toy), TOY_CARD if toy else CARD, tell)
        finally:
            publish(times, final=True)


if __name__ == "__main__":
    main()
