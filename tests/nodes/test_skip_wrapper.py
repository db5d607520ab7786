"""Refining the tokens of a mask on the stub host: what stays, what is refused, what a tile gets."""

import logging

import host_stub
import pytest
import torch
from surf.nodes.host.attention.token_layout import KEEP_KEY, kept_tokens
from surf.nodes.host.refine.run import refine
from surf.nodes.host.refine.tiling import with_tiles
from surf.nodes.host.refine.traits import RefineSettings
from surf.nodes.host.skip import wrapper
from surf.nodes.host.skip.cell_weights import cell_weights
from surf.nodes.host.skip.skip_mask import SkipMask
from surf.surf_core.resample import resize
from surf.surf_core.skip import Mask, compose, weight
from surf.surf_core.tiles import boxes

SETTINGS = {
    "seed": 7, "sigma_start": 0.65, "steps": 4, "cfg": 4.5, "window": 0, "low_band_lock": 0.0,
    "colour_match": False,
}  # fmt: skip
WANTED = {"resolution": "by scale", "scale": 2.0, "width": 64, "height": 64}


class WanModel:
    patch_size = (1, 2, 2)
    ref_conv = None


HumoWanModel, WanModel_S2V, Sound = (
    type(name, (WanModel,), {}) for name in ("HumoWanModel", "WanModel_S2V", "Sound")
)


def model_of(network=WanModel, **options):
    model = host_stub.Patcher()
    model.model.diffusion_model = network()
    model.model_options["transformer_options"] = options
    return model


def compiled(options):
    model = model_of()
    model.model_options["torch_compile_kwargs"] = {"backend": "inductor", "options": options}
    return model


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def preview(frames=3):
    return {"samples": random(1, 16, frames, 4, 6)}


def some(grid=(3, 4, 6), share=0.5, seed=0):
    scores = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    return Mask(tokens=scores > 1 - share, scores=scores, source="test", tau=1.0)


def carried(mask, **changes):
    made = {
        "size": (8, 12),
        "upsampled": None,
        "upsample": "latent",
        "samples": preview()["samples"],
    }
    return SkipMask(mask=mask, **made | changes)


def prompt(value=0.5, **options):
    return [[torch.full((1, 4, 8), value), options]]


def run(mask=None, model=None, latent=None, positive=None, upsample="latent", seam=0, vae=None,
        **changes):  # fmt: skip
    mask = carried(mask) if isinstance(mask, Mask) else mask
    out, *_ = refine(
        model or model_of(), positive or prompt(), prompt(-0.5), latent or preview(),
        RefineSettings(**SETTINGS | changes), upsample=upsample, vae=vae, mask=mask, seam=seam,
        **WANTED,
    )  # fmt: skip
    return out["samples"]


def start_of(latent=None):
    return resize((latent or preview())["samples"], (8, 12), "bilinear")


def with_mask(model, mask, seam=0):
    weights = cell_weights(mask, model, start_of(), seam)
    return wrapper.with_mask(model, start_of(), weights)


def cells(mask, size=(8, 12)):
    keep = mask.tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return keep[:, : size[0], : size[1]]


def test_nothing_to_skip_is_the_run_without_a_mask():
    model, everything = model_of(), some(share=2)
    plain = run()
    assert torch.equal(run(everything, model, seam=3), plain)
    assert cell_weights(everything, model, start_of(), 3) is None
    for step in model.seen:
        assert KEEP_KEY not in step.patcher.model_options["transformer_options"]
        assert "sampler_post_cfg_function" not in step.patcher.model_options
        assert not step.patcher.wrappers.get("diffusion_model")


def test_nothing_to_skip_suits_any_model():
    for network in (HumoWanModel, WanModel_S2V, Sound):
        model = model_of(network)
        assert torch.equal(run(some(share=2), model), run(model=model))


@pytest.mark.parametrize(
    "changes",
    [{}, {"cfg": 1.0}, {"seam": 2}, {"colour_match": True}, {"low_band_lock": 1.0}, {"tile": 0}],
)
def test_skipped_cells_are_the_start_bit_for_bit(changes):
    mask = some()
    out, skip = run(mask, **changes), ~cells(mask).expand(1, 16, -1, -1, -1)
    assert torch.equal(out[skip], start_of()[skip])
    assert (out - start_of())[~skip].abs().mean() > 0.01


def test_a_mask_tells_what_else_is_on_the_model(caplog):
    model = model_of()
    blocks = {("double_block", index): lambda args, extra: args for index in range(2)}
    model.model_options["transformer_options"] = {"patches_replace": {"dit": blocks}}
    with caplog.at_level(logging.INFO):
        with_mask(model, some())
        with_mask(model_of(), some())
    [said] = [r.getMessage() for r in caplog.records if "other nodes" in r.getMessage()]
    assert "a mask with what other nodes put on this model: test_skip_wrapper." in said
    assert said.count("runs on refined tokens") == 1


def test_every_estimate_is_the_start_where_it_skips():
    """Before the guidance and after it, so no other node finds rubbish in the picture."""
    mask, model = some(), model_of()
    clone = with_mask(model, mask, seam=2)
    clean, keep = model.model.process_latent_in(start_of()), cells(mask)
    x0 = random(2, 16, 3, 8, 12, seed=5)
    args = {"input": x0, "timestep": torch.ones(2), "c": {}}
    out = clone.model_options["model_function_wrapper"](lambda x, t: x, args)
    assert torch.equal(out, torch.where(keep, x0, clean))
    out = clone.model_options["sampler_post_cfg_function"][-1]({"denoised": x0})
    assert torch.equal(
        out, compose(x0, clean.repeat(2, 1, 1, 1, 1), weight(mask.tokens, (1, 2, 2), 2))
    )


def test_wrappers_of_other_nodes_stay_inside():
    model, mask, seen = model_of(), some(), []

    def theirs(apply_model, args):
        seen.append(args["input"].shape)
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(theirs)
    run(mask, model)
    assert len(seen) == 2 * 4
    clone = with_mask(model, mask)
    args = {"input": random(1, 16, 3, 8, 12), "timestep": torch.ones(1), "c": {}}
    out = clone.model_options["model_function_wrapper"](lambda x, t: x, args)
    clean = model.model.process_latent_in(start_of())
    assert torch.equal(out, torch.where(cells(mask), args["input"], clean))


def test_inputs_stay_as_they_are():
    model, mask, latent = model_of(other=1), some(), preview()
    tokens, before = mask.tokens.clone(), latent["samples"].clone()
    run(mask, model, latent)
    assert torch.equal(mask.tokens, tokens)
    assert torch.equal(latent["samples"], before)
    assert model.model_options == {"transformer_options": {"other": 1}}
    assert not model.wrappers


class FittingVae:
    """Fits, and counts what it is asked for."""

    latent_channels = 16

    def __init__(self):
        self.asked = 0

    def __getattr__(self, name):
        self.asked += 1
        raise RuntimeError("the VAE was asked")


def test_a_start_that_came_with_the_mask_is_not_made_again():
    mask, start = some(), start_of() + 1
    out, skip = run(carried(mask, upsampled=start)), ~cells(mask).expand(1, 16, -1, -1, -1)
    assert torch.equal(out[skip], start[skip])
    # Nor is a VAE needed.
    out = run(carried(mask, upsampled=start, upsample="pixel"), upsample="pixel")
    assert torch.equal(out[skip], start[skip])


@pytest.mark.parametrize(
    "changes",
    [
        {"upsample": "pixel"}, {"samples": preview()["samples"] + 1},
        {"samples": preview(2)["samples"]}, {"upsampled": start_of()[:, :, :, :6]},
        {"upsampled": None},
    ],
)  # fmt: skip
def test_a_start_of_something_else_is_made_again(changes):
    mask = some()
    given = carried(mask, **{"upsampled": start_of() + 1} | changes)
    assert torch.equal(run(given), run(mask))
    if given.upsample == "pixel":
        return
    vae = FittingVae()
    with pytest.raises(RuntimeError, match="was asked"):
        run(given, upsample="pixel", vae=vae)
    assert vae.asked


def scored(value):
    scores = torch.ones(3, 4, 6)
    scores[0, 0, 0] = value
    return scores


BAD = {
    "another length": (lambda: {"mask": some((4, 4, 6))}, "3 latent frames, got 4.*another length"),
    "another grid": (lambda: {"mask": some((3, 6, 4))}, "4x6 tokens, got 6x4"),
    "another resolution": (lambda: {"mask": some((3, 8, 12))}, "another resolution"),
    "nothing to refine": (lambda: {"mask": some(share=0)}, "skips the whole clip.*lower tau"),
    "a negative seam": (lambda: {"mask": some(), "seam": -1}, "seam"),
    "a seam of no cells": (lambda: {"mask": some(), "seam": float("nan")}, "seam"),
    "Humo": (lambda: {"mask": some(), "model": model_of(HumoWanModel)}, "HumoWanModel"),
    "S2V": (lambda: {"mask": some(), "model": model_of(WanModel_S2V)}, "WanModel_S2V"),
    "an unknown network": (lambda: {"mask": some(), "model": model_of(Sound)}, "got Sound"),
    "a node that sees the tokens": (
        lambda: {"mask": some(), "model": model_of(patches={"double_block": [print]})},
        "double_block"),
    "a model compiled as a whole": (lambda: {"mask": some(), "model": compiled({})},
                                    "from TorchCompileModel"),
    "an area": (lambda: {"mask": some(), "positive": prompt(area=(4, 4, 0, 0))}, "area"),
    "pixels without a VAE": (lambda: {"mask": some(), "upsample": "pixel"}, "needs a VAE"),
}  # fmt: skip


def test_blocks_compiled_with_all_their_guards_take_a_mask():
    plain = run(mask=some(), model=model_of())
    for options in (None, {"max_autotune": True}):
        assert torch.equal(run(mask=some(), model=compiled(options)), plain)


@pytest.mark.parametrize("case", BAD)
def test_the_refiner_rejects(case):
    make, message = BAD[case]
    given = make()
    given["model"], vae = given.get("model") or model_of(), FittingVae()
    with pytest.raises(ValueError, match=message):
        run(**{"vae": None if "VAE" in case else vae, **given})
    assert not given["model"].seen
    assert not vae.asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": scored(float("nan"))}, "NaN"), ({"scores": scored(-1.0)}, "negative"),
        ({"tau": 256.0}, "tau"), ({"tau": -1.0}, "tau"), ({"tau": float("nan")}, "tau"),
        ({"scores": torch.ones(3, 4, 5)}, "scores"), ({"tokens": torch.ones(3, 4, 6)}, "bool"),
    ],
)  # fmt: skip
def test_no_mask_comes_of_bad_scores_or_thresholds(changes, message):
    good = {"tokens": scored(1.0) > 0, "scores": scored(1.0), "source": "test", "tau": 1.0}
    with pytest.raises(ValueError, match=message):
        Mask(**good | changes)


def test_tiles_take_their_part_and_empty_ones_are_not_run():
    size, seen = (60, 104), []
    mask = some((3, 30, 52))
    mask.tokens[:, 10:] = False
    mask.tokens[:, :, 40:] = False
    keep, x = cells(mask, size), random(1, 16, 3, *size)
    clone = with_tiles(model_of(), torch.empty(1, 16, 3, *size, device="meta"), 320)

    def apply_model(part, t, transformer_options):
        seen.append(transformer_options[KEEP_KEY])
        return part + 1

    options = {"transformer_options": {KEEP_KEY: keep, "other": 1}}
    args = {"input": x, "timestep": torch.ones(1), "c": options}
    out = clone.model_options["model_function_wrapper"](apply_model, args)
    torch.testing.assert_close(out[..., keep], x[..., keep] + 1)
    assert options["transformer_options"][KEEP_KEY] is keep
    parts = [keep[(..., *box)] for box in boxes(size, (40, 40), 16, 2)]
    with_work = [part for part in parts if part.any()]
    assert 0 < len(with_work) < len(parts)
    assert [part.tolist() for part in seen] == [part.tolist() for part in with_work]


def test_tokens_are_kept_for_any_of_their_cells():
    keep = torch.zeros(2, 5, 7, dtype=torch.bool)
    keep[0, 1, 1] = keep[1, 4, 6] = keep[1, 2, 3] = True
    x = torch.zeros(1, 16, 2, 5, 7)
    found = kept_tokens(x, {KEEP_KEY: keep}, (1, 2, 2))
    assert found.nonzero().tolist() == [[0, 0, 0], [1, 1, 1], [1, 2, 3]]
    assert kept_tokens(x, {KEEP_KEY: keep | True}, (1, 2, 2)) is None
    assert kept_tokens(x, {}, (1, 2, 2)) is None
    with pytest.raises(ValueError, match="area prompt or a context window"):
        kept_tokens(x[:, :, :1], {KEEP_KEY: keep}, (1, 2, 2))
