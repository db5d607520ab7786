"""Every family of models at its smallest, with the conditioning that its stock node makes.

For scripts that called `inside.enter` first. Sizes are (width, height) in pixels.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import checkpoints
import comfy.ldm.flux.model as flux_model
import comfy.ldm.hunyuan_video.model as hunyuan_video
import comfy.ldm.qwen_image.model as qwen_model
import comfy.ldm.wan.model as wan
import comfy.ldm.wan.model_animate as wan_animate
import comfy.ops
import comfy.sd
import torch
from comfy_extras import nodes_hunyuan, nodes_wan
from inprocess import ClipVision, text
from inside import HostLacks, noise

LENGTH = 9
"""Frames of a video: three latent frames."""
MADE = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}
POOLED = 768


@dataclass(frozen=True, kw_only=True)
class TinyFamily:
    """A family: its weights, and what its stock node makes at a size."""

    state: Callable[[], dict]
    """Makes the state dict."""
    make: Callable[..., tuple]
    """(vae, width, height) -> positive, negative, LATENT."""
    cfg: tuple[float, float] = (3.0, 2.0)
    """Guidance before and after a switch."""
    second: Callable[[], dict] | None = None
    """Makes the state dict of the second expert."""
    loaded: Callable[[Any], None] = lambda model: None
    """Changes a MODEL after it was loaded."""
    building: Callable[[], Any] = field(default=lambda: mock.patch.dict({}))
    """Context in which the host builds networks of our sizes."""

    def load(self, state=None, **options):
        with self.building():
            model = comfy.sd.load_diffusion_model_state_dict(
                self.state() if state is None else state, model_options=options
            )
        self.loaded(model)
        return model


@functools.cache
def vae():
    return comfy.sd.VAE(sd=checkpoints.wan_vae(4))


def picture(height=75, width=110, frames=1, seed=1):
    """A smooth picture, or several, of another shape than any video here."""
    small = noise(frames, 3, 5, 7, seed=seed).sigmoid()
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return large.clamp(0, 1).movedim(1, -1)


def wan_state(kind, seed, **arguments):
    sizes = {**checkpoints.WAN, "in_dim": 16, "out_dim": 16, **arguments}
    return checkpoints.randomise(kind(**sizes, **MADE), 400 + seed)


def hunyuan_state(seed, **changes):
    sizes = {**checkpoints.HUNYUAN, **changes}
    return checkpoints.randomise(hunyuan_video.HunyuanVideo(**sizes, **MADE), 400 + seed)


def without_face_network(model):
    """Let Animate see means of a face's columns: its own network takes seconds for 512 pixels."""
    network = model.model.diffusion_model
    network.motion_encoder.get_motion = lambda faces: faces.mean((1, 2))


def scail_state(kind="SCAILWanModel"):
    if not hasattr(wan, kind):
        raise HostLacks("SCAIL: use 0.33 or later")
    return checkpoints.scail(kind)


def flux_state():
    sizes = {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": 64,
        "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    }  # fmt: skip
    return checkpoints.randomise(flux_model.Flux(**sizes, **MADE), 420)


def small_flux():
    """Let the host build Flux with one head: older ones do not read the number from its file."""
    kind = flux_model.FluxParams
    return mock.patch.object(
        flux_model, "FluxParams", lambda **sizes: kind(**sizes | {"num_heads": 1})
    )


SMALL_QWEN = {"num_attention_heads": 1, "joint_attention_dim": 64}


def small_qwen():
    """Let the host build Qwen-Image thin: its file does not say how wide it is."""
    made = qwen_model.QwenImageTransformer2DModel.__init__
    names = list(inspect.signature(made).parameters)[-len(made.__defaults__) :]
    defaults = dict(zip(names, made.__defaults__, strict=True)) | SMALL_QWEN
    return mock.patch.object(made, "__defaults__", tuple(defaults.values()))


def qwen_state():
    module = qwen_model.QwenImageTransformer2DModel(num_layers=2, **SMALL_QWEN, **MADE)
    return checkpoints.randomise(module, 421)


class Hunyuan15Vae:
    """Gives each cell of 16 pixels the means of its colours, in 32 channels."""

    latent_channels, latent_dim = 32, 3

    def encode(self, frames):
        x = frames.movedim(-1, 1)
        cells = torch.nn.functional.avg_pool2d(x, 16)[::4]
        return cells.movedim(1, 0)[None].repeat(1, 11, 1, 1, 1)[:, :32]

    def spacial_compression_encode(self):
        return 16

    def temporal_compression_decode(self):
        return 4


def texts(width=4096, **options):
    return text(1, width, **options), text(2, width, **options)


def video(vae, width, height, channels=16, cell=8):
    """A prompt alone, with the latent of a video from text."""
    shape = 1, channels, (LENGTH - 1) // 4 + 1, height // cell, width // cell
    return *texts(), {"samples": torch.zeros(shape)}


def i2v(vae, *size):
    return nodes_wan.WanImageToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, start_image=picture(), clip_vision_output=ClipVision()
    ).result


def flf(vae, *size):
    return nodes_wan.WanFirstLastFrameToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, start_image=picture(), end_image=picture(seed=2)
    ).result


def fun(vae, *size):
    return nodes_wan.WanFunControlToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, control_video=picture(frames=LENGTH),
        start_image=picture(), clip_vision_output=ClipVision(),
    ).result  # fmt: skip


def fun22(vae, *size):
    return nodes_wan.Wan22FunControlToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, ref_image=picture(), control_video=picture(frames=LENGTH)
    ).result


def vace(vae, *size):
    mask = (picture(frames=LENGTH, seed=4)[..., 0] > 0.5).float()
    return nodes_wan.WanVaceToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, 1.0, control_video=picture(frames=LENGTH),
        control_masks=mask,
    ).result[:3]  # fmt: skip


def phantom(vae, *size):
    positive, _, negative, latent = nodes_wan.WanPhantomSubjectToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, picture(frames=2)
    ).result
    return positive, negative, latent


def camera(vae, *size):
    rays = noise(1, 24, 3, *size[::-1])
    return nodes_wan.WanCameraImageToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, start_image=picture(), camera_conditions=rays
    ).result


def animate(vae, *size):
    return nodes_wan.WanAnimateToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, 5, 0, reference_image=picture(),
        clip_vision_output=ClipVision(), face_video=picture(frames=LENGTH),
        pose_video=picture(frames=LENGTH, seed=5),
    ).result[:3]  # fmt: skip


def s2v(vae, *size):
    *made, _ = nodes_wan.wan_sound_to_video(
        *texts(), vae, *size, LENGTH, 1, ref_image=picture(),
        control_video=picture(frames=LENGTH),
    )  # fmt: skip
    return made


def scail(vae, *size, **masks):
    from comfy_extras import nodes_scail

    return nodes_scail.WanSCAILToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, 1.0, 0.0, 1.0, 0, 5, reference_image=picture(),
        clip_vision_output=ClipVision(), pose_video=picture(frames=LENGTH, seed=5), **masks,
    ).result[:3]  # fmt: skip


def scail2(vae, *size):
    """With the masks of persons that SCAIL-2 adds, in the poses and in the reference."""
    masks = {"pose_video_mask": red_half(LENGTH), "reference_image_mask": red_half(1)}
    return scail(vae, *size, **masks)


def red_half(frames):
    """A mask of one person: the left half, red on black."""
    mask = torch.zeros_like(picture(frames=frames))
    mask[:, :, : mask.shape[2] // 2, 0] = 1
    return mask


def hunyuan(vae, *size):
    return *texts(64, pooled_output=noise(1, POOLED)), video(vae, *size)[2]


def hunyuan_i2v(vae, *size):
    made = [
        nodes_hunyuan.HunyuanImageToVideo.execute(
            cond, vae, *size, LENGTH, 1, "v1 (concat)", picture()
        ).result
        for cond in texts(64, pooled_output=noise(1, POOLED))
    ]
    return made[0][0], made[1][0], made[0][1]


def hunyuan15(_, *size):
    return nodes_hunyuan.HunyuanVideo15ImageToVideo.execute(
        *texts(64, pooled_output=noise(1, POOLED)),
        Hunyuan15Vae(),
        *size,
        LENGTH,
        1,
        picture(),
        ClipVision(1152, 9),
    ).result


def flux(vae, width, height):
    made = texts(64, pooled_output=noise(1, POOLED), guidance=3.5)
    return *made, {"samples": torch.zeros(1, 16, height // 8, width // 8)}


def qwen(vae, width, height):
    return *texts(64), {"samples": torch.zeros(1, 16, 1, height // 8, width // 8)}


T2V, I2V = {"model_type": "t2v"}, {"model_type": "i2v"}
ONE_GUIDANCE = {"cfg": (1.0, 1.0)}
FAMILIES = {
    "Wan 2.1 T2V": TinyFamily(state=lambda: wan_state(wan.WanModel, 13, **T2V), make=video),
    "Wan 2.1 I2V": TinyFamily(
        state=lambda: wan_state(wan.WanModel, 1, **I2V, in_dim=36), make=i2v),
    "Wan 2.2 A14B T2V": TinyFamily(
        state=lambda: wan_state(wan.WanModel, 14, **T2V),
        second=lambda: wan_state(wan.WanModel, 15, **T2V), make=video),
    "Wan 2.2 A14B I2V": TinyFamily(
        state=lambda: wan_state(wan.WanModel, 2, **T2V, in_dim=36),
        second=lambda: wan_state(wan.WanModel, 16, **T2V, in_dim=36), make=flf),
    "Wan 2.2 5B": TinyFamily(
        state=lambda: wan_state(wan.WanModel, 17, **T2V, in_dim=48, out_dim=48),
        make=functools.partial(video, channels=48, cell=16)),
    "VACE": TinyFamily(
        state=lambda: wan_state(wan.VaceWanModel, 5, vace_layers=1, vace_in_dim=96), make=vace),
    "Fun Control": TinyFamily(
        state=lambda: wan_state(wan.WanModel, 3, **I2V, in_dim=48), make=fun),
    "Fun Control 2.2": TinyFamily(
        state=lambda: wan_state(wan.WanModel, 4, **T2V, in_dim=52, in_dim_ref_conv=16),
        make=fun22),
    "Fun Camera": TinyFamily(
        state=lambda: wan_state(wan.CameraWanModel, 7, model_type="camera_2.2", in_dim=36),
        make=camera),
    "Animate": TinyFamily(
        state=lambda: wan_state(wan_animate.AnimateWanModel, 8, in_dim=36, num_layers=5),
        make=animate, loaded=without_face_network),
    "SCAIL": TinyFamily(state=scail_state, make=scail),
    "SCAIL-2": TinyFamily(state=lambda: scail_state("SCAIL2WanModel"), make=scail2),
    "S2V": TinyFamily(
        state=lambda: wan_state(wan.WanModel_S2V, 9, num_layers=5, audio_inject_layers=[0, 4]),
        make=s2v),
    "Phantom": TinyFamily(state=lambda: wan_state(wan.WanModel, 6, **T2V), make=phantom),
    "HunyuanVideo": TinyFamily(
        state=lambda: hunyuan_state(18), make=hunyuan, **ONE_GUIDANCE),
    "HunyuanVideo I2V": TinyFamily(
        state=lambda: hunyuan_state(11, in_channels=33), make=hunyuan_i2v, **ONE_GUIDANCE),
    "HunyuanVideo 1.5": TinyFamily(
        state=lambda: hunyuan_state(
            12, **{**checkpoints.HUNYUAN_15, "meanflow_sum": False}), make=hunyuan15),
    "Flux": TinyFamily(state=flux_state, make=flux, building=small_flux, **ONE_GUIDANCE),
    "Qwen-Image": TinyFamily(state=qwen_state, make=qwen, building=small_qwen),
}  # fmt: skip
"""Families whose latent is one picture or video."""
