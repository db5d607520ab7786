"""First frames under a noise mask of 0: from the start picture at the target size, or refined."""

import logging

import pytest
import torch
from surf.nodes.host.conditioning.made_for import KEY
from surf.nodes.host.refine.start_frames import kept_frames, with_start
from surf.nodes.host.vae import fit_picture
from surf.surf_core.resample import resize
from surf.tests.nodes.test_refine import AveragingVae, WanPatcher, latent, run

VIDEO = (1, 16, 3, 4, 6)


def kept(frames=1, shape=VIDEO):
    """A noise mask that keeps the first frames."""
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, :frames] = 0
    return mask


def picture(frames=1, height=64, width=96, channels=3):
    generator = torch.Generator().manual_seed(4)
    return torch.rand(frames, height, width, channels, generator=generator)


def said(caplog):
    return [r.getMessage() for r in caplog.records if "noise mask" in r.getMessage()]


def enlarged(preview):
    return resize(preview["samples"], (8, 12), "bilinear")


def test_kept_frames_come_from_the_picture_at_the_target_size(caplog):
    preview, vae, image = latent(noise_mask=kept()), AveragingVae(), picture()
    start = vae.encode(image)
    with caplog.at_level(logging.WARNING):
        out = run(preview=preview, vae=vae, start_image=image, colour_match=True)
    torch.testing.assert_close(out["samples"][:, :, :1], start)
    assert not torch.allclose(out["samples"][:, :, :1], enlarged(preview)[:, :, :1], atol=0.1)
    assert not torch.allclose(out["samples"][:, :, 1:], enlarged(preview)[:, :, 1:], atol=0.1)
    assert out["noise_mask"].shape == (1, 1, 3, 8, 12)
    assert (out["noise_mask"][:, :, 0] == 0).all()
    assert vae.calls[-1] == ("encode", (1, 64, 96, 3))
    assert not said(caplog)


def test_without_the_picture_they_are_refined_with_the_rest_and_that_is_said(caplog):
    preview = latent()
    with caplog.at_level(logging.WARNING):
        out = run(preview={**preview, "noise_mask": kept()})
    [text] = said(caplog)
    assert "first latent frame," in text
    assert "Connect start_image" in text
    assert torch.equal(out["samples"], run(preview=preview)["samples"])
    assert (out["noise_mask"][:, :, 0] == 0).all()


def test_what_else_the_mask_keeps_stays():
    preview, mask = latent(), kept()
    mask[..., :3] = 0
    out = run(preview={**preview, "noise_mask": mask})["samples"]
    torch.testing.assert_close(out[:, :, 1:, :, :4], enlarged(preview)[:, :, 1:, :, :4])
    torch.testing.assert_close(
        out[:, :, :1], run(preview=preview)["samples"][:, :, :1], rtol=0, atol=1e-5
    )


def test_several_pictures_fill_several_frames_of_every_item():
    preview = latent(2, 16, 4, 4, 6, noise_mask=kept(2, (1, 16, 4, 4, 6)))
    vae, image = AveragingVae(), picture(5)
    out = run(preview=preview, vae=vae, start_image=image)["samples"]
    expected = vae.encode(image)
    for item in out:
        torch.testing.assert_close(item[None, :, :2], expected)


def test_the_picture_is_cropped_to_the_shape_of_the_first_size_and_stretched():
    """Made for 96 x 72 pixels, previewed and refined at 3 : 2."""
    image = picture(1, 80, 100)
    preview = latent(noise_mask=kept(), **{KEY: (72, 96)})
    vae = AveragingVae()
    out = run(preview=preview, vae=vae, start_image=image)["samples"]
    # 100 : 80 is cut to 96 : 72, the shape of the first size: 2 or 3 rows at either end.
    cut = image[:, 2:-2]
    assert cut.shape[1] == 76
    frames = torch.nn.functional.interpolate(cut.movedim(-1, 1), (64, 96), mode="bilinear")
    torch.testing.assert_close(out[:, :, :1], vae.encode(frames.movedim(1, -1)))


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (33, 77), (64, 96)])
def test_a_crop_is_about_the_centre_and_keeps_the_shape(height, width):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows / height, columns / width, rows * 0], -1)[None].float()
    out = fit_picture(image, (4, 6), (64, 96))
    assert out.shape == (1, 64, 96, 3)
    centre = torch.tensor([(height - 1) / 2 / height, (width - 1) / 2 / width, 0])
    torch.testing.assert_close(out.mean((0, 1, 2)), centre, rtol=0, atol=0.6 / min(height, width))
    spans = out.amax((0, 1, 2)) - out.amin((0, 1, 2))
    sides = spans[:2] * torch.tensor([height, width])
    assert sides[1] / sides[0] == pytest.approx(1.5, rel=0.08)


def test_the_upsampled_preview_is_not_changed():
    """It may be that of a Surf Skip Mask."""
    upsampled, vae = torch.rand(1, 16, 3, 8, 12), AveragingVae()
    before = upsampled.clone()
    out = with_start(upsampled, vae, picture(), (4, 6))
    assert torch.equal(upsampled, before)
    assert torch.equal(out[:, :, 1:], before[:, :, 1:])
    torch.testing.assert_close(out[:, :, :1], vae.encode(picture()))


@pytest.mark.parametrize(
    ("mask", "shape", "expected"),
    [
        (None, VIDEO, 0),
        (kept(0), VIDEO, 0),
        (kept(1), VIDEO, 1),
        (kept(2), VIDEO, 2),
        (kept(3), VIDEO, 0),
        (kept(1).flip(2), VIDEO, 0),
        (kept(1) + 0.3, VIDEO, 0),
        (kept(1)[:, 0], VIDEO, 1),
        (torch.zeros(1, 4, 6), VIDEO, 0),
        (torch.cat([kept(1), kept(0)]), (2, *VIDEO[1:]), 0),
        (torch.zeros(1, 4, 6), (1, 16, 4, 6), 0),
    ],
)
def test_kept_frames_are_counted_from_the_first(mask, shape, expected):
    assert kept_frames(mask, torch.Size(shape)) == expected


MASKED = {"noise_mask": kept()}
REJECTED = {
    "RGBA": (MASKED, {"start_image": picture(channels=4)}, "RGB.*got .*4.*Split Image"),
    "grey": (MASKED, {"start_image": picture(channels=1)}, "RGB.*got"),
    "0 to 255": (MASKED, {"start_image": 255 * picture()}, "0 to 1 as start_image, got"),
    "NaN": (MASKED, {"start_image": picture() * float("nan")}, "start_image must be finite"),
    "no VAE": (MASKED, {"vae": None}, "needs a VAE, got none"),
    "another VAE": (MASKED, {"vae": AveragingVae(4)}, "16 latent channels"),
    "several pictures": (MASKED, {"start_image": picture(5)}, "2 first latent.*keeps 1"),
    "no mask": ({}, {}, "1 first latent.*keeps 0; .*Surf Image To Video"),
    "all kept": ({"noise_mask": kept(3)}, {}, "keeps 0"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_pictures_that_do_not_fit_are_refused_before_anything_runs(case):
    more, changes, words = REJECTED[case]
    model, vae = WanPatcher(), AveragingVae()
    with pytest.raises(ValueError, match=f"^Surf Refiner: .*{words}"):
        run(model, latent(**more), **({"vae": vae, "start_image": picture()} | changes))
    assert not model.seen
    assert not vae.calls
