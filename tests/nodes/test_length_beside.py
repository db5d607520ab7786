"""Pictures beside a video have its number of frames, or are refused before a model is called."""

import comfy.model_base
import host_stub
import pytest
import torch
from surf.nodes.host.conditioning import check_frames_beside
from surf.nodes.preview import SurfReshiftKSampler
from surf.tests.nodes.test_switch import SETTINGS

FRAMES, ROWS, COLUMNS = 3, 16, 24


def image_to_video(inner=36, base=comfy.model_base.WAN21):
    """A Wan whose patch embedding takes so many channels."""
    model = host_stub.Patcher(base=base)
    embedding = torch.nn.Conv3d(inner, 8, (1, 2, 2), (1, 2, 2))
    model.model.diffusion_model.patch_embedding = embedding
    return model


def conds(picture=FRAMES, mask=FRAMES):
    options = {
        "concat_latent_image": torch.zeros(1, 16, picture, ROWS, COLUMNS),
        "concat_mask": torch.zeros(1, 1, mask, ROWS, COLUMNS),
    }
    return {name: [[torch.zeros(1, 4, 8), dict(options)]] for name in ("positive", "negative")}


@pytest.mark.parametrize(("picture", "mask"), [(4, 3), (2, 3), (3, 4)])
def test_a_picture_of_another_length_is_refused_before_the_model_is_called(picture, mask):
    model = image_to_video()
    latent = {"samples": torch.zeros(1, 16, FRAMES, ROWS, COLUMNS)}
    with pytest.raises(
        ValueError, match=r"Surf Reshift KSampler: expected concat_\w+ .*3 latent fr"
    ):
        SurfReshiftKSampler.execute(
            model=model, latent_image=latent, **conds(picture, mask), **SETTINGS
        )
    assert not model.seen


@pytest.mark.parametrize(("picture", "mask"), [(3, 3), (3, 1)])
def test_the_video_s_length_and_a_short_mask_are_accepted(picture, mask):
    check_frames_beside(conds(picture, mask), image_to_video(), (FRAMES,))


@pytest.mark.parametrize("model", [image_to_video(16), image_to_video(36, object)])
def test_models_that_ignore_the_picture_accept_any_length(model):
    check_frames_beside(conds(7, 7), model, (FRAMES,))
