"""Image to video inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/i2v_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import checkpoints
import inside
import torch
from inprocess import prompts, same
from inside import noise

RESULTS = inside.enter()

from comfy_extras import nodes_wan  # noqa: E402
from inprocess import Host  # noqa: E402
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
