"""Frames and control latents in the refiner, inside a real host: run by test_inside.py.

    cd $COMFYUI_PATH && python tests/host/frames_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import checkpoints
import inside
import torch
from inprocess import refused
from inside import noise

RESULTS = inside.enter()

import comfy.model_management as management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
from surf.nodes.decode import SurfVAEDecode  # noqa: E402
from surf.nodes.host.input_channels import input_channels, takes_control  # noqa: E402
from surf.nodes.host.vae import upsample_latent  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.nodes.skip import SurfSkipMask  # noqa: E402

DEFAULTS = {
    "seed": 3, "resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
    "upsample": "pixel", "sigma_start": 0.5, "steps": 2, "cfg": 1.0, "window": 0,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip
PREVIEW = noise(1, 16, 3, 8, 12)


def load(name="tiny_wan_t2v"):
    return comfy.sd.load_diffusion_model_state_dict(checkpoints.diffusion_model(name))


def load_vae():
    return comfy.sd.VAE(sd=checkpoints.wan_vae())


def with_lora(model, state, strength=1.0):
    return comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]


def prompt(seed, **options):
    return [[noise(1, 8, 4096, seed=seed), options]]


def refine(model, latent=None, image=None, positive=None, negative=None, **changes):
    latent = {"samples": latent} if isinstance(latent, torch.Tensor) else latent
    return SurfRefiner.execute(
        model, positive or prompt(1), negative or prompt(2), latent, image=image,
        **{**DEFAULTS, **changes},
    ).result  # fmt: skip


def video(count=9, rows=64, columns=96):
    return torch.rand(count, rows, columns, 3, generator=torch.Generator().manual_seed(4))


def case_frames_of_the_target_become_what_the_hosts_vae_makes_of_them():
    vae, image = load_vae(), video()
    out = refine(load(), image=image, vae=vae, scale=1.0, steps=1, sigma_start=0.01)[0]["samples"]
    start = vae.encode(image)
    assert out.shape == start.shape
    assert (out - start).abs().mean() < 0.1 * start.abs().mean()


def case_frames_equal_a_latent_of_them_that_is_taken_as_it_is():
    vae, image, model = load_vae(), video(), load()
    one = refine(model, image=image, vae=vae, scale=1.0)[0]["samples"]
    two = refine(model, vae.encode(image), vae=vae, scale=1.0)[0]["samples"]
    assert torch.equal(one, two)


def case_any_count_is_filled_up_and_cut_again():
    vae, model = load_vae(), load()
    for count, latents in ((1, 1), (2, 2), (7, 3), (9, 3)):
        out, width, height, *_ = refine(model, image=video(count, 62, 90), vae=vae, scale=1.0)
        assert out["samples"].shape[2] == latents
        decoded = SurfVAEDecode.execute(out, vae, width, height, 0).result[0]
        assert decoded.shape == (count, 62, 90, 3), decoded.shape


def case_frames_beside_a_latent_take_the_place_of_its_upsampled_preview():
    vae, model = load_vae(), load()
    frames = vae_frames(vae)
    plain = refine(model, PREVIEW, vae=vae)[0]["samples"]
    beside = refine(model, PREVIEW, frames, vae=vae)[0]["samples"]
    torch.testing.assert_close(beside, plain, rtol=0, atol=1e-4)
    refused(lambda: refine(model, PREVIEW, frames[:4], vae=vae), "9 frames, which the latent makes")
    refused(lambda: refine(model, PREVIEW, frames[:, :48], vae=vae), "96 x 48; scale it")


def case_a_vae_stops_within_a_batch_of_frames_and_shows_its_progress():
    vae, seen = load_vae(), []

    class WatchedBar(comfy.utils.ProgressBar):
        def update_absolute(self, value, *args, **kwargs):
            seen.append(value / self.total)
            if len(seen) == stop:
                management.interrupt_current_processing(True)
            super().update_absolute(value, *args, **kwargs)

    original, comfy.utils.ProgressBar = comfy.utils.ProgressBar, WatchedBar
    model, image, stop = load(), video(17), 0
    calls = {
        "encoder": lambda: refine(model, image=image, vae=vae, steps=1),
        "decoder": lambda: SurfVAEDecode.execute({"samples": PREVIEW}, vae, 0, 0, 0),
    }
    try:
        for half, call in calls.items():
            seen.clear()
            stop, ran = 10, []
            module = getattr(vae.first_stage_model, half)
            hook = module.register_forward_hook(lambda *args, ran=ran: ran.append(1))
            try:
                call()
            except management.InterruptProcessingException:
                pass
            else:
                raise AssertionError(f"the {half} was not interrupted")
            finally:
                management.interrupt_current_processing(False)
                hook.remove()
            assert len(seen) == 10, (half, seen)
            assert seen[-1] < 0.5
            assert seen == sorted(seen)
            assert len(ran) <= 3, f"the {half} went on for {len(ran)} groups of frames"
            hooks = [m for m in vae.first_stage_model.modules() if m._forward_pre_hooks]
            assert not hooks
            stop = 0
            seen.clear()
            call()
            assert seen[-1] == 1.0
            assert len({round(at, 2) for at in seen}) > 20, seen
    finally:
        comfy.utils.ProgressBar = original


class Interrupting(comfy.utils.ProgressBar):
    """A bar of the host at whose update of this number the user presses the button."""

    stop = updates = 0

    def update_absolute(self, *args, **kwargs):
        type(self).updates += 1
        management.interrupt_current_processing(self.updates == self.stop)
        super().update_absolute(*args, **kwargs)


def skip_mask(model, upsample="pixel", **given):
    return SurfSkipMask.execute(
        model, {"samples": noise(1, 16, 5, 8, 12)}, "detail", "keep ratio", 0.5, 3.0, dilate=0,
        resolution="by scale", scale=2.0, width=64, height=64, upsample=upsample, **given,
    ).result[0]  # fmt: skip


def case_every_pass_of_a_vae_stops_within_a_batch_of_frames():
    vae, model, low = load_vae(), load(), noise(1, 16, 5, 8, 12)
    held = torch.ones(1, 1, 5, 8, 12)
    held[:, :, 0] = 0
    passes = {
        "the preview": lambda: refine(model, low, vae=vae),
        "frames": lambda: refine(model, image=video(17), vae=vae),
        "frames beside a latent": lambda: refine(model, low, video(17), vae=vae),
        "a start picture": lambda: refine(
            model, {"samples": low, "noise_mask": held}, vae=vae, start_image=video(1),
            upsample="latent"),
        "the preview of a mask": lambda: skip_mask(model, vae=vae),
        "frames of a mask": lambda: skip_mask(model, vae=vae, image=video(17, 128, 192)),
    }  # fmt: skip
    original, comfy.utils.ProgressBar = comfy.utils.ProgressBar, Interrupting
    try:
        for name, call in passes.items():
            Interrupting.stop, Interrupting.updates = 3, 0
            try:
                call()
            except management.InterruptProcessingException:
                assert Interrupting.updates == 3, (name, Interrupting.updates)
            else:
                raise AssertionError(f"{name}: was not interrupted")
            finally:
                management.interrupt_current_processing(False)
    finally:
        comfy.utils.ProgressBar = original


def case_what_does_not_fit_is_refused_before_the_vae_or_the_model_runs():
    vae, model, ran = load_vae(), load(), []
    for module in (vae.first_stage_model.encoder, vae.first_stage_model.decoder,
                   model.model.diffusion_model):  # fmt: skip
        module.register_forward_pre_hook(lambda *args: ran.append(args))
    other = skip_mask(model, "latent")
    two = {"samples": PREVIEW.repeat(2, 1, 1, 1, 1)}
    for words, given in (
        ("Split Image with Alpha", {"image": torch.rand(9, 64, 96, 4)}),
        ("Split Image with Alpha", {"image": torch.rand(9, 64, 96, 4), "latent": PREVIEW}),
        ("Convert Mask to Image", {"image": torch.rand(9, 64, 96, 1)}),
        ("type IMAGE", {"image": torch.rand(64, 96, 3)}),
        ("divide those of 0 to 255", {"image": (255 * video()).to(torch.uint8)}),
        ("must be finite", {"image": video() / 0}),
        ("needs a VAE", {"image": video(), "vae": None}),
        ("9 frames, which the latent makes", {"image": video(13), "latent": PREVIEW}),
        ("18 frames, which the latent makes", {"image": video(9), "latent": two}),
        ("scale it to the target", {"image": video(9, 96, 64), "latent": PREVIEW}),
        ("must not be below", {"image": video(9), "resolution": "by size", "width": 48}),
        ("a mask of 3 latent frames", {"image": video(9), "mask": other}),
        ("a mask of 3 latent frames", {"latent": PREVIEW, "mask": other}),
        ("neither a latent nor an image", {}),
    ):
        refused(lambda g=given: refine(model, **{"vae": vae, **g}), words)
        assert not ran, words


def case_a_watched_vae_gives_the_hosts_result_bit_for_bit():
    vae = load_vae()
    frames = vae_frames(vae)
    assert torch.equal(upsample_latent(PREVIEW, (8, 12), "pixel", vae), vae.encode(frames))
    decoded = SurfVAEDecode.execute({"samples": PREVIEW}, vae, 0, 0, 0).result[0]
    assert torch.equal(decoded, frames)


def vae_frames(vae):
    decoded = vae.decode(PREVIEW)
    return decoded.reshape(-1, *decoded.shape[-3:])


def control_lora():
    """A LoRA that widens the patch embedding to twice the latent's channels."""
    return checkpoints.control_lora(105)


def case_a_full_control_model_gets_the_upsampled_preview():
    model = load("tiny_wan_control")
    assert takes_control(model)
    assert not takes_control(load())
    assert not takes_control(load("tiny_wan22_i2v"))
    check_control(model)


def case_a_control_lora_is_seen_while_its_patches_are_pending_and_not_after_them():
    base = load()
    model = with_lora(base, control_lora())
    assert (input_channels(base), input_channels(model)) == (16, 32)
    check_control(model)
    # The weight of both has been widened in place now; the plain clone is still no control model.
    assert (input_channels(base), input_channels(model)) == (16, 32)
    out = refine(base, PREVIEW, vae=load_vae())[0]["samples"]
    assert torch.equal(out, refine(load(), PREVIEW, vae=load_vae())[0]["samples"])


def check_control(model):
    """The result equals that of the upsampled preview given by hand, and differs without."""
    vae, settings = load_vae(), {"sigma_start": 1.0, "cfg": 2.0}
    upsampled = upsample_latent(PREVIEW, (16, 24), "pixel", vae)
    positive, negative = prompt(1), prompt(2)
    ours = refine(model, PREVIEW, vae=vae, positive=positive, negative=negative, **settings)
    assert "concat_latent_image" not in positive[0][1]
    by_hand = {"concat_latent_image": upsampled}
    same = refine(model, PREVIEW, vae=vae, positive=prompt(1, **by_hand),
                  negative=prompt(2, **by_hand), **settings)  # fmt: skip
    assert torch.equal(ours[0]["samples"], same[0]["samples"])
    zeros = {"concat_latent_image": torch.zeros_like(upsampled)}
    other = refine(model, PREVIEW, vae=vae, positive=prompt(1, **zeros),
                   negative=prompt(2, **zeros), **settings)  # fmt: skip
    assert not torch.equal(ours[0]["samples"], other[0]["samples"])
    frames = refine(model, image=vae_frames(vae), vae=vae, **settings)[0]["samples"]
    torch.testing.assert_close(frames, ours[0]["samples"], rtol=0, atol=1e-3)
    refused(lambda: refine(model, torch.zeros_like(PREVIEW), vae=vae, **settings), "empty latent")


def everything(model, cfg, **settings):
    """Windows, tiles, a skip mask, a noise mask: each finite, of the target's size."""
    vae, low = load_vae(), noise(1, 16, 5, 24, 32)
    common = {"resolution": "by scale", "scale": 2.0, "width": 64, "height": 64,
              "upsample": "latent"}  # fmt: skip
    skip = SurfSkipMask.execute(
        model, {"samples": low}, "detail", "keep ratio", 0.5, 3.0, dilate=0, **common
    ).result[0]
    masked = {"samples": low, "noise_mask": torch.ones(1, 1, 24, 32)}
    masked["noise_mask"][..., :12] = 0
    runs = {
        "windows": {"window": 2}, "tiles": {"tile": 256}, "both": {"window": 2, "tile": 256},
        "mask": {"mask": skip, "seam": 1}, "mask and windows": {"mask": skip, "window": 2},
        "mask and tiles": {"mask": skip, "tile": 256}, "noise mask": {"latent": masked},
    }  # fmt: skip
    plain = refine(model, low, vae=vae, upsample="latent", cfg=cfg, **settings)[0]["samples"]
    assert plain.shape == (1, 16, 5, 48, 64)
    for name, changes in runs.items():
        given = {"latent": low, "vae": vae, "upsample": "latent", "cfg": cfg} | settings | changes
        out = refine(model, **given)[0]["samples"]
        assert out.shape == plain.shape, name
        assert out.isfinite().all(), name
        assert not torch.equal(out, plain), name


def case_control_runs_in_windows_tiles_and_masks():
    for model in (load("tiny_wan_control"), with_lora(load(), control_lora())):
        everything(model, 2.0, sigma_start=1.0, steps=2)


def case_the_low_noise_expert_with_a_lora_runs_in_windows_tiles_and_masks():
    model = with_lora(load("tiny_wan_low_noise"), checkpoints.lora(104))
    everything(model, 1.0, sigma_start=0.5, steps=4)
    calls, apply = [], model.model.apply_model
    model.model.apply_model = lambda x, t, **more: (calls.append((len(x), float(t[0]))),
                                                    apply(x, t, **more))[1]  # fmt: skip
    refine(model, PREVIEW, vae=load_vae(), steps=4)
    del model.model.apply_model
    assert [(n, round(t, 3)) for n, t in calls] == [(1, 0.5), (1, 0.375), (1, 0.25), (1, 0.125)]


def case_the_memory_plan_cuts_the_low_noise_expert_into_tiles():
    model = with_lora(load("tiny_wan_low_noise"), checkpoints.lora(104))
    low, real = noise(1, 16, 3, 24, 32), management.get_total_memory
    whole = model.model.memory_required([1, 16, 3, 48, 64])
    sizes, apply = set(), model.model.apply_model
    model.model.apply_model = lambda x, t, **more: (sizes.add(tuple(x.shape[-2:])),
                                                    apply(x, t, **more))[1]  # fmt: skip
    management.get_total_memory = lambda *args, **kwargs: int(1.2 * whole)
    try:
        out = refine(model, low, vae=None, upsample="latent", steps=4)[0]["samples"]
    finally:
        management.get_total_memory = real
        del model.model.apply_model
    assert out.shape == (1, 16, 3, 48, 64)
    assert (48, 64) not in sizes, sizes


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
