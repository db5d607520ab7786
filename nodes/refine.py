"""Surf Refiner: turn a low-resolution preview into the final video."""

from comfy_api.latest import io

from .host.attention import check_window
from .host.latents import check_sides
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.refine import RefineSettings, check_image_vae, check_preview, check_tile, refine
from .host.resume import queued_node
from .host.vae import check_has_vae
from .refine_inputs import made_for_inputs, target_inputs
from .types import SurfMask

WINDOW_TIP = (
    "Temporal self-attention window in latent frames, shifted by half on every second block; "
    "4 suits 1080p, 9 suits 720p with Wan 1.3B. 0 = full attention, any model. "
    "Windows work with Wan (T2V, I2V, VACE, camera), HunyuanVideo, MiniMax H3 and LTX-2; "
    "a refiner from Surf Refiner Loader brings its own."
)


class SurfRefiner(io.ComfyNode):
    """Upsample, re-noise to a sigma, sample down to zero with windowed attention."""

    @classmethod
    def define_schema(cls):
        return declare(
            io.Schema,
            node_id="SurfRefiner",
            display_name="Surf Refiner",
            category="SURF",
            description=(
                "Turn a low-resolution preview into the final video: upsample it, noise it to "
                "sigma_start and sample down to zero, with attention in temporal windows. Takes "
                "any flow video model, no training needed."
            ),
            search_aliases=[
                "surf",
                "video refiner",
                "video upscale",
                "upscale video",
                "hires fix",
                "1080p",
                "720p",
                "4k",
                "super resolution",
            ],
            inputs=_inputs(),
            outputs=[
                declare(
                    io.Latent.Output,
                    "latent",
                    tooltip="The refined video at the target size; decode it with the VAE.",
                ),
                declare(
                    io.Int.Output,
                    "width",
                    tooltip="Pixels that were asked for. Where the model needs more, crop the "
                    "decoded frames to it.",
                ),
                declare(
                    io.Int.Output,
                    "height",
                    tooltip="Pixels that were asked for: 1080, where the model needs 1088.",
                ),
                declare(
                    io.Conditioning.Output,
                    "positive",
                    tooltip="The prompt at the target size; LTXVCropGuides finds guides by it.",
                ),
                declare(
                    io.Conditioning.Output,
                    "negative",
                    tooltip="What to avoid, at the target size.",
                ),
            ],
            hidden=[io.Hidden.dynprompt],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, resolution=ABSENT, width=ABSENT, height=ABSENT, upsample=ABSENT, window=ABSENT,
        vae=ABSENT, tile=ABSENT, mask=ABSENT, latent=ABSENT, image=ABSENT,
    ):  # fmt: skip
        given = {"resolution": resolution, "width": width, "height": height}
        given |= {"upsample": upsample, "window": window, "tile": tile}
        given |= {"has_latent": latent is not ABSENT, "has_image": image is not ABSENT}
        frames = refusal(
            cls, given | {"has_vae": vae is not ABSENT}, check_preview, check_image_vae
        )
        if frames is not True:
            return frames
        # A mask may bring the upsampled preview along.
        given["has_vae"] = vae is not ABSENT or mask is not ABSENT
        return refusal(cls, given, check_sides, check_has_vae, check_window, check_tile)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(
        cls, model, positive, negative, latent=None, *, seed, resolution, scale, width, height,
        upsample, sigma_start, steps, cfg, window, low_band_lock, colour_match, vae=None, tile=0,
        mask=None, seam=0, made_width=0, made_height=0, start_image=None, refine_audio=False,
        image=None, chunk_frames=0, resume=False,
    ) -> io.NodeOutput:  # fmt: skip
        settings = RefineSettings(seed=seed, sigma_start=sigma_start, steps=steps, cfg=cfg,
            window=window, tile=tile, low_band_lock=low_band_lock, colour_match=colour_match,
            refine_audio=refine_audio, chunk_frames=chunk_frames)  # fmt: skip
        out, (height, width), conds = refine(
            model, positive, negative, latent, settings, upsample=upsample, vae=vae, mask=mask,
            seam=seam, made_for=(made_height, made_width), start_image=start_image, image=image,
            resolution=resolution, scale=scale, width=width, height=height,
            resume=queued_node(getattr(cls, "hidden", None), "resume") if resume else None,
        )  # fmt: skip
        return io.NodeOutput(out, width, height, conds["positive"], conds["negative"])


def _inputs() -> list:
    """Declare the inputs, in the order of saved workflows."""
    return [
        declare(
            io.Model.Input, "model",
            tooltip="A flow video model whose latents the preview is made of: a refiner from Surf "
            "Refiner Loader, a light model such as Wan 2.1 1.3B, or the one that made the preview. "
            "Of a Wan 2.2 pair, the low-noise one.",
        ),
        declare(
            io.Conditioning.Input, "positive",
            tooltip="The prompt of the preview. What is bound to a resolution is resized.",
        ),
        declare(
            io.Conditioning.Input, "negative",
            tooltip="What to avoid; has no effect at cfg 1.",
        ),
        declare(
            io.Latent.Input, "latent", optional=True,
            tooltip="The finished low-resolution preview. A noise mask confines the work. May be "
            "left out where image is the preview.",
        ),
        declare(
            io.Int.Input, "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
            tooltip="Seed of the noise that is added to the upsampled preview.",
        ),
        *target_inputs(),
        declare(
            io.Float.Input, "sigma_start", default=0.65, min=0.01, max=1.0, step=0.01,
            tooltip="Share of noise at the start, a sigma and not a denoise: 0.45 stays close to "
            "the preview, 0.8 invents more. A trained refiner brings its own.",
        ),
        declare(
            io.Int.Input, "steps", default=10, min=1, max=1000,
            tooltip="Euler steps from sigma_start to 0, linear in sigma.",
        ),
        declare(
            io.Float.Input, "cfg", default=4.5, min=0.0, max=100.0, step=0.1,
            tooltip="Guidance. 1 halves the cost: for step-distilled LoRAs and for HunyuanVideo, "
            "whose guidance is part of its conditioning.",
        ),
        declare(io.Int.Input, "window", default=4, min=0, max=1024, tooltip=WINDOW_TIP),
        declare(
            io.Float.Input, "low_band_lock", default=0.0, min=0.0, max=1.0, step=0.05,
            advanced=True,
            tooltip="Share of the steps, from the first, that keep what the preview could already "
            "show: layout and colour cannot drift. 0 = off; 0.4 is a good start.",
        ),
        declare(
            io.Boolean.Input, "colour_match", default=False, advanced=True,
            tooltip="Give the result the slow colours of the upsampled preview.",
        ),
        declare(
            io.Vae.Input, "vae", optional=True,
            tooltip="The VAE of the model; needed to upsample through pixels.",
        ),
        declare(
            io.Int.Input, "tile", optional=True, default=0, min=0, max=16384, step=16,
            advanced=True,
            tooltip="Pixels along the side of a tile, blended with its neighbours. 0 = tiles only "
            "where the whole picture does not fit the memory.",
        ),
        declare(
            SurfMask.Input, "mask", optional=True,
            tooltip="From Surf Skip Mask: what to refine; the rest comes out as the upsampled "
            "preview. For refiners of this project, Wan (T2V, I2V, VACE, camera) and HunyuanVideo. "
            "Empty: everything.",
        ),
        declare(
            io.Int.Input, "seam", optional=True, default=0, min=0, max=16, advanced=True,
            tooltip="Latent cells over which a refined part blends into what was skipped, inside "
            "of the refined part; 0 = a hard edge.",
        ),
        *made_for_inputs(),
        declare(
            io.Image.Input, "start_image", optional=True,
            tooltip="The picture that the video starts from, where the latent has it in its first "
            "frame under a noise mask (Wan 2.2 5B, LTX-2): encoded at the target by vae. Empty: "
            "that frame is refined.",
        ),
        declare(
            io.Boolean.Input, "refine_audio", optional=True, default=False, advanced=True,
            tooltip="For a latent with audio, of MiniMax H3 or LTX-2: noise and sample it as well. "
            "Off: the audio comes out as it went in. On, the picture must fit in one piece.",
        ),
        declare(
            io.Image.Input, "image", optional=True,
            tooltip="Frames of a video of your own, in place of latent: enlarged to the target, or "
            "taken as they are where they have its size. Beside latent: what an upscale model made "
            "of its frames. Encoded by vae.",
        ),
        declare(
            io.Int.Input, "chunk_frames", optional=True, default=0, min=0, max=16384,
            advanced=True,
            tooltip="Frames that the model sees at a time; longer videos are refined in chunks "
            "that overlap and blend, or meet where a scene begins. 0 = as many as the model was "
            "made for, 81 for Wan, and fewer where the memory asks for it.",
        ),
        declare(
            io.Boolean.Input, "resume", optional=True, default=False, advanced=True,
            tooltip="Save the run while it samples: if ComfyUI is killed, queue the same graph "
            "again, with the same seed, and it goes on from there. Set the seed to fixed. The file "
            "goes when the run is done.",
        ),
    ]  # fmt: skip
