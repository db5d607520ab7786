"""Chunks of time inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/chunk_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import av_models  # noqa: E402
import checkpoints  # noqa: E402
import inside  # noqa: E402
import torch  # noqa: E402
from av_refining import model as joint_model  # noqa: E402
from inprocess import refused  # noqa: E402
from inside import noise  # noqa: E402

RESULTS = inside.enter()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
from comfy_extras.nodes_context_windows import ContextWindowsManualNode  # noqa: E402
from surf.nodes.host.refine import RefineSettings, refine  # noqa: E402
from surf.nodes.host.refine.tiling import with_tiles  # noqa: E402
from surf.nodes.host.refine.timeline import Timeline  # noqa: E402
from surf.nodes.host.resume import QueuedNode  # noqa: E402
from surf.nodes.host.resume import run as resume_run  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.surf_core.chunks import in_chunks  # noqa: E402
from surf.surf_core.tiny.model import FRAMES  # noqa: E402

FRAMES_OF_33 = 9
SIZE = (1, 16, 14, 8, 12)
START = noise(*SIZE)
SETTINGS = {
    "seed": 3, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 2, "cfg": 2.0, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip
LOADED = {}


def load(name="tiny_wan_t2v"):
    if name not in LOADED:
        LOADED[name] = comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))
    return LOADED[name]


def prompt(seed=1, width=4096, **options):
    return [[noise(1, 8, width, seed=seed), options]]


def sample(model, start=START, steps=2, positive=None, cfg=1.0, mask=None):
    return comfy.sample.sample_custom(
        model, noise(*start.shape, seed=9), cfg, comfy.samplers.sampler_object("euler"),
        torch.linspace(0.65, 0, steps + 1), positive or prompt(1), prompt(2), start,
        noise_mask=mask, disable_pbar=True, seed=3,
    )  # fmt: skip


def refined(latent, patcher=None, positive=None, **changes):
    return SurfRefiner.execute(
        model=patcher or load(), positive=positive or prompt(1), negative=prompt(2),
        latent=latent, **(SETTINGS | changes),
    ).args[0]["samples"]  # fmt: skip


class CallsByTime:
    """Stand in front of a model's apply_model: note the calls, fail above a limit, be killed."""

    def __init__(self, model, limit=10**9, stop=10**9):
        self.inner, self.limit, self.apply = model.model, limit, model.model.apply_model
        self.calls, self.stop = [], stop

    def __enter__(self):
        self.inner.apply_model = self
        return self.calls

    def __exit__(self, *raised):
        del self.inner.apply_model

    def __call__(self, x, t, **conditioning):
        self.calls.append((tuple(x.shape), conditioning))
        if len(self.calls) == self.stop:
            raise Killed
        if x[0, 0].numel() > self.limit:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
        return self.apply(x, t, **conditioning)


def case_one_chunk_is_the_plain_model_bit_for_bit():
    model = load()
    for mask in (None, (noise(1, 1, *SIZE[2:]) > 0).float()):
        plain = sample(model, cfg=4.5, mask=mask)
        for frames in (0, 53, 5000):
            clone = with_tiles(model, START, 0, chunk_frames=frames)
            assert torch.equal(sample(clone, cfg=4.5, mask=mask), plain)
    assert "model_function_wrapper" not in model.model_options


def case_an_evaluation_is_the_blend_of_the_hosts_own():
    model = load()
    comfy.model_management.load_models_gpu([model])
    x, t, text = noise(*SIZE, seed=5), torch.tensor([0.5]), prompt(1)[0][0]
    options = {"c_crossattn": text, "transformer_options": {}}
    clone = with_tiles(model, START, 0, chunk_frames=33)
    apply = model.model.apply_model
    got = clone.model_options["model_function_wrapper"](
        apply, {"input": x, "timestep": t, "c": options, "cond_or_uncond": [0]}
    )
    parts = Timeline(model, SIZE[2]).chunks(SIZE[2], FRAMES_OF_33)
    assert len(parts) > 1
    assert torch.equal(got, in_chunks(lambda part, _: apply(part, t, **options), x, parts))
    assert not torch.equal(got, apply(x, t, **options))


def case_the_host_says_which_model_it_is_and_none_sees_more_than_it_was_made_for():
    known = {"tiny_wan_t2v": 81, "tiny_wan_vace": 81, "tiny_wan22_i2v": 81, "tiny_wan22_5b": 121,
             "tiny_hunyuan": 129, "tiny_hunyuan15": 121}  # fmt: skip
    for name, frames in known.items():
        time = Timeline(load(name), 200)
        assert time.pixels(time.made_for) == frames, name
    latent = {"samples": noise(1, 16, 25, 4, 4)}
    with CallsByTime(load()) as calls:
        out = refined(latent, scale=1.0, steps=1, cfg=1.0)
    assert out.isfinite().all()
    assert out.shape[2] == 25
    assert 1 < len(calls) < 4
    assert max(shape[2] for shape, _ in calls) <= 21


def case_the_embedded_models_and_our_refiners_are_known():
    from surf.nodes.host.refiner import load_refiner, tiny_models
    from surf.surf_core.tiny.model import REFINER

    t2v, refiner, _, _ = tiny_models()
    assert Timeline(t2v, 20).made_for == Timeline(refiner, 20).made_for == FRAMES
    plain = load_refiner(str(REFINER))
    assert Timeline(plain, 200).made_for == 21
    latent = {"samples": noise(1, 16, 10, 8, 8)}
    with CallsByTime(refiner) as calls:
        words = [[torch.zeros(1, 3, 4096), {}]]
        given = {"positive": words, "sigma_start": 0.05, "cfg": 1.0}
        out = refined(latent, refiner, **given)
    assert out.isfinite().all()
    assert {shape[2] for shape, _ in calls} == {FRAMES}
    assert torch.equal(refined(latent, refiner, **given, chunk_frames=13), out)


def case_the_maps_of_conditioning_follow_the_chunks():
    size = SIZE[2:]
    image = {"concat_latent_image": noise(1, 16, *size), "concat_mask": torch.ones(1, 1, *size)}
    vace = {"vace_frames": [noise(1, 32, *size)], "vace_mask": [torch.ones(1, 64, *size)]}
    kinds = {
        "tiny_wan22_i2v": (image, "c_concat", 2),
        "tiny_wan_vace": ({**vace, "vace_strength": [1.0]}, "vace_context", 3),
        "tiny_wan_ref": ({"reference_latents": [noise(1, 16, 1, *size[1:])]}, "", 0),
        "tiny_wan_t2v": ({"time_dim_concat": noise(1, 16, 2, *size[1:])}, "", 0),
    }  # fmt: skip
    for name, (options, key, axis) in kinds.items():
        model = load(name)
        clone = with_tiles(model, START, 0, chunk_frames=33)
        parts = Timeline(model, SIZE[2]).chunks(SIZE[2], FRAMES_OF_33)
        with CallsByTime(model) as calls:
            assert sample(clone, steps=1, positive=prompt(1, **options)).isfinite().all()
        assert [shape[2] for shape, _ in calls] == [part.length for part in parts]
        for (_, conditioning), part in zip(calls, parts, strict=True):
            if key:
                assert conditioning[key].shape[axis] == part.length
        if key == "vace_context":
            whole = model.model.process_latent_in(options["vace_frames"][0][:, :16])
            cut = calls[-1][1][key][:, 0, :16].float()
            torch.testing.assert_close(cut, whole[:, :, parts[-1].start : parts[-1].stop])


def case_the_5b_models_mask_and_a_controlnet():
    model, start = load("tiny_wan22_5b"), noise(1, 48, 14, 8, 8)
    mask = torch.ones(1, 1, 14, 8, 8)
    mask[:, :, 0] = 0
    with CallsByTime(model) as calls:
        out = sample(with_tiles(model, start, 0, chunk_frames=33), start, steps=1, mask=mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, :, 0], start[:, :, 0], rtol=0, atol=1e-4)
    assert all(c["denoise_mask"].shape[2] == shape[2] for shape, c in calls)
    conds = {"positive": prompt(1, control=object())}
    refused(lambda: with_tiles(load(), START, 0, conds=conds, chunk_frames=33), "ControlNet")


def case_windows_masks_and_tiles_go_with_chunks():
    from surf.nodes.skip import SurfSkipMask

    latent = {"samples": noise(1, 16, 14, 16, 16)}
    plain = refined(latent, window=4, chunk_frames=33, tile=256, cfg=1.0, steps=1)
    assert plain.isfinite().all()
    again = refined(latent, window=4, chunk_frames=33, tile=256, cfg=1.0, steps=1)
    assert torch.equal(plain, again)
    mask = SurfSkipMask.execute(
        model=load(), latent=latent, predictor="detail", choose="keep ratio", keep=0.5, tau=3.0,
        resolution="by scale", scale=2.0, width=64, height=64, upsample="latent", dilate=0,
    ).args[0]  # fmt: skip
    part = refined(latent, mask=mask, chunk_frames=33, cfg=1.0, steps=1)
    kept = mask.mask.tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(part[:, :, ~kept], mask.upsampled.to(part)[:, :, ~kept])
    assert not torch.equal(part[:, :, kept], mask.upsampled.to(part)[:, :, kept])


def case_out_of_memory_goes_on_with_shorter_chunks():
    model = load()
    with CallsByTime(model, limit=9 * 8 * 12) as calls:
        got = sample(with_tiles(model, START, 0))
    lengths = [shape[2] for shape, _ in calls]
    assert lengths[0] == 14
    assert lengths.count(14) == 1, "finished steps stay"
    assert max(lengths[-3:]) <= 9
    time = Timeline(model, 14)
    same = [torch.equal(sample(with_tiles(model, START, 0, chunk_frames=time.pixels(n))), got)
            for n in range(6, 10)]  # fmt: skip
    assert any(same)


def case_context_windows_of_the_model_are_left_to_cut_time():
    settings = {"context_length": 8, "context_overlap": 2, "context_schedule": "standard_static"}
    settings |= {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 2}
    model = ContextWindowsManualNode.execute(load(), freenoise=False, **settings).args[0]
    latent = {"samples": START}
    with CallsByTime(model) as calls:
        out = refined(latent, model, scale=1.0, cfg=1.0)
    assert out.isfinite().all()
    assert {shape[2] for shape, _ in calls} <= {8, 9}
    assert torch.equal(out, refined(latent, model, scale=1.0, cfg=1.0))
    refused(lambda: refined(latent, model, scale=1.0, chunk_frames=33), "windows of 8")


class Killed(BaseException):
    """Ends a run at an evaluation."""


def case_a_killed_run_under_context_windows_goes_on_to_the_same_bits():
    """Of the schedules, the uniform ones move their windows from step to step."""
    user, graph = tempfile.mkdtemp(), {"1": {"class_type": "SurfRefiner", "inputs": {}}}
    folder_paths.set_user_directory(user)
    settings = {"context_length": 8, "context_overlap": 2, "context_stride": 1, "dim": 2}
    for schedule, freenoise in (("standard_static", False), ("looped_uniform", True)):
        model = ContextWindowsManualNode.execute(
            load(), context_schedule=schedule, closed_loop=True, fuse_method="pyramid",
            freenoise=freenoise, **settings,
        ).args[0]  # fmt: skip

        def run(model=model, **resume):
            chosen = SETTINGS | {"steps": 5, "cfg": 1.0}
            names = ("seed", "sigma_start", "steps", "cfg", "window", "low_band_lock",
                     "colour_match")  # fmt: skip
            return refine(
                model, prompt(1), prompt(2), {"samples": START},
                RefineSettings(**{name: chosen[name] for name in names}), upsample="latent",
                resolution="by scale", scale=1.0, width=64, height=64, **resume,
            )[0]["samples"]  # fmt: skip

        with CallsByTime(model) as calls:
            undisturbed = run()
        kept = {"resume": QueuedNode(find=graph.get, number="1", leave_out=())}
        with mock.patch.object(resume_run, "SHARE", 0):
            with CallsByTime(model, stop=3 * len(calls) // 5 + 1), contextlib.suppress(Killed):
                run(**kept)
            assert len(list(Path(user).rglob("*.run.safetensors"))) == 1
            with CallsByTime(model) as left:
                assert torch.equal(run(**kept), undisturbed)
        assert len(left) < len(calls), (len(left), len(calls))
        assert not list(Path(user).rglob("*.run.safetensors"))


def case_every_chunk_hears_its_sound_and_has_its_keyframes():
    """MiniMax H3 and LTX-2, with chunks by hand; the audio comes out as it went in."""
    av_models.check_known()
    from av_refining import FRAMES as PIXELS
    from av_refining import preview, refined

    for name, frames, by_hand in (("tiny_minimax_h3", 73, 39), ("tiny_ltx23", 121, 65)):
        model = joint_model(name)
        PIXELS[name] = frames
        latent = preview(name)
        video, audio = latent["samples"].unbind()
        more = {}
        if name == "tiny_minimax_h3":
            keyframes = [av_models.keyframe(0), av_models.keyframe(72, sound=4)]
            more["positive"] = av_models.prompt(name, minimax_keyframes=keyframes)
        time = Timeline(model, video.shape[2])
        parts = time.chunks(video.shape[2], time.by_hand(by_hand))
        assert len(parts) > 1, name
        with CallsByTime(model) as calls:
            out = refined(name, latent, chunk_frames=by_hand, **more)
        assert out[0].isfinite().all()
        assert torch.equal(out[1], audio)
        for (_, conditioning), part in zip(calls, parts * 3, strict=True):
            mine, heard = conditioning["latent_shapes"]
            sound = time.sound(part, video.shape[2], audio.shape[3 if "h3" in name else 2])
            assert mine[2] == part.length
            assert heard[3 if "h3" in name else 2] == sound.stop - sound.start
        whole = refined(name, latent, chunk_frames=frames, **more)
        assert torch.equal(whole[0], refined(name, latent, **more)[0])
        assert not torch.equal(whole[0], out[0])


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
