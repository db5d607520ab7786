"""What Surf Refiner refuses before a model or a VAE runs, in one table."""

import re

import host_stub
import pytest
import torch
from surf.nodes.host.skip import SkipMask
from surf.surf_core.skip import Mask
from surf.tests.nodes.test_refine import (
    AveragingVae,
    Unknown,
    WanPatcher,
    latent,
    prompt,
    run,
)


def nested(*parts):
    return {"samples": host_stub.latents.NestedTensor(parts)}


def broken(value):
    preview = latent()
    preview["samples"][0, 0, 0, 0, 0] = value
    return preview


def model_with(network):
    model = WanPatcher()
    model.model.diffusion_model = network
    return model


def still(network=None):
    """An image model."""
    model = model_with(network or type("Flux", (), {"patch_size": 2})())
    model.model.latent_format.latent_dimensions = 2
    return model


def masked():
    """A mask that skips a token of 3 frames of 4 x 6."""
    tokens = torch.ones(3, 4, 6, dtype=torch.bool)
    tokens[0, 0, 0] = False
    mask = Mask(tokens=tokens, scores=tokens.float(), tau=1.0, source="detail")
    return SkipMask(
        mask=mask, size=(8, 12), upsampled=None, upsample="latent", samples=latent()["samples"]
    )


IMAGE = {"preview": latent(1, 16, 4, 6)}
BAD = {
    "a video for an image model": (
        {"model": still()}, "an image latent", "for Network, got a video latent", "decode it and"),
    "an image for a video model": (IMAGE, "a video latent", "got an image latent", "decode it and"),
    "windows for an image model": (
        IMAGE | {"model": still(), "window": 4}, "WanModel", "Flux .*patch=2", "set window to 0"),
    "a mask of a video for an image": (
        IMAGE | {"model": still(), "mask": masked()}, "belongs to a video", "disconnect the mask"),
    "an area of unknown size": (
        {"positive": prompt(area=(4, 6, 0, 0))}, "area in pixels", "set made_width"),
    "a width that it was made for alone": ({"made_width": 64}, "belong together", "64 x 0"),
    "a model that predicts noise": (
        {"model": WanPatcher(kind=(host_stub.DiscreteFlow, host_stub.Eps))},
        "flow model", "Eps", "connect a flow model"),
    "too few channels": ({"preview": latent(1, 4, 3, 4, 6)}, "16 channels"),
    "the 5B model's latent": ({"preview": latent(1, 48, 3, 4, 6)}, "16 channels"),
    "a 14B latent for the 5B model": ({"model": WanPatcher(48)}, "48 channels"),
    "NaN": ({"preview": broken(float("nan"))}, "finite", "NaN", "look at"),
    "infinity": ({"preview": broken(float("inf"))}, "finite"),
    "three dimensions": ({"preview": latent(16, 4, 6)}, r"\[B, C"),
    "no frames": ({"preview": latent(1, 16, 0, 4, 6)}, "at least one cell"),
    "whole numbers": ({"preview": {"samples": torch.ones(1, 16, 3, 4, 6).int()}}, "floating"),
    "8 bits": (
        {"preview": {"samples": torch.ones(1, 16, 3, 4, 6).to(torch.float8_e4m3fn)}},
        "at least 16 bits"),
    "a mask of bools": (
        {"preview": latent(noise_mask=torch.ones(1, 4, 6, dtype=torch.bool))}, "torch.bool"),
    "a mask of another length": (
        {"preview": latent(noise_mask=torch.ones(2, 4, 6))},
        "1 or 3 latent frames", r"\(2, 4, 6\)", "make one mask, or one for each frame"),
    "masks of more videos": (
        {"preview": latent(noise_mask=torch.ones(2, 1, 3, 4, 6))}, "1 or 1 items", "make one"),
    "sound and picture": (
        {"preview": nested(torch.zeros(1, 16, 3, 4, 6), torch.zeros(1, 8, 5, 16))},
        "one video latent", "nested", "separate"),
    "sigma 0": ({"sigma_start": 0.0}, "within 0.01 to 1", "got 0.0", "use 0.65"),
    "a sigma above 1": ({"sigma_start": 1.01}, "within 0.01 to 1", "got 1.01", "use 0.65"),
    "a negative sigma": ({"sigma_start": -0.5}, "sigma_start"),
    "a sigma that is no number": ({"sigma_start": float("nan")}, "sigma_start"),
    "a negative seed": ({"seed": -1}, "within 0", "got -1", "use 0"),
    "a seed of 65 bits": ({"seed": 2**64}, "within 0", str(2**64), "use 0"),
    "a width beyond all screens": ({"width": 10**9}, "to 16384", "1000000000", "use 1920"),
    "a scale above 8": ({"scale": 9.0}, "within 1.0 to 8.0", "9.0", "use 2.0"),
    "no steps": ({"steps": 0}, "within 1 to 1000", "got 0", "use 10"),
    "endless guidance": ({"cfg": float("inf")}, "within 0", "inf", "use"),
    "a window of one frame": ({"window": 1}, "at least 2", "window=1", "still images"),
    "a negative window": ({"window": -4}, "window"),
    "a window in an unknown model": ({"model": model_with(Unknown()), "window": 4}, "window to 0"),
    "a tile of two overlaps and less": ({"tile": 128}, "256 or more"),
    "a lock of more than all steps": ({"low_band_lock": 1.5}, "within 0", "1.5", "use 0"),
    "pixels without a VAE": ({"upsample": "pixel"}, "connect the VAE.*or set upsample to latent"),
    "a VAE of another model": (
        {"upsample": "pixel", "vae": AveragingVae(48)},
        "16 latent channels", "48", "connect"),
    "an unknown way to upsample": (
        {"upsample": "lanczos"},
        "one of pixel", "'lanczos'", "choose one"),
    "an unknown resolution": ({"resolution": "4K"}, "one of", "'4K'", "choose one"),
    "a bucket that is no target": ({"resolution": "240p"}, "resolution"),
    "a width between multiples": (
        {"resolution": "by size", "width": 1270, "height": 720},
        "multiple of 8", "1270", "use 1264 or 1272"),
    "a height between multiples": (
        {"resolution": "by size", "width": 64, "height": 50}, "48 or 56"),
    "16 pixels for a model of 32": (
        {"model": WanPatcher(48), "preview": latent(1, 48, 3, 2, 4), "resolution": "by size",
         "width": 80, "height": 64}, "64 or 96"),
    "a target below the preview": (
        {"resolution": "by size", "width": 32, "height": 64},
        "below the preview", "choose a larger"),
    "a bucket below the preview": (
        {"preview": latent(1, 16, 1, 136, 240), "resolution": "720p"},
        "preview's 1920 x 1088", "1280 x 720", "choose"),
    "a scale of nothing": ({"scale": 0.0}, "scale"),
    "a scale below 1": ({"scale": 0.5}, "scale must lie within 1.0"),
    "a scale that is no number": ({"scale": float("nan")}, "scale"),
}  # fmt: skip


"""Case -> what is wrong, then patterns that the message holds."""


@pytest.mark.parametrize("case", BAD)
def test_it_is_refused_with_advice(case):
    changes, *words = BAD[case]
    model, vae = changes.get("model") or WanPatcher(), changes.get("vae")
    with pytest.raises(ValueError, match="^Surf Refiner") as error:
        run(**{**changes, "model": model})
    said = str(error.value)
    for word in words:
        assert re.search(word, said), f"{word!r} not in: {said}"
    assert re.search(r"[;,] .+\.$", said), said
    assert not model.seen
    assert vae is None or not vae.calls


def test_a_vae_that_gives_another_shape_back_is_refused():
    model = WanPatcher()
    with pytest.raises(ValueError, match="preview's model"):
        run(model, upsample="pixel", vae=AveragingVae(frames_lost=1))
    assert not model.seen
