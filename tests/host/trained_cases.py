"""Trained refiners in the Surf Refiner inside a real host: run by test_inside.py, all at once.

    cd $COMFYUI_PATH && python tests/host/trained_cases.py RESULTS.json

Every function `case_*` asserts. "Trained" is what their files say; the weights are random.
"""

import tempfile
from pathlib import Path

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import latent_preview  # noqa: E402
from surf.nodes.host.refiner.loading import load_as_wan, load_refiner  # noqa: E402
from surf.nodes.refine import SurfRefiner  # noqa: E402
from surf.surf_core import checkpoint, flow  # noqa: E402
from surf.surf_core.lowband import low_band, wavelet_match  # noqa: E402
from surf.surf_core.resample import resize  # noqa: E402
from surf.surf_core.tiny.model import WEIGHTS  # noqa: E402

FOLDER = Path(tempfile.mkdtemp())
PREVIEW = noise(1, 16, 3, 4, 6)
SEED, STEPS, CFG = 3, 3, 4.5
# The first two are what a trained refiner must ignore.
WIDGETS = {
    "sigma_start": 0.123, "window": 7, "seed": SEED, "resolution": "by scale", "scale": 2.0,
    "width": 64, "height": 64, "upsample": "latent", "steps": STEPS, "cfg": CFG,
    "low_band_lock": 0.0, "colour_match": False,
}  # fmt: skip
TRAINED = (
    {"time": "t", "sigma_start": 0.0},
    {"time": "t", "sigma_start": 0.3},
    {"time": "sigma", "sigma_start": 0.8},
    {"time": "sigma", "sigma_start": 0.6, "dim": 128, "heads": 1, "block": "wan"},
)


def file(**changes):
    """A random refiner of ours, as a path."""
    name = "-".join(f"{key}-{value}" for key, value in changes.items())
    path = FOLDER / f"{name}.safetensors"
    return str(path) if path.exists() else checkpoints.refiner(path, **changes)


def words(seed, width=64):
    return [[noise(1, 8, width, seed=seed), {}]]


def refined(model, preview=PREVIEW, width=64, **changes):
    """What the node makes of a preview."""
    latent = preview if isinstance(preview, dict) else {"samples": preview}
    texts = words(1, width), words(2, width)
    return SurfRefiner.execute(model, *texts, latent, **WIDGETS | changes).result[0]["samples"]


def core_loop(core, latent_format, preview=PREVIEW, cfg=CFG):
    """The flow map by surf_core alone: its network in the dtype of its weights, its Euler steps."""
    config, texts = core.config, [words(seed)[0][0] for seed in (1, 2)]
    dtype = core.patch_embedding.weight.dtype

    def velocity(z, time):
        at = torch.full((len(z),), 1000 * time)
        yes, no = (core(z.to(dtype), at, text.to(dtype)).float() for text in texts)
        return no + cfg * (yes - no)

    start = latent_format.process_in(resize(preview, (8, 12), "bilinear"))
    eps = torch.randn(start.shape, generator=torch.manual_seed(SEED))
    out = flow.refine(velocity, start, config.sigma_start, STEPS, eps, time=config.time)
    return latent_format.process_out(out)


def gap(got, expected):
    """Largest difference as a share of the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def near(got, expected, share):
    found = gap(got, expected)
    assert found <= share, f"differs by {found} of the largest value"


def case_a_trained_refiner_equals_the_core_in_full_precision():
    for changes in TRAINED:
        model, core = (load(file(**changes)) for load in (load_refiner, checkpoint.load))
        near(refined(model), core_loop(core, model.model.latent_format), 1e-5)
        control = core_loop(core, model.model.latent_format, cfg=CFG - 0.1)
        assert (control - refined(model)).abs().max() > 1e-3


def case_a_trained_refiner_equals_the_core_in_fp8_and_in_half_precision():
    for changes in TRAINED:
        path = file(**changes)
        model, core = load_refiner(path, "fp8_e4m3fn"), checkpoint.load(path)
        for module in core.modules():
            if isinstance(module, torch.nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(parameter.to(torch.float8_e4m3fn).float())
        near(refined(model), core_loop(core, model.model.latent_format), 2e-5)
        model.model.manual_cast_dtype = torch.bfloat16
        near(refined(model, cfg=1.0), core_loop(core, model.model.latent_format, cfg=1.0), 2e-2)
        # Guidance multiplies the rounding of both its halves; by hand it does so, too.
        space, guided = model.model.latent_format, (CFG, 6.0)
        exact = {cfg: core_loop(core, space, cfg=cfg) for cfg in guided}
        half = core.bfloat16()
        for cfg in guided:
            by_hand = gap(core_loop(half, space, cfg=cfg), exact[cfg])
            near(refined(model, cfg=cfg), exact[cfg], 2 * by_hand)


def case_an_untrained_model_of_ours_is_the_training_free_path():
    stock, ours = load_as_wan(str(WEIGHTS)), load_refiner(str(WEIGHTS))
    for start in (0.3, 0.65):
        expected = refined(stock, width=4096, sigma_start=start, window=0)
        # Two networks, one of them the host's own, over every step and the guidance.
        near(refined(ours, width=4096, sigma_start=start), expected, 5e-5)


def case_a_trained_refiner_runs_its_own_windows():
    near_frames, model = [], load_refiner(file(**TRAINED[0]))
    preview = noise(1, 16, 8, 4, 6)
    changed = preview.clone()
    changed[:, :, 0] += 1
    for window in (2, 5):
        model.model.diffusion_model.window = window
        moved = refined(model, changed, steps=1) - refined(model, preview, steps=1)
        near_frames.append((moved.abs().amax((0, 1, 3, 4)) > 1e-4).tolist())
    # Three blocks of windows of two, the middle one shifted: frames 0 to 3 hear of frame 0.
    assert near_frames[0] == [True] * 4 + [False] * 4, near_frames[0]
    assert near_frames[1] == [True] * 8, near_frames[1]


def case_a_mask_keeps_the_upsampled_preview_in_both_times():
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[..., :3] = 0
    start = resize(PREVIEW, (8, 12), "bilinear")
    for changes in TRAINED:
        model = load_refiner(file(**changes))
        out = refined(model, {"samples": PREVIEW, "noise_mask": mask})
        torch.testing.assert_close(out[..., :4], start[..., :4], rtol=0, atol=1e-5)
        assert (out[..., 8:] - start[..., 8:]).abs().max() > 0.1


def case_odd_latents_come_out_at_the_size_that_was_asked_for():
    for changes in (TRAINED[1], TRAINED[3]):
        model, latent = load_refiner(file(**changes)), {"samples": PREVIEW}
        widgets = WIDGETS | {"resolution": "by size", "width": 104, "height": 72}
        made = SurfRefiner.execute(model, words(1), words(2), latent, **widgets).result
        assert made[0]["samples"].shape == (1, 16, 3, 9, 13)
        assert made[0]["samples"].isfinite().all()
        assert made[1:3] == (104, 72)


def case_a_trained_refiner_runs_in_tiles():
    model, seen = load_refiner(file(**TRAINED[1])), []
    first = model.model.diffusion_model.patch_embedding
    first.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    preview = noise(1, 16, 2, 20, 30)
    out = refined(model, preview, tile=256, steps=1)
    assert out.shape == (1, 16, 2, 40, 60)
    assert out.isfinite().all()
    assert max(max(size) for size in seen) <= 32, seen
    whole = refined(model, preview, steps=1)
    # Noise refined by noise: tiles that cannot see each other still agree on most of it.
    assert torch.corrcoef(torch.stack([out.flatten(), whole.flatten()]))[0, 1] > 0.9


def case_a_trained_refiner_can_be_locked_coloured_and_interrupted():
    model = load_refiner(file(**TRAINED[1]))
    start, seen = resize(PREVIEW, (8, 12), "bilinear"), []
    locked = refined(model, low_band_lock=1.0)
    torch.testing.assert_close(low_band(locked, 2.0), low_band(start, 2.0), rtol=0, atol=1e-4)
    free, matched = (refined(model, colour_match=match) for match in (False, True))
    near(matched, wavelet_match(free, start), 1e-5)
    prepare = latent_preview.prepare_callback
    latent_preview.prepare_callback = lambda *args: (
        lambda step, x0, x, total: seen.append((step, total, x0.shape))
    )
    try:
        refined(model)
    finally:
        latent_preview.prepare_callback = prepare
    assert seen == [(step, 3, (1, 16, 3, 8, 12)) for step in range(3)]


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
