"""Sizes of a refined video: exact in the latent where the model takes odd ones, else by a crop."""

import sys

import host_stub
import pytest
import torch
from surf.nodes.host.models import TARGETS, takes_odd, target_cells


class WanModel:
    patch_size, ref_conv = (1, 2, 2), None


class OurRefiner(WanModel):
    pass


class VaceWanModel(WanModel):
    pass


class WithReference(WanModel):
    ref_conv = object()


WithReference.__name__, OurRefiner.__name__ = "WanModel", "HostRefinerDiT"


class Compiled:
    patch_size = (1, 2, 2)

    def __init__(self, network):
        self._orig_mod = network


def model(network=WanModel, channels=16):
    hunyuan = network == "hunyuan"
    base = sys.modules["comfy.model_base"].HunyuanVideo if hunyuan else object
    made = host_stub.Patcher(channels, base=base)
    made.model.diffusion_model = WanModel() if not hunyuan else type("HunyuanVideo", (), {})()
    if not hunyuan:
        made.model.diffusion_model = network()
    made.model.diffusion_model.patch_size = (1, 2, 2)
    return made


def preview(pixels, cell=8):
    return torch.zeros(1, 16, 1, pixels[0] // cell, pixels[1] // cell)


def cells(made, source, resolution, cell=8, **more):
    wanted = {"resolution": resolution, "scale": 2.0, "width": 0, "height": 0, **more}
    return target_cells(made, preview(source, cell), **wanted)


LANDSCAPE, PORTRAIT, SQUARE = (240, 416), (416, 240), (336, 336)
EXACT = {
    "720p": ((720, 1280), (960, 960)),
    "1080p": ((1080, 1920), (1440, 1440)),
    "1440p": ((1440, 2560), (1920, 1920)),
    "2160p": ((2160, 3840), (2880, 2880)),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("network", [WanModel, OurRefiner, VaceWanModel, "hunyuan"])
def test_buckets_come_out_exactly_in_their_shapes(name, network):
    wide, square = EXACT[name]
    for source, asked in ((LANDSCAPE, wide), (PORTRAIT, wide[::-1]), (SQUARE, square)):
        (rows, columns), got = cells(model(network), source, name)
        assert got == asked
        exact = network in (WanModel, OurRefiner)
        for count, side in zip((rows, columns), asked, strict=True):
            assert 8 * count - side == (0 if exact else -side % 16)
            assert exact or count % 2 == 0


def test_1080p_is_135_rows_or_136_and_a_crop():
    assert cells(model(), LANDSCAPE, "1080p") == ((135, 240), (1080, 1920))
    assert cells(model("hunyuan"), LANDSCAPE, "1080p") == ((136, 240), (1080, 1920))
    assert cells(model(channels=48), LANDSCAPE, "1080p", 16) == ((68, 120), (1080, 1920))
    assert cells(model(channels=48), LANDSCAPE, "2160p", 16) == ((136, 240), (2160, 3840))


@pytest.mark.parametrize(
    ("made", "odd"),
    [
        (model(WanModel), True),
        (model(OurRefiner), True),
        (model(lambda: Compiled(WanModel())), True),
        (model(VaceWanModel), False),
        (model(WithReference), False),
        (model("hunyuan"), False),
        (model(channels=48), False),
        (host_stub.Patcher(), False),
    ],
)
def test_odd_latents_are_for_models_that_pad_everything(made, odd):
    assert takes_odd(made) == odd


@pytest.mark.parametrize("network", [WanModel, "hunyuan"])
@pytest.mark.parametrize("name", ["720p", "1080p", "1440p", "2160p", "by scale"])
@pytest.mark.parametrize(
    "source", [(368, 864), (480, 640), (640, 480), (256, 272), (240, 560), (48, 64)]
)
def test_other_shapes_are_whole_patches_without_a_crop(network, name, source):
    (rows, columns), asked = cells(model(network), source, name)
    assert asked == (8 * rows, 8 * columns)
    assert rows % 2 == columns % 2 == 0
    assert columns / rows == pytest.approx(source[1] / source[0], rel=0.04)


def test_by_size_takes_whole_cells_where_odd_latents_run():
    for width, height in ((1920, 1080), (1928, 1080), (1080, 1928), (424, 248)):
        got = cells(model(), LANDSCAPE, "by size", width=width, height=height)
        assert got == ((height // 8, width // 8), (height, width))
    with pytest.raises(ValueError, match=r"^width 1921 .* multiple of 8; use 1920 or 1928"):
        cells(model(), LANDSCAPE, "by size", width=1921, height=1080)
    with pytest.raises(ValueError, match=r"height 1080 is not a multiple of 16; use 1072 or 1088"):
        cells(model("hunyuan"), LANDSCAPE, "by size", width=1920, height=1080)
    with pytest.raises(ValueError, match=r"height 1080 is not a multiple of 32; use 1056 or 1088"):
        cells(model(channels=48), LANDSCAPE, "by size", 16, width=1920, height=1080)


def test_a_target_is_never_below_the_preview():
    assert cells(model("hunyuan"), (1088, 1920), "1080p")[0] == (136, 240)
    assert cells(model(), (1080, 1920), "1080p")[0] == (135, 240)
    for source, name, more in (
        ((1088, 1920), "1080p", {}),
        ((1440, 2560), "1080p", {}),
        ((240, 416), "by scale", {"scale": 0.9}),
        ((240, 416), "by size", {"width": 416, "height": 232}),
    ):
        with pytest.raises(ValueError, match="^the target must not be below the preview's"):
            cells(model(), source, name, **more)


def test_targets_keep_the_order_that_saved_workflows_know():
    assert TARGETS == ("1080p", "720p", "by scale", "by size", "1440p", "2160p")
    for name in ("240p", "480p", "4K", ""):
        with pytest.raises(ValueError, match="^resolution must be one of"):
            cells(model(), LANDSCAPE, name)
