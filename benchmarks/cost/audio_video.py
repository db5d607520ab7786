"""What do a preview and a refinement cost on MiniMax H3, LTX-2.x, HunyuanVideo 1.5 and Wan 2.2?

    export COMFYUI_PATH=/path/to/ComfyUI
    python -m benchmarks.cost.audio_video

The host's own networks at their real sizes are counted by torch's FlopCounterMode on the meta
device, where tensors have shapes and no values, and set beside the estimate of `surf_core.cost`.
Previews and refinements are priced by that estimate.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import Page, parser, table
from benchmarks.speed.host import models
from surf_core import cost
from surf_core.cost import Evaluations, ModelShape

HUNYUAN_I2V = replace(cost.HUNYUAN_VIDEO_15, name="HunyuanVideo 1.5 I2V", text_tokens=256 + 729)
"""The vision encoder's tokens of the image stand before the text."""
WAN_A14B = replace(cost.WAN_14B, name="Wan 2.2 A14B")
"""Either expert."""
CLIPS = {
    cost.MINIMAX_H3: (
        124, ((432, 240), (672, 384), (864, 480), (1344, 768), (1920, 1088), (2688, 1536)),
    ),
    cost.LTX_2: (
        121, ((320, 192), (640, 352), (960, 544), (1280, 704), (1920, 1088), (3840, 2176)),
    ),
    cost.HUNYUAN_VIDEO_15: (121, ((640, 368), (848, 480), (1280, 720), (1920, 1088))),
    HUNYUAN_I2V: (121, ((640, 368), (1280, 720))),
    cost.WAN_5B: (121, ((640, 352), (1280, 704))),
    WAN_A14B: (81, ((320, 320), (640, 640), (1280, 720))),
}  # fmt: skip
"""Model -> pixel frames of about five seconds, and sizes in pixels, whole numbers of cells."""
PREVIEWS = (
    (cost.MINIMAX_H3, (1344, 768), (672, 384), (20, 6, 8), False),
    (cost.MINIMAX_H3, (864, 480), (432, 240), (20, 6, 8), False),
    (cost.HUNYUAN_VIDEO_15, (1280, 720), (640, 368), (20, 50), True),
    (HUNYUAN_I2V, (1280, 720), (640, 368), (20, 50), True),
    (cost.WAN_5B, (1280, 704), (640, 352), (20,), True),
    (WAN_A14B, (640, 640), (320, 320), (20,), True),
    (WAN_A14B, (640, 640), (320, 320), (4,), False),
)
"""Model, size before and after the switch, evaluations in all, guidance."""
REFINED = (
    (cost.MINIMAX_H3, ((1344, 768), (1920, 1088), (2688, 1536)), 10),
    (cost.LTX_2, ((1280, 704), (1920, 1088), (3840, 2176)), 3),
    (cost.HUNYUAN_VIDEO_15, ((1280, 720), (1920, 1088)), 10),
)
"""Model, sizes, evaluations: those of Surf Refiner's default, and of LTX-2.x's second stage."""
WINDOWS = (0, 8, 4)
LEGEND = """PFLOPs of one sample. `text` counts the tokens that a prompt makes, its picture among
them: an assumption of each model's ModelShape. Guidance, where a plan has it, runs the network
twice. A preview makes the first quarter of its evaluations at the first size and the others at the
second; the plain run makes all of them at the first. VAE and text encoder are left out. W_t: latent
frames of a window; every second layer is shifted; text and sound in the sequence attend to all."""


def size(width: int, height: int) -> str:
    return f"{width}x{height}"


def price(shape: ModelShape, wide: tuple[int, int], window: int = 0) -> int:
    """Price one forward of a model's clip at (width, height) pixels."""
    return cost.forward_flops(shape, CLIPS[shape][0], wide[1], wide[0], window)


def counter_rows(most: int | None = None) -> Iterator[list]:
    """Yield counted and estimated operations of every model, at its first `most` sizes or all."""
    for shape, (frames, sizes) in CLIPS.items():
        call = network(shape)
        for wide in sizes[:most]:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call(shape, frames, *wide)
            work, estimate = counter.get_total_flops(), price(shape, wide)
            yield [
                shape.name, size(*wide), frames, cost.tokens(shape, frames, wide[1], wide[0]),
                cost.audio_tokens(shape, frames), shape.text_tokens, f"{work / 1e15:.4f}",
                f"{estimate / 1e15:.4f}", f"{estimate / work:.4f}",
            ]  # fmt: skip


def network(shape: ModelShape) -> Callable[..., Any]:
    """Build the host's network of a shape on the meta device; return one forward of it."""
    import comfy.ldm.hunyuan_video.model
    import comfy.ldm.lightricks.av_model
    import comfy.ldm.minimax.model
    import comfy.ldm.wan.model
    import comfy.ops

    made = {"operations": comfy.ops.disable_weight_init, "dtype": torch.bfloat16, "device": "meta"}
    if shape is cost.MINIMAX_H3:
        h3 = comfy.ldm.minimax.model.MiniMaxH3Model(**made)
        return lambda *clip: call_h3(h3, *clip)
    if shape is cost.LTX_2:
        ltx = comfy.ldm.lightricks.av_model.LTXAVModel(**LTX, **made)
        return lambda *clip: call_ltx(ltx, *clip)
    if shape in (cost.HUNYUAN_VIDEO_15, HUNYUAN_I2V):
        hunyuan = comfy.ldm.hunyuan_video.model.HunyuanVideo(**HUNYUAN, **made)
        return lambda *clip: call_hunyuan(hunyuan, *clip)
    image = shape.latent_channels + 4 if shape is WAN_A14B else 0
    wan = comfy.ldm.wan.model.WanModel(
        model_type="t2v", dim=shape.dim, ffn_dim=shape.ffn_dim, num_heads=shape.heads,
        num_layers=shape.layers, in_dim=shape.latent_channels + image,
        out_dim=shape.latent_channels, **made,
    )  # fmt: skip
    return lambda *clip: call_wan(wan, *clip)


LTX = {
    "cross_attention_adaln": True, "caption_proj_before_connector": True,
    "caption_projection_first_linear": False, "apply_gated_attention": True, "rope_type": "split",
    "connector_num_attention_heads": 32, "connector_num_layers": 8,
    "audio_connector_attention_head_dim": 64, "connector_apply_gated_attention": True,
    "use_middle_indices_grid": True, "causal_temporal_positioning": True,
    "av_ca_timestep_scale_multiplier": 1000.0, "frequencies_precision": "float64",
}  # fmt: skip
"""What LTX-2.3's checkpoint says of itself beside the host's defaults, which are its sizes."""
HUNYUAN = {
    "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "context_in_dim": 3584,
    "hidden_size": 2048, "mlp_ratio": 4.0, "num_heads": 16, "depth": 54, "depth_single_blocks": 0,
    "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 1, 1], "qkv_bias": True,
    "guidance_embed": False, "byt5": True, "meanflow": False, "use_cond_type_embedding": True,
    "vision_in_dim": 1152, "meanflow_sum": True,
}  # fmt: skip
"""HunyuanVideo 1.5, 720p T2V and I2V alike."""


def zeros(*sizes: int) -> torch.Tensor:
    return torch.zeros(sizes, dtype=torch.bfloat16, device="meta")


def latent(shape: ModelShape, frames: int, width: int, height: int, channels: int) -> torch.Tensor:
    cells = (side // shape.cell_pixels for side in (height, width))
    return zeros(1, channels, cost.latent_frames(shape, frames), *cells)


def call_h3(model: Any, shape: ModelShape, frames: int, width: int, height: int) -> Any:
    video = latent(shape, frames, width, height, 24)
    sound = zeros(1, 32, 2, cost.audio_tokens(shape, frames) // 2)
    text = zeros(1, shape.text_tokens, shape.text_dim)
    payload = {"audio_scale": 4.0}
    return model([video, sound], torch.tensor([900.0]), text, minimax_payload=payload)


def call_ltx(model: Any, shape: ModelShape, frames: int, width: int, height: int) -> Any:
    video, sound = (
        latent(shape, frames, width, height, 128),
        zeros(1, 8, cost.audio_tokens(shape, frames), 16),
    )
    text = zeros(1, shape.text_tokens, 4096 + 2048)
    return model([video, sound], [zeros(1), zeros(1)], text)


def call_hunyuan(model: Any, shape: ModelShape, frames: int, width: int, height: int) -> Any:
    picture = shape.text_tokens - cost.HUNYUAN_VIDEO_15.text_tokens
    text = zeros(1, cost.HUNYUAN_VIDEO_15.text_tokens, shape.text_dim)
    seen = zeros(1, picture, 1152) if picture else None
    return model(latent(shape, frames, width, height, 65), zeros(1), text, clip_fea=seen)


def call_wan(model: Any, shape: ModelShape, frames: int, width: int, height: int) -> Any:
    x = latent(shape, frames, width, height, model.in_dim)
    return model(x, zeros(1), zeros(1, shape.text_tokens, shape.text_dim))


def preview_rows() -> Iterator[list]:
    """Yield plain runs and previews, in PFLOPs."""
    for shape, high, low, counts, guided in PREVIEWS:
        for steps in counts:
            k = max(1, round(steps / 4))
            legs = [
                Evaluations(
                    shape=shape, steps=count, frames=CLIPS[shape][0], height=wide[1],
                    width=wide[0], guided=guided,
                )
                for count, wide in ((steps, high), (k, high), (steps - k, low))
            ]  # fmt: skip
            plain, preview = cost.plan_flops(legs[:1]), cost.plan_flops(legs[1:])
            yield [
                shape.name, size(*high), size(*low), f"{k} of {steps}", "on" if guided else "off",
                plain / 1e15, preview / 1e15, f"{plain / preview:.2f}",
            ]  # fmt: skip


def refine_rows() -> Iterator[list]:
    """Yield one evaluation and all of a refinement by size and window, in PFLOPs."""
    for shape, sizes, steps in REFINED:
        for wide in sizes:
            for window in WINDOWS:
                one, full = price(shape, wide, window), price(shape, wide)
                yield [
                    shape.name, size(*wide), window or "full", one / 1e15, steps,
                    steps * one / 1e15, f"{full / one:.2f}",
                ]  # fmt: skip


def ltx_rows() -> Iterator[list]:
    """Yield LTX-2.x's own two stages beside a preview in the first, and in place of both."""

    def run(*legs: tuple[int, tuple[int, int]]) -> float:
        return sum(count * price(cost.LTX_2, wide) for count, wide in legs) / 1e15

    full, half, quarter = (1280, 704), (640, 352), (320, 192)
    yield ["its template: 8 at half size, then 3 at full size", run((8, half), (3, full)), "full"]
    plan = run((4, half), (4, quarter), (3, full))
    yield ["a preview in its first stage: 4 at half, 4 at a quarter, 3 at full size", plan, "full"]
    yield ["a preview from full size: 4 at full, 4 at half size", run((4, full), (4, half)), "half"]


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--sizes", type=int, help="count the first so many sizes of each model only")
    args = line.parse_args()
    version = models.enter("audio_video")
    if version is None:
        return
    if importlib.util.find_spec("comfy.ldm.minimax") is None:
        print(f"audio_video: not run: ComfyUI {version} has no MiniMax H3; use 0.33 or later.")
        return
    title = "Operations of previews and refinements with sound, and of large latents"
    with Page(__spec__.name, title, args.out, LEGEND) as page:
        lines = ["## One forward", ""]
        columns = "model | size | frames | tokens | audio | text | counted | cost | cost / counted"
        lines += table(columns, counter_rows(args.sizes))
        columns = "model | before | after | switch | guidance | plain run | preview | gain"
        lines += ["", "## Previews", "", *table(columns, preview_rows())]
        columns = "model | size | W_t | evaluation | evaluations | refinement | full / W_t"
        lines += ["", "## Refinements", "", *table(columns, refine_rows())]
        columns = "LTX-2.x, 1280x704 | PFLOPs | size of the result"
        lines += ["", "## LTX-2.x begins small by itself", "", *table(columns, ltx_rows())]
        how = f"ComfyUI {version}, torch's FlopCounterMode on the meta device"
        page.write([*lines, "", page.origin(how)])


if __name__ == "__main__":
    main()
