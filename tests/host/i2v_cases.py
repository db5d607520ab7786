"""Image to video inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/i2v_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import checkpoints
import inside
import torch
from inprocess import ClipVision, prompts, refused, same
from inside import noise

RESULTS = inside.enter()

import comfy.utils  # noqa: E402
from comfy_extras import nodes_wan  # noqa: E402
from inprocess import Host  # noqa: E402
from surf.nodes.image_to_video import SurfImageToVideo  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402

HOST = Host()
REFINE = {
    "seed": 3, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 2, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


def picture(height=300, width=440, frames=1):
    """A smooth picture, larger than any video here."""
    small = noise(frames, 3, 5, 7).sigmoid()
    return (
        torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
        .clamp(0, 1)
        .movedim(1, -1)
    )


def refine(model, latent, conds, **changes):
    return SurfRefiner.execute(model, *conds, latent, **(REFINE | changes)).result[0]


SIZES = {
    "low_resolution": "by scale", "low_scale": 0.5, "low_width": 64, "low_height": 64,
    "target_resolution": "by scale", "target_scale": 3.0, "target_width": 64,
    "target_height": 64,
}  # fmt: skip


class CountingVae:
    """Notes the frames and pixels that a VAE encodes."""

    def __init__(self, vae):
        self.vae, self.shapes = vae, []

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def encode(self, frames):
        self.shapes.append(tuple(frames.shape[:3]))
        return self.vae.encode(frames)


def three_sizes(vae, conds, image, width, height, length, **more):
    """Our node: [(positive, negative) of each size], latent."""
    out = SurfImageToVideo.execute(
        vae=vae, positive=conds[0], negative=conds[1], start_image=image, width=width,
        height=height, length=length, **(SIZES | more),
    ).result  # fmt: skip
    return [out[:2], out[2:4], out[4:6]], out[6]


def is_stocks(pair, stock):
    """Both prompts have the keys and values of the stock node, to the bit."""
    for ours, theirs in zip(pair, stock[:2], strict=True):
        assert torch.equal(ours[0][0], theirs[0][0])
        assert ours[0][1].keys() == theirs[0][1].keys(), (ours[0][1].keys(), theirs[0][1].keys())
        for key, value in theirs[0][1].items():
            got = ours[0][1][key]
            if key == "clip_vision_output":
                got, value = (x.penultimate_hidden_states for x in (got, value))
            assert torch.equal(got, value), key


def case_one_picture_gives_what_wans_node_makes_at_each_size():
    vae, image, conds, vision = (
        HOST.sd.VAE(sd=checkpoints.wan_vae()),
        picture(),
        prompts(),
        ClipVision(8, 5, 1),
    )
    counting, length = CountingVae(vae), 9
    pairs, latent = three_sizes(counting, conds, image, 192, 128, length, clip_vision_output=vision)
    made = [
        nodes_wan.WanImageToVideo.execute(
            *conds, vae, *size, length, 1, start_image=image, clip_vision_output=vision
        ).result
        for size in ((192, 128), (96, 64), (288, 192))
    ]
    for pair, stock in zip(pairs, made, strict=True):
        is_stocks(pair, stock)
    same(latent, made[0][2])
    assert latent["surf_made_for"] == (128, 192)
    assert counting.shapes == [(9, 128, 192), (9, 64, 96), (9, 192, 288)]


def case_first_and_last_picture_give_what_wans_node_makes_at_each_size():
    vae, conds, length = HOST.sd.VAE(sd=checkpoints.wan_vae()), prompts(), 9
    image, last, visions = picture(), picture(200, 260), (ClipVision(8, 5, 1), ClipVision(8, 5, 2))
    pairs, latent = three_sizes(
        vae, conds, image, 192, 128, length, end_image=last, clip_vision_output=visions[0],
        clip_vision_end=visions[1],
    )  # fmt: skip
    for pair, size in zip(pairs, ((192, 128), (96, 64), (288, 192)), strict=True):
        stock = nodes_wan.WanFirstLastFrameToVideo.execute(
            *conds, vae, *size, length, 1, start_image=image, end_image=last,
            clip_vision_start_image=visions[0], clip_vision_end_image=visions[1],
        ).result  # fmt: skip
        is_stocks(pair, stock)


def case_a_picture_reaches_28_latent_frames_and_no_further():
    """All frames of 81 depend on it; 161 cost as much as 117, to the bit."""
    vae, image, conds = HOST.sd.VAE(sd=checkpoints.wan_vae()), picture(), prompts()
    counting, tiny = CountingVae(vae), {"low_scale": 1.0, "target_scale": 1.0}
    pairs, latent = three_sizes(counting, conds, image, 32, 32, 161, **tiny)
    stock = nodes_wan.WanImageToVideo.execute(*conds, vae, 32, 32, 161, 1, start_image=image).result
    for pair in pairs:
        is_stocks(pair, stock)
    assert latent["samples"].shape == (1, 16, 41, 4, 4)
    assert [frames for frames, *_ in counting.shapes] == [117] * 3
    encoded = stock[0][0][1]["concat_latent_image"]
    steps = encoded.diff(dim=2).abs().amax((0, 1, 3, 4))
    # From latent frame 28 to 29 rounding is left of it; before, a step for each frame.
    assert (steps[:21] > 1e-5).all(), steps
    assert (steps[29:] == 0).all(), steps
    counting.shapes.clear()
    three_sizes(counting, conds, image, 32, 32, 81, **tiny)
    assert [frames for frames, *_ in counting.shapes] == [81] * 3


def case_a_target_of_another_shape_has_the_picture_in_register():
    """832 x 480 goes to 1920 x 1080: the picture is stretched with the video, not cropped again."""
    vae, conds = HOST.sd.VAE(sd=checkpoints.wan_vae()), prompts()
    image, size = picture(), {"target_resolution": "by size", "target_width": 240}
    pairs, _ = three_sizes(vae, conds, image, 208, 112, 5, **size, target_height=136)
    fitted = comfy.utils.common_upscale(image.movedim(-1, 1), 208, 112, "bilinear", "center")
    wide = image.shape[2] / image.shape[1] > 208 / 112
    rows = round((image.shape[1] - image.shape[2] / 208 * 112) / 2)
    assert not wide
    cut = image[:, rows : image.shape[1] - rows]
    stretched = comfy.utils.common_upscale(cut.movedim(-1, 1), 240, 136, "bilinear", "disabled")
    stock = nodes_wan.WanImageToVideo.execute(
        *conds, vae, 240, 136, 5, 1, start_image=stretched.movedim(1, -1)
    ).result
    is_stocks(pairs[2], stock)
    is_stocks(
        pairs[0],
        nodes_wan.WanImageToVideo.execute(
            *conds, vae, 208, 112, 5, 1, start_image=fitted.movedim(1, -1)
        ).result,
    )


def case_the_latent_of_5b_is_that_of_its_node():
    vae, image, conds = checkpoints.wan22_vae(), picture(), prompts()
    pairs, latent = three_sizes(vae, conds, image, 256, 192, 9)
    stock = nodes_wan.Wan22ImageToVideoLatent.execute(vae, 256, 192, 9, 1, image).result[0]
    same(latent, stock)
    assert torch.equal(latent["noise_mask"], stock["noise_mask"])
    assert all(pair[i][0][0] is conds[i][0][0] for pair in pairs for i in (0, 1))
    assert not any(pair[i][0][1] for pair in pairs for i in (0, 1))


def case_the_three_sizes_run_through_sampler_and_refiner():
    """As the graph: each takes its own, and none is resized."""
    vae, model = HOST.sd.VAE(sd=checkpoints.wan_vae()), HOST.model("tiny_wan22_i2v")
    pairs, latent = three_sizes(vae, prompts(), picture(), 192, 128, 9)
    seen = {}

    def noting(apply_model, args):
        seen[tuple(args["input"].shape[-2:])] = args["c"]["c_concat"][:1, 4:].clone()
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(noting)
    low = dict(zip(("positive_low", "negative_low"), pairs[1], strict=True))
    preview, _ = HOST.ours(clone, latent, *pairs[0], **low)
    refine(clone, preview, pairs[2], scale=3.0)
    assert seen.keys() == {(16, 24), (8, 12), (24, 36)}
    for pair, grid in zip(pairs, ((16, 24), (8, 12), (24, 36)), strict=True):
        made = model.model.process_latent_in(pair[0][0][1]["concat_latent_image"].clone())
        torch.testing.assert_close(seen[grid], made, rtol=0, atol=1e-6)


def case_a_picture_of_another_length_is_refused_before_the_model_is_called():
    vae, model = HOST.sd.VAE(sd=checkpoints.wan_vae()), HOST.model("tiny_wan22_i2v")
    (pair, _, target), latent = three_sizes(vae, prompts(), picture(), 192, 128, 9)
    longer = {**latent, "samples": noise(1, 16, 4, 16, 24)}

    def never(apply_model, args):
        raise AssertionError("the model was called")

    clone = model.clone()
    clone.set_model_unet_function_wrapper(never)
    words = "concat_latent_image", "the latent's 4 latent frames, got 3"
    refused(lambda: HOST.ours(clone, longer, *pair), "Surf Reshift KSampler", *words)
    refused(lambda: refine(clone, longer, target, scale=1.5), "Surf Refiner", *words)


def case_the_first_frame_of_5b_is_the_picture_encoded_at_the_target():
    vae, model, image, conds = (
        checkpoints.wan22_vae(),
        HOST.model("tiny_wan22_5b"),
        picture(),
        prompts(),
    )
    stock = nodes_wan.Wan22ImageToVideoLatent.execute
    high = stock(vae, 256, 192, 9, 1, image).result[0]
    preview, _ = HOST.ours(model, high, *conds)
    assert preview["samples"].shape == (1, 48, 3, 6, 8)
    for scale, pixels in ((2.0, (256, 192)), (3.0, (384, 288))):
        out = refine(model, preview, conds, scale=scale, vae=vae, start_image=image)
        same(
            out["samples"][:, :, :1],
            stock(vae, *pixels, 9, 1, image).result[0]["samples"][:, :, :1],
            1e-5,
        )
        free = refine(model, preview, conds, scale=scale)["samples"]
        enlarged = torch.nn.functional.interpolate(
            preview["samples"][:, :, 0], free.shape[-2:], mode="bilinear"
        )
        assert (free[:, :, 0] - enlarged).abs().mean() > 0.05
        assert (out["samples"] - free)[:, :, 1:].abs().max() > 1e-3


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
