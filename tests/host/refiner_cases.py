"""The Surf Refiner inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/refiner_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import latent_preview  # noqa: E402
from surf.nodes.host.refiner.loading import TRAITS_KEY, RefinerTraits  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.surf_core.lowband import low_band, wavelet_match  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402


def load(name="tiny_wan_t2v"):
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))


def load_vae():
    return comfy.sd.VAE(sd=checkpoints.wan_vae())


def prompt(seed, **options):
    return [[noise(1, 8, 4096, seed=seed), options]]


DEFAULTS = {
    "seed": 3, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "latent", "sigma_start": 0.65, "steps": 3, "cfg": 4.5, "window": 2,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip


def run(model, samples, positive=None, negative=None, **changes):
    latent = samples if isinstance(samples, dict) else {"samples": samples}
    texts = positive or prompt(1), negative or prompt(2)
    return SurfRefiner.execute(model, *texts, latent, **{**DEFAULTS, **changes}).result[0]


PREVIEW = noise(1, 16, 3, 4, 6)


def by_hand(model, start, settings):
    """The refiner's path without its code: one noise draw, Euler steps, guidance, no windows."""
    inner = model.model
    comfy.model_management.load_models_gpu([model])
    eps = torch.randn(start.shape, generator=torch.manual_seed(settings["seed"]))
    sigma = settings["sigma_start"]
    z = (1 - sigma) * inner.process_latent_in(start) + sigma * eps
    sigmas = torch.linspace(sigma, 0, settings["steps"] + 1).tolist()
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        time = torch.tensor([now]).expand(len(z))
        yes, no = (
            inner.apply_model(z, time, c_crossattn=p[0][0], transformer_options={})
            for p in (prompt(1), prompt(2))
        )
        x0 = no + settings["cfg"] * (yes - no)
        z = z + (after - now) * (z - x0) / now
    return inner.process_latent_out(z)


def case_the_node_equals_an_euler_loop_by_hand():
    model = load()
    out = run(model, PREVIEW, window=0)["samples"]
    start = resize(PREVIEW, (8, 12), "bilinear")
    torch.testing.assert_close(out, by_hand(model, start, DEFAULTS), rtol=0, atol=2e-4)


def case_window_zero_is_the_plain_model_bit_for_bit():
    model = load()
    start = resize(PREVIEW, (8, 12), "bilinear")
    plain = comfy.sample.sample_custom(
        model, comfy.sample.prepare_noise(start, 3), 4.5,
        comfy.samplers.sampler_object("euler"), torch.linspace(0.65, 0, 4),
        prompt(1), prompt(2), start, disable_pbar=True, seed=3,
    )  # fmt: skip
    assert torch.equal(run(model, PREVIEW, window=0)["samples"], plain)
    windows = run(model, PREVIEW, window=3)["samples"]
    torch.testing.assert_close(windows, plain, rtol=0, atol=1e-4)


def case_a_compiled_model_keeps_its_windows_when_the_grid_changes():
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = load()
    compiled = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(compiled, backend="eager", options=options)
    for preview in (PREVIEW, noise(1, 16, 5, 6, 4)):
        expected, got = (run(m, preview, steps=2)["samples"] for m in (model, compiled))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def case_the_node_is_deterministic_and_does_not_mutate_its_inputs():
    model, samples = load(), PREVIEW.clone()
    latent = {"samples": samples, "noise_mask": torch.ones(1, 1, 3, 4, 6), "batch_index": [5]}
    positive = prompt(1)
    options = dict(model.model_options["transformer_options"])
    first = run(model, latent, positive, low_band_lock=0.5, colour_match=True)
    again = run(model, latent, positive, low_band_lock=0.5, colour_match=True)
    assert torch.equal(first["samples"], again["samples"])
    assert torch.equal(samples, PREVIEW)
    assert latent["samples"] is samples
    assert model.model_options["transformer_options"] == options
    assert "sampler_post_cfg_function" not in model.model_options
    assert first["noise_mask"].shape[-2:] == (8, 12)
    assert first["batch_index"] == [5]
    other = run(model, latent, positive, seed=2**64 - 1, low_band_lock=0.5, colour_match=True)
    assert not torch.equal(first["samples"], other["samples"])


def case_pixels_go_through_the_vae_for_any_frames_and_batch():
    model, vae = load(), load_vae()
    for batch, frames in ((1, 1), (1, 2), (2, 3)):
        preview = noise(batch, 16, frames, 4, 6)
        out = run(model, preview, upsample="pixel", vae=vae, steps=1)["samples"]
        assert out.shape == (batch, 16, frames, 8, 12), out.shape
        assert out.isfinite().all()
    both = run(model, {"samples": preview, "batch_index": [0, 1]}, upsample="pixel", vae=vae)
    alone = run(model, {"samples": preview[1:], "batch_index": [1]}, upsample="pixel", vae=vae)
    torch.testing.assert_close(both["samples"][1:], alone["samples"], rtol=0, atol=1e-4)


def case_the_lock_keeps_the_preview_and_earlier_functions_run():
    model, seen = load(), []

    def earlier(args):
        seen.append(float(args["sigma"][0]))
        return args["denoised"] + 0.25

    model.set_model_sampler_post_cfg_function(earlier)
    start = resize(PREVIEW, (8, 12), "bilinear")
    locked = run(model, PREVIEW, low_band_lock=1.0)["samples"]
    torch.testing.assert_close(low_band(locked, 2.0), low_band(start, 2.0), rtol=0, atol=1e-4)
    assert len(seen) == 3
    assert len(model.model_options["sampler_post_cfg_function"]) == 1
    free = run(model, PREVIEW)["samples"]
    part = run(model, PREVIEW, low_band_lock=0.34)["samples"]
    assert not torch.equal(part, free)
    assert not torch.equal(part, locked)
    assert torch.equal(run(model, PREVIEW, low_band_lock=0.1)["samples"], free)


def case_colour_match_is_the_wavelet_match_with_the_upsampled_preview():
    model = load()
    start = resize(PREVIEW, (8, 12), "bilinear")
    free, matched = (run(model, PREVIEW, colour_match=match)["samples"] for match in (False, True))
    torch.testing.assert_close(matched, wavelet_match(free, start), rtol=0, atol=1e-5)
    far, near = ((x - start).mean((-2, -1)).abs().mean() for x in (free, matched))
    assert near < 0.5 * far, (far, near)


def case_colours_stay_where_a_noise_mask_keeps_the_preview():
    model, mask = load(), torch.ones(1, 1, 3, 4, 6)
    mask[..., :3] = 0
    preview = {"samples": PREVIEW, "noise_mask": mask}
    free, matched = (run(model, preview, colour_match=on)["samples"] for on in (False, True))
    changing = comfy.sampler_helpers.prepare_mask(mask, free.shape, free.device)
    changing = changing.expand(free.shape)
    assert (changing == 0).any()
    assert (changing == 1).any()
    assert torch.equal(matched[changing == 0], free[changing == 0])
    everywhere = wavelet_match(free, resize(PREVIEW, (8, 12), "bilinear"))
    assert (everywhere - free)[changing == 0].abs().max() > 0.05
    torch.testing.assert_close(matched[changing == 1], everywhere[changing == 1])


def case_progress_is_one_bar_and_an_interrupt_leaves_nothing_behind():
    model, bars = load(), []

    class RefinerBar(comfy.utils.ProgressBar):
        def __init__(self, total, *args, **kwargs):
            super().__init__(total, *args, **kwargs)
            bars.append((total, []))

        def update_absolute(self, value, total=None, preview=None):
            bars[-1][1].append(value)

    whole = run(model, PREVIEW)["samples"]
    original, comfy.utils.ProgressBar = comfy.utils.ProgressBar, RefinerBar
    run(model, PREVIEW)
    comfy.utils.ProgressBar = original
    assert bars == [(3, [1, 2, 3])], bars
    prepare = latent_preview.prepare_callback

    def stopping(*args, **kwargs):
        def callback(step, *rest):
            if step == 1:
                raise comfy.model_management.InterruptProcessingException

        return callback

    latent_preview.prepare_callback = stopping
    try:
        run(model, PREVIEW)
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("the interrupt was swallowed")
    finally:
        latent_preview.prepare_callback = prepare
    assert torch.equal(run(model, PREVIEW)["samples"], whole)


def case_traits_of_a_trained_refiner_come_first():
    model = load()
    expected = run(model, PREVIEW, sigma_start=0.8, window=0)["samples"]
    model.set_attachments(TRAITS_KEY, RefinerTraits(sigma_start=0.8, window=0))
    assert torch.equal(run(model, PREVIEW, sigma_start=0.3, window=2)["samples"], expected)


def case_vace_conditioning_fits_the_target():
    model = load("tiny_wan_vace")
    frames, masks = noise(1, 32, 3, 8, 12), torch.ones(1, 64, 3, 8, 12)
    options = {"vace_frames": [frames], "vace_mask": [masks], "vace_strength": [1.0]}
    out = run(model, PREVIEW, prompt(1, **options), prompt(2, **options))["samples"]
    assert out.shape == (1, 16, 3, 8, 12)
    assert out.isfinite().all()
    assert frames.shape == (1, 32, 3, 8, 12)


def case_image_conditioning_runs():
    model = load("tiny_wan22_i2v")
    options = {
        "concat_latent_image": noise(1, 16, 3, 4, 6), "concat_mask": torch.ones(1, 1, 3, 4, 6)
    }  # fmt: skip
    out = run(model, PREVIEW, prompt(1, **options), prompt(2, **options))["samples"]
    assert out.shape == (1, 16, 3, 8, 12)
    assert out.isfinite().all()


def case_hunyuan_video_runs_with_its_text_mask():
    model = load("tiny_hunyuan")
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    text = [[noise(1, 8, 64), {"pooled_output": noise(1, 768), "attention_mask": mask}]]
    for window in (0, 2):
        out = run(model, PREVIEW, text, text, window=window, cfg=1.0)["samples"]
        assert out.shape == (1, 16, 3, 8, 12)
    assert out.isfinite().all()


def case_wan_5b_needs_multiples_of_32_pixels():
    model = load("tiny_wan22_5b")
    preview = noise(1, 48, 3, 2, 4)
    assert run(model, preview)["samples"].shape == (1, 48, 3, 4, 8)
    said = ""
    try:
        run(model, preview, resolution="by size", width=96, height=80)
    except ValueError as error:
        said = str(error)
    assert "64 or 96" in said, said


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
