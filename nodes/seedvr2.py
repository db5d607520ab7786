"""Surf SeedVR2 Skip: run the host's native SeedVR2 on tokens with detail only."""

from comfy_api.latest import io

from ..surf_core.skip import Mask
from .host.node import checks_inputs, declare, names_errors
from .host.skip import CHOICES, skip_seedvr2


class SurfSeedVR2Skip(io.ComfyNode):
    """Clone a SeedVR2 model so that its transformer runs on the tokens with detail only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfSeedVR2Skip",
            display_name="Surf SeedVR2 Skip",
            category="SURF",
            description="Lets ComfyUI's own SeedVR2 refine only the parts of a video that have "
            "detail; everywhere else the result is the input of the model. The model itself stays "
            "as it is.",
            search_aliases=[
                "surf",
                "token skipping",
                "skipsr",
                "seedvr",
                "video upscale",
                "speed up",
            ],
            inputs=[
                declare(
                    io.Model.Input,
                    "model",
                    tooltip="SeedVR2, 3B or 7B, as ComfyUI loads it; needs a ComfyUI that has it, "
                    "such as 0.33.",
                ),
                declare(
                    io.Conditioning.Input,
                    "conditioning",
                    tooltip="'positive' of Apply SeedVR2 Conditioning, the same that goes to the "
                    "sampler: it holds the latent that is looked at.",
                ),
                declare(
                    io.Combo.Input,
                    "choose",
                    options=list(CHOICES),
                    default=CHOICES[0],
                    tooltip="How to say what is refined: by the share of the tokens that 'keep' "
                    "names, or by the detail from which on 'tau' refines them.",
                ),
                declare(
                    io.Float.Input,
                    "keep",
                    default=0.5,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the tokens that are refined, those with the most detail; 1 "
                    "refines all. Used with 'keep ratio'.",
                ),
                declare(
                    io.Float.Input,
                    "tau",
                    default=3.0,
                    min=0.0,
                    max=255.0,
                    step=0.1,
                    tooltip="Detail from which on a token is refined; 0 refines all. With an image "
                    "3 to 5 is a good start, without one the report tells the tau of a keep "
                    "ratio. Used with 'tau'.",
                ),
                declare(
                    io.Int.Input,
                    "dilate",
                    default=0,
                    min=0,
                    max=8,
                    advanced=True,
                    tooltip="Tokens of 16 pixels around every refined one that are refined too. "
                    "A keep ratio counts them in.",
                ),
                declare(
                    io.Int.Input,
                    "seam",
                    default=0,
                    min=0,
                    max=16,
                    advanced=True,
                    tooltip="Latent cells (8 pixels) over which a refined part fades into what is "
                    "around it; 0 is a hard edge.",
                ),
                declare(
                    io.Image.Input,
                    "image",
                    optional=True,
                    tooltip="The video's frames, such as the images of Get Video Components: the "
                    "detail of their pixels decides, and tau counts in 1/255 of their range. "
                    "Empty: the latent in the conditioning decides.",
                ),
                declare(
                    io.Latent.Input,
                    "latent",
                    optional=True,
                    tooltip="With an image and Split SeedVR2 Latent: the latent that goes into "
                    "that node. It says which frames a part of the video has.",
                ),
            ],
            outputs=[
                declare(
                    io.Model.Output,
                    "model",
                    tooltip="A clone that skips; weights are shared.",
                ),
                declare(
                    io.Float.Output,
                    "keep_ratio",
                    tooltip="Share of the tokens that the clone refines.",
                ),
                declare(
                    io.String.Output,
                    "report",
                    tooltip="What is refined, by numbers.",
                ),
            ],
        )

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, model, conditioning, **settings) -> io.NodeOutput:
        """Choose tokens by the latent in the conditioning, and clone."""
        clone, mask = skip_seedvr2(model, conditioning, **settings)
        return io.NodeOutput(clone, mask.keep_ratio, describe(mask))


def describe(mask: Mask) -> str:
    """Describe what a mask refines."""
    frames, rows, columns = mask.grid
    count, total = int(mask.tokens.sum()), mask.tokens.numel()
    return (
        f"{count} of {total} tokens are refined ({mask.keep_ratio:.1%}): {frames} latent frames of "
        f"{rows} x {columns}, tau {mask.tau:.4g} of {mask.source}; from one latent frame to the "
        f"next {mask.flip_rate:.1%} change. The VAE works on everything as before."
    )
