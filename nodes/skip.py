"""Choose the parts of a preview to refine, and report their cost before anything is refined."""

from comfy_api.latest import io

from .host.drawing import saved_frames
from .host.latents import check_sides
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.refiner import refiner_names
from .host.skip import (
    BUILT_IN,
    CHOICES,
    Choice,
    check_encoded,
    check_sees_frames,
    make_mask,
    picture,
    report,
)
from .host.vae import check_has_vae
from .refine_inputs import target_inputs
from .types import SurfMask

FPS = 16
"""Of the moving picture in the node; a latent does not say how fast its video runs."""


class SurfSkipMask(io.ComfyNode):
    """Score the tokens of the upsampled preview and choose those to refine."""

    @classmethod
    def define_schema(cls):
        return declare(
            io.Schema,
            node_id="SurfSkipMask",
            display_name="Surf Skip Mask",
            category="SURF",
            description=(
                "Choose which parts of a preview Surf Refiner refines; the others are enlarged as "
                "they are. Shows them over the preview, and what that saves, before it runs."
            ),
            search_aliases=[
                "surf",
                "token skipping",
                "skipsr",
                "sparse",
                "faster refiner",
                "speed up",
                "mask",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, resolution=ABSENT, width=ABSENT, height=ABSENT, upsample=ABSENT, vae=ABSENT,
        image=ABSENT, predictor=ABSENT,
    ):  # fmt: skip
        given = {"resolution": resolution, "width": width, "height": height}
        given |= {"upsample": upsample, "has_vae": vae is not ABSENT}
        given |= {"has_image": image is not ABSENT}
        given |= {"predictor": predictor}
        checks = check_sides, check_has_vae, check_encoded, check_sees_frames
        return refusal(cls, given, *checks)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(
        cls, model, latent, predictor, choose, keep, tau, resolution, scale, width, height,
        upsample, dilate, vae=None, image=None,
    ) -> io.NodeOutput:  # fmt: skip
        choice = Choice(predictor=predictor, choose=choose, keep=keep, tau=tau, dilate=dilate)
        target = {"resolution": resolution, "scale": scale, "width": width, "height": height}
        skip, frames = make_mask(
            model, latent, choice, upsample=upsample, vae=vae, image=image, **target
        )
        images, text = picture(model, skip, frames), report(model, skip)
        shown = saved_frames(images, "surf_skip_mask", FPS, lossless=False)
        return io.NodeOutput(skip, skip.mask.keep_ratio, images, text, ui=shown)


def _inputs() -> list:
    """Declare the inputs, in the order of saved workflows."""
    return [
        declare(
            io.Model.Input, "model",
            tooltip="The model that Surf Refiner will run; it says what a token is and costs. It "
            "is not run here.",
        ),
        declare(
            io.Latent.Input, "latent",
            tooltip="The finished low-resolution preview, the one that goes to Surf Refiner.",
        ),
        declare(
            io.Combo.Input, "predictor", options=[*BUILT_IN, *refiner_names()], default="detail",
            tooltip="What scores the tokens. detail: the preview's own detail, any model: of its "
            "pixels where a vae is connected, else of its latent. footage: a small network on the "
            "pixels, any model; needs a vae. Else a file in models/diffusion_models that training "
            "with the recipe mask wrote; others are refused.",
        ),
        declare(
            io.Combo.Input, "choose", options=list(CHOICES), default="keep ratio",
            tooltip="keep ratio: refine the share of tokens that keep says. tau: refine those that "
            "score tau or more, so that a plain video costs less than a busy one.",
        ),
        declare(
            io.Float.Input, "keep", default=0.5, min=0.05, max=1.0, step=0.05,
            tooltip="Share of the tokens to refine, the highest scores first; for 'keep ratio'.",
        ),
        declare(
            io.Float.Input, "tau", default=3.0, min=0.0, max=255.0, step=0.1,
            tooltip="Least change that is worth refining, for 'tau', in 1/255 of the range of a "
            "pixel. Without a vae, detail has a scale of its own. 0 refines all.",
        ),
        *target_inputs(),
        declare(
            io.Int.Input, "dilate", default=0, min=0, max=8, advanced=True,
            tooltip="Tokens around each refined one that are refined too. keep counts them in.",
        ),
        declare(
            io.Vae.Input, "vae", optional=True,
            tooltip="The VAE of the model; needed to upsample through pixels and for an image, and "
            "for detail to score pixels. Without it, the picture has rough colours.",
        ),
        declare(
            io.Image.Input, "image", optional=True,
            tooltip="All frames of the preview at the target size, from another upscaler: detail "
            "scores them, tokens that are skipped show them, and Surf Refiner starts from them. "
            "Empty: the preview as upsample makes it.",
        ),
    ]  # fmt: skip


def _outputs() -> list:
    """Declare the outputs, in the order of saved workflows."""
    return [
        declare(
            SurfMask.Output, "mask",
            tooltip="For Surf Refiner, with the same preview, size and upsample as here.",
        ),
        declare(
            io.Float.Output, "keep_ratio",
            tooltip="Share of the tokens that are refined, 0 to 1.",
        ),
        declare(
            io.Image.Output, "image",
            tooltip="The preview: tinted what is refined, dark what is skipped.",
        ),
        declare(
            io.String.Output, "report",
            tooltip="What is refined, how steady that is from frame to frame, and what an "
            "evaluation of the model costs with the mask and without.",
        ),
    ]  # fmt: skip
