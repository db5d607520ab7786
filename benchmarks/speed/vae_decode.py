"""What does decoding a video cost, whole and in pieces?

    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.speed.vae_decode
    python -m benchmarks.speed.vae_decode --time --size 720p 1080p

Operations of Wan 2.1's VAE: torch's FlopCounterMode counts the host's own module on the meta
device, where tensors have shapes and no values, whole, in the pieces of Surf VAE Decode, and in the
tiles of the host's tiled decoder, as either's own code cuts them. With --time the real calls, the
most telling first. What fails, or does not fit the minutes, is a row that says so. On a CPU
everything timed is toy-sized.

Dims: H, W rows and columns in pixels.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import TOY, Page, parser, table
from benchmarks.speed.decodes import CELL, CHANNELS, COLUMNS, OVERLAP, Size, decodes
from benchmarks.speed.host import models

SIZES = {"480p": (480, 832), "720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
TOY_SIZES = {"480p": (64, 96), "720p": (160, 224), "1080p": (192, 320), "4K": (256, 480)}
SIDES = (256, 512, 768, 1024, 1536)
TOY_SIDES = (128, 160, 192)
CARD, TOY_CARD = 24, 0.001
"""GB; timed are the pieces that Surf VAE Decode chooses there."""
CARDS = (12, 16, 24, 32, 48, 80)
WIDTH, TOY_WIDTH = 96, 4
LEGEND = """`x whole` is operations over those of one piece; they are counted at three sizes, and
those of others follow from them to the last one. GiB is the host's estimate in bf16 and the decoded
frames of a piece, no measurement; a card takes what needs at most {share:g} of it, which is what
Surf VAE Decode goes by. Pieces and tiles overlap by {overlap} pixels. Surf VAE Decode makes all
pieces of a picture equally large; the host's are as large as asked for, and its last ones what is
left. {frames} frames; {version}, Wan 2.1's VAE of {width} channels."""
TIMED = """Each way was called once before it was timed, and rows were measured in this order.
`for {card:g} GB` are the pieces that Surf VAE Decode chooses on such a card."""


def on_meta(width: int) -> Any:
    """Build the host's VAE object round Wan 2.1's module, without any values."""
    import comfy.ldm.wan.vae
    import comfy.sd

    with torch.device("meta"):
        module = comfy.ldm.wan.vae.WanVAE(
            dim=width, z_dim=CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        vae = comfy.sd.VAE(sd=module.state_dict())
    vae.first_stage_model.to("meta")
    # What a GPU decodes in; this process may have none.
    vae.vae_dtype = torch.bfloat16
    return vae


def counter(vae: Any, frames: int) -> Callable[[Size], int]:
    """Return a function that counts the operations of a decode by its size in pixels.

    Convolutions follow the area, attention within frames its square: two counts give both shares,
    and a third must lie on them.
    """

    def count(size: Size) -> int:
        latent = torch.zeros(1, CHANNELS, frames, size[0] // CELL, size[1] // CELL, device="meta")
        with FlopCounterMode(display=False) as counted:
            vae.first_stage_model.float().decode(latent)
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
    """Cut the tiles that the host's tiled decoder cuts, by its own loop."""
    import comfy.utils

    tiles = []

    def one(part: torch.Tensor) -> torch.Tensor:
        tiles.append((part.shape[-2] * CELL, part.shape[-1] * CELL))
        return part

    cells = torch.zeros(1, 1, 1, size[0] // CELL, size[1] // CELL)
    comfy.utils.tiled_scale_multidim(
        cells, one, tile=(1, side // CELL, side // CELL), out_channels=1, upscale_amount=1,
        overlap=(0, OVERLAP // CELL, OVERLAP // CELL),
    )  # fmt: skip
    return tiles


def our_pieces(size: Size, limit: Size) -> list[Size]:
    """Cut the pieces of Surf VAE Decode."""
    from surf.nodes.host.vae.memory import PIECE_OVERLAP
    from surf.surf_core.tiles import boxes

    cut = boxes(size, limit, PIECE_OVERLAP, CELL)
    return [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in cut]


def operations(vae: Any, sizes: dict[str, Size], sides: tuple[int, ...], frames: int) -> list[str]:
    """Count operations and memory, whole, in pieces, and as the node chooses for each card."""
    from surf.nodes.host.vae import decode, memory

    count, rows, chosen = counter(vae, frames), [], []
    for name, size in sizes.items():
        latent = torch.zeros(1, CHANNELS, frames, size[0] // CELL, size[1] // CELL, device="meta")
        decoding, whole = decode.Decoding(vae, latent), count(size)

        def row(
            cut: str, by: str, parts: list[Size], name=name, decoding=decoding, whole=whole
        ) -> list:
            work, needed = sum(map(count, parts)), max(map(decoding.needed, parts))
            largest = max(parts, key=lambda part: part[0] * part[1])
            return [name, cut, by, len(parts), size_text(largest), work / 1e15, work / whole,
                    needed / 2**30, card(needed)]  # fmt: skip

        rows.append(row("whole", "both", [size]))
        for side in [side for side in sides if side < max(size)]:
            rows.append(row(f"{side} / {OVERLAP}", "Surf", our_pieces(size, (side, side))))
            rows.append(row(f"{side} / {OVERLAP}", "host", host_tiles(size, side)))
        for gigabytes in CARDS:
            room = memory.USABLE_MEMORY * gigabytes * 2**30
            limit = memory.choose_piece(vae, size, CELL, decoding.needed, room=room)
            parts = our_pieces(size, limit)
            work, needed = sum(map(count, parts)), decoding.needed(parts[0])
            chosen.append([name, gigabytes, len(parts), size_text(parts[0]), work / whole,
                           needed / 2**30])  # fmt: skip
    columns = "size | cut | by | pieces | the largest | PFLOPs | x whole | GiB | smallest card, GB"
    return [
        "## Operations", "", *table(columns, rows), "", "## What Surf VAE Decode chooses", "",
        *table("size | card, GB | pieces | of | x whole | GiB", chosen), "",
    ]  # fmt: skip


def size_text(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def card(needed: float) -> str:
    """Name the smallest card that takes so many bytes."""
    from surf.nodes.host.vae.memory import USABLE_MEMORY

    fitting = [size for size in CARDS if needed <= USABLE_MEMORY * size * 2**30]
    return str(fitting[0]) if fitting else f"above {CARDS[-1]}"


def timed(
    args: argparse.Namespace, sizes: dict[str, Size], sides: tuple[int, ...], card: float,
    publish: Callable[[list[str]], None],
) -> None:  # fmt: skip
    """Time the real calls; publish the table after each row."""
    import comfy.model_management

    coder = models.vae(args.width)
    comfy.model_management.load_models_gpu([coder.patcher])
    kind = str(coder.vae_dtype).removeprefix("torch.")
    planned = decodes(coder, sizes, sides, card, args.latent_frames)

    def show() -> None:
        rows = [each.row(kind) for each in planned]
        publish(["## Time", "", TIMED.format(card=card), "", *table(COLUMNS, rows)])

    show()
    for each in planned:
        each.measure(args.reps, args.deadline)
        print(*each.row(kind), sep=", ", file=sys.stderr, flush=True)
        show()


def arguments() -> argparse.Namespace:
    line = parser(__doc__, minutes=math.inf)
    line.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    line.add_argument("--frames", type=int, default=81, help="four times a number and one")
    line.add_argument("--time", action="store_true", help="the real calls, too")
    line.add_argument("--reps", type=int, default=3, help="timed calls of each, at most")
    line.add_argument("--toy", action="store_true", help="small sizes and a thin VAE throughout")
    args = line.parse_args()
    args.deadline = time.perf_counter() + 60 * args.minutes
    if args.frames % 4 != 1:
        line.error(f"--frames must be four times a number and one, got {args.frames}.")
    args.latent_frames = 1 + args.frames // 4
    return args


@torch.inference_mode()
def main() -> None:
    args, version = arguments(), models.enter("vae_decode")
    if version is None:
        return
    from surf.nodes.host.vae.memory import USABLE_MEMORY

    def scale(toy: bool) -> tuple[dict[str, Size], tuple[int, ...]]:
        sizes = TOY_SIZES if toy else SIZES
        return {name: sizes[name] for name in args.size}, TOY_SIDES if toy else SIDES

    args.width = TOY_WIDTH if args.toy else WIDTH
    legend = (TOY if args.toy else "") + LEGEND.format(
        share=USABLE_MEMORY, overlap=OVERLAP, frames=args.frames, version=f"ComfyUI {version}",
        width=args.width,
    )  # fmt: skip
    with Page(__spec__.name, "What decoding a video costs", args.out, legend) as page:
        lines = operations(on_meta(args.width), *scale(args.toy), args.latent_frames)
        page.write([*lines, "Seconds and peaks on a GPU: not measured.", "", page.where])
        if args.time:
            toy = args.toy or not torch.cuda.is_available()
            args.width = TOY_WIDTH if toy else WIDTH
            lines += [TOY, ""] if toy else []

            def publish(rows: list[str]) -> None:
                page.write([*lines, *rows, "", page.where])

            timed(args, *scale(toy), TOY_CARD if toy else CARD, publish)


if __name__ == "__main__":
    main()
