"""Conditioning of image-to-video and control families at other sizes, inside a real host.

    cd $COMFYUI_PATH && python tests/host/family_cases.py RESULTS.json

Run by test_inside.py, all cases at once. Every function `case_*` asserts. Each family has a tiny
model and the conditioning that its stock node makes.
"""

import logging

import checkpoints
import inside
import torch
from inprocess import ClipVision, refused, same, text
from inside import noise

RESULTS = inside.enter()

import comfy.ldm.hunyuan_video.model as hunyuan  # noqa: E402
import comfy.ldm.wan.model as wan  # noqa: E402
import comfy.ldm.wan.model_animate as animate  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
from comfy_extras import nodes_hunyuan, nodes_wan  # noqa: E402
from inprocess import Host  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402

LENGTH = 9
MADE = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32, "device": "cpu"}


def picture(height=300, width=440, frames=1, seed=1):
    """A smooth picture, or several, larger than any video here."""
    small = noise(frames, 3, 5, 7, seed=seed).sigmoid()
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return large.clamp(0, 1).movedim(1, -1)


def wan_model(kind, seed, **arguments):
    """A Wan of a class of the host, loaded as from its file."""
    sizes = {**checkpoints.WAN, "in_dim": 16, "out_dim": 16, **arguments}
    state = checkpoints.randomise(kind(**sizes, **MADE), 400 + seed)
    return comfy.sd.load_diffusion_model_state_dict(state)


def hunyuan_model(seed, **changes):
    sizes = {**checkpoints.HUNYUAN, **changes}
    state = checkpoints.randomise(hunyuan.HunyuanVideo(**sizes, **MADE), 400 + seed)
    return comfy.sd.load_diffusion_model_state_dict(state)


HUNYUAN15 = {
    "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
    "vision_in_dim": 1152, "byt5": True, "use_cond_type_embedding": True,
    "guidance_embed": False,
}  # fmt: skip


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
    ).result  # fmt: skip


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


def animate_video(vae, *size):
    return nodes_wan.WanAnimateToVideo.execute(
        *texts(), vae, *size, LENGTH, 1, 5, 0, reference_image=picture(),
        clip_vision_output=ClipVision(), face_video=picture(frames=LENGTH),
        pose_video=picture(frames=LENGTH, seed=5),
    ).result  # fmt: skip


def s2v(vae, *size):
    *made, _ = nodes_wan.wan_sound_to_video(
        *texts(), vae, *size, LENGTH, 1, ref_image=picture(),
        control_video=picture(frames=LENGTH),
    )  # fmt: skip
    return made


def hunyuan_i2v(vae, *size):
    made = [
        nodes_hunyuan.HunyuanImageToVideo.execute(
            cond, vae, *size, LENGTH, 1, "v1 (concat)", picture()
        ).result
        for cond in texts(64, pooled_output=noise(1, 768))
    ]
    return made[0][0], made[1][0], made[0][1]


def hunyuan15(_, *size):
    return nodes_hunyuan.HunyuanVideo15ImageToVideo.execute(
        *texts(64, pooled_output=noise(1, 768)),
        Hunyuan15Vae(),
        *size,
        LENGTH,
        1,
        picture(),
        ClipVision(1152, 729),
    ).result


FAMILIES = {
    "i2v": (lambda: wan_model(wan.WanModel, 1, model_type="i2v", in_dim=36), i2v),
    "flf": (lambda: wan_model(wan.WanModel, 2, model_type="t2v", in_dim=36), flf),
    "fun": (lambda: wan_model(wan.WanModel, 3, model_type="i2v", in_dim=48), fun),
    "fun 2.2": (
        lambda: wan_model(wan.WanModel, 4, model_type="t2v", in_dim=52, in_dim_ref_conv=16), fun22),
    "vace": (lambda: wan_model(wan.VaceWanModel, 5, vace_layers=1, vace_in_dim=96), vace),
    "phantom": (lambda: wan_model(wan.WanModel, 6, model_type="t2v"), phantom),
    "camera": (
        lambda: wan_model(wan.CameraWanModel, 7, model_type="camera_2.2", in_dim=36), camera),
    "animate": (
        lambda: wan_model(animate.AnimateWanModel, 8, in_dim=36, num_layers=5), animate_video),
    "s2v": (
        lambda: wan_model(wan.WanModel_S2V, 9, num_layers=5, audio_inject_layers=[0, 4]), s2v),
    "hunyuan i2v": (lambda: hunyuan_model(11, in_channels=33), hunyuan_i2v),
    "hunyuan 1.5": (lambda: hunyuan_model(12, **HUNYUAN15), hunyuan15),
}  # fmt: skip
HIGH, LOW, TARGET = (256, 192), (192, 144), (384, 288)
HOST = Host()
REFINE = {
    "seed": 3, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 1, "cfg": 4.5, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


class BesideRecorder:
    """A clone of a model that notes the tensors of its calls: (size, name -> tensor)."""

    def __init__(self, model):
        self.model, self.calls = model.clone(), []
        calls = self.calls

        # A function: the host deep-copies an object.
        def run(apply_model, args):
            c = {name: x.clone() for name, x in args["c"].items() if torch.is_tensor(x)}
            calls.append((tuple(args["input"].shape[-2:]), c))
            return apply_model(args["input"], args["timestep"], **args["c"])

        self.model.set_model_unet_function_wrapper(run)

    def take(self):
        calls = list(self.calls)
        self.calls.clear()
        return calls


def on_grid(call):
    """All that lies beside the video has its rows and columns, or its pixels."""
    size, c = call
    names = set()
    for name, x in c.items():
        # S2V's reference has tokens of its own, faces are 512 pixels for any video.
        if (
            x.ndim >= 4
            and name != "face_pixel_values"
            and not (name == "reference_latent" and x.ndim == 5)
        ):
            unit = 8 if name == "camera_conditions" else 1
            assert tuple(x.shape[-2:]) == (size[0] * unit, size[1] * unit), (name, x.shape, size)
            names.add(name)
    return names


def plain(recorder, conds, latent):
    """What a stock sampler hands the model at the size of a latent."""
    x = latent["samples"]
    comfy.sample.sample_custom(
        recorder.model, noise(*x.shape, seed=9), 4.5, comfy.samplers.sampler_object("euler"),
        torch.tensor([0.65, 0.0]), *conds, x, disable_pbar=True, seed=3,
    )  # fmt: skip
    [call] = recorder.take()
    return call


def refine(model, latent, conds, **changes):
    return SurfRefiner.execute(model, *conds, latent, **(REFINE | changes)).result[0]


class LogLines(logging.Handler):
    """The lines of the pack's log."""

    def __enter__(self):
        self.lines, self.logger = [], logging.getLogger("surf.nodes.host.conditioning.resize")
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(self)
        return self.lines

    def __exit__(self, *_):
        self.logger.removeHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())


def check_family(name):
    """Resized and said; or as the node makes it at that size, without a word."""
    load, make = FAMILIES[name]
    recorder, vae = BesideRecorder(load()), comfy.sd.VAE(sd=checkpoints.wan_vae())
    high, low, target = (make(vae, *size) for size in (HIGH, LOW, TARGET))
    latent, run = high[2], {"steps": 2, "switch_step": 1, "low_scale": 0.75}
    grids = {
        size: tuple(made[2]["samples"].shape[-2:])
        for size, made in ((HIGH, high), (LOW, low), (TARGET, target))
    }
    with LogLines() as lines:
        preview, _ = HOST.ours(recorder.model, latent, *high[:2], **run)
    calls = recorder.take()
    assert [size for size, _ in calls] == [grids[HIGH], grids[LOW]], calls
    names = [on_grid(call) for call in calls]
    assert names[0] == names[1] != set()
    [line] = lines
    assert "positive_low" in line, line
    assert "192 x 144" in line, line
    with LogLines() as lines:
        refine(recorder.model, preview, high[:2])
    [call] = recorder.take()
    assert call[0] == grids[TARGET]
    assert on_grid(call) == names[0]
    [line] = lines
    assert "384 x 288" in line, line
    with LogLines() as lines:
        made = dict(zip(("positive_low", "negative_low"), low[:2], strict=True))
        HOST.ours(recorder.model, latent, *high[:2], **run, **made)
        got = recorder.take()[1]
        refine(recorder.model, preview, target[:2])
        [refined] = recorder.take()
    assert not lines, lines
    for call, made in ((got, low), (refined, target)):
        size, expected = plain(recorder, made[:2], made[2])
        assert size == call[0]
        for key in names[0]:
            same(call[1][key], expected[key])
    swapped = dict(zip(("positive_low", "negative_low"), target[:2], strict=True))
    refused(
        lambda: HOST.ours(recorder.model, latent, *high[:2], **run, **swapped), "for the low size"
    )
    mixed = (high[0], target[1])
    refused(lambda: refine(recorder.model, preview, mixed), "one size")
    assert not recorder.calls


def case_wan_i2v_is_resized_or_encoded_at_each_size():
    check_family("i2v")


def case_first_and_last_frame_are_resized_or_encoded_at_each_size():
    check_family("flf")


def case_fun_control_is_resized_or_encoded_at_each_size():
    check_family("fun")
    check_family("fun 2.2")


def case_vace_is_resized_or_encoded_at_each_size():
    check_family("vace")


def case_phantom_and_camera_are_resized_or_encoded_at_each_size():
    check_family("phantom")
    check_family("camera")


def case_animate_and_s2v_are_resized_or_encoded_at_each_size():
    check_family("animate")
    check_family("s2v")


def case_hunyuan_video_is_resized_or_encoded_at_each_size():
    check_family("hunyuan i2v")
    check_family("hunyuan 1.5")


def check_area(name):
    load, make = FAMILIES[name]
    recorder, vae = BesideRecorder(load()), comfy.sd.VAE(sd=checkpoints.wan_vae())
    positive, negative, latent = make(vae, *HIGH)[:3]
    areas = [[positive[0][0], {**positive[0][1], "area": (8, 8, 4, 4)}]]
    refused(lambda: HOST.ours(recorder.model, latent, areas, negative), "do not go together")
    small = {"samples": noise(*latent["samples"].shape[:3], 12, 16)}
    refused(lambda: refine(recorder.model, small, (areas, negative)), "do not go together")
    assert not recorder.calls


def case_an_area_beside_what_the_host_does_not_cut_is_refused():
    for name in ("vace", "phantom", "camera", "fun 2.2"):
        check_area(name)


def case_an_area_of_hunyuan_video_comes_out_in_whole_patches():
    recorder, latent = BesideRecorder(hunyuan_model(11)), {"samples": torch.zeros(1, 16, 3, 24, 32)}
    (positive, negative), area = texts(64, pooled_output=noise(1, 768)), (10, 14, 2, 6)
    areas = [[positive[0][0], {**positive[0][1], "area": area}]]
    preview, _ = HOST.ours(recorder.model, latent, areas, negative, steps=2, switch_step=1)
    refine(recorder.model, preview, (areas, negative), scale=1.5)
    sizes = {size for size, _ in recorder.take()}
    assert sizes == {(10, 14), (24, 32), (4, 8), (12, 16), (8, 10), (18, 24)}, sizes
    odd = [[positive[0][0], {**positive[0][1], "area": (9, 14, 2, 6)}]]
    refused(lambda: HOST.ours(recorder.model, latent, odd, negative), "multiples of 16")
    assert not recorder.calls


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
