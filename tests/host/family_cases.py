"""Conditioning of image-to-video and control families at other sizes, inside a real host.

    cd $COMFYUI_PATH && python tests/host/family_cases.py RESULTS.json

Run by test_inside.py, all cases at once. Every function `case_*` asserts.
"""

import logging

import inprocess  # noqa: F401 for families.py
import inside
import torch
from inprocess import refused, same
from inside import noise

RESULTS = inside.enter()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
from inprocess import Host  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402

families = inside.load("families")
HIGH, LOW, TARGET = (128, 64), (64, 32), (192, 96)
HOST = Host()
REFINE = {
    "seed": 3, "resolution": "by scale", "scale": 3.0, "width": 64, "height": 64,
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
    family = families.FAMILIES[name]
    recorder, vae = BesideRecorder(family.load()), families.vae()
    high, low, target = (family.make(vae, *size) for size in (HIGH, LOW, TARGET))
    latent, run = high[2], {"steps": 2, "switch_step": 1, "low_scale": 0.5}
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
    assert "64 x 32" in line, line
    with LogLines() as lines:
        refine(recorder.model, preview, high[:2])
    [call] = recorder.take()
    assert call[0] == grids[TARGET]
    assert on_grid(call) == names[0]
    [line] = lines
    assert "192 x 96" in line, line
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
    check_family("Wan 2.1 I2V")


def case_first_and_last_frame_are_resized_or_encoded_at_each_size():
    check_family("Wan 2.2 A14B I2V")


def case_fun_control_is_resized_or_encoded_at_each_size():
    check_family("Fun Control")
    check_family("Fun Control 2.2")


def case_vace_is_resized_or_encoded_at_each_size():
    check_family("VACE")


def case_phantom_and_camera_are_resized_or_encoded_at_each_size():
    check_family("Phantom")
    check_family("Fun Camera")


def case_animate_and_s2v_are_resized_or_encoded_at_each_size():
    check_family("Animate")
    check_family("S2V")


def case_hunyuan_video_is_resized_or_encoded_at_each_size():
    check_family("HunyuanVideo I2V")
    check_family("HunyuanVideo 1.5")


def check_area(name):
    family = families.FAMILIES[name]
    recorder = BesideRecorder(family.load())
    positive, negative, latent = family.make(families.vae(), *HIGH)
    areas = [[positive[0][0], {**positive[0][1], "area": (4, 8, 2, 4)}]]
    refused(lambda: HOST.ours(recorder.model, latent, areas, negative), "do not go together")
    small = {"samples": noise(*latent["samples"].shape[:3], 4, 8)}
    refused(lambda: refine(recorder.model, small, (areas, negative)), "do not go together")
    assert not recorder.calls


def case_an_area_beside_what_the_host_does_not_cut_is_refused():
    for name in ("VACE", "Phantom", "Fun Camera", "Fun Control 2.2"):
        check_area(name)


def case_an_area_of_hunyuan_video_comes_out_in_whole_patches():
    recorder, latent = (
        BesideRecorder(families.FAMILIES["HunyuanVideo"].load()),
        {"samples": torch.zeros(1, 16, 3, 24, 32)},
    )
    (positive, negative), area = families.texts(64, pooled_output=noise(1, 768)), (10, 14, 2, 6)
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
