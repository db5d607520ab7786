"""Scene cuts are found in latents of painted clips, and nothing else is taken for one."""

import pytest
import torch
from surf.surf_core.cuts import scene_cuts
from surf.surf_core.training.tiny import codec
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw

SCENES = 12


def unlike():
    """Number 24 scenes, each on another ground than the one before: a cut to the same is none."""
    numbers, last = [], None
    for number, ground in enumerate(draw(5, torch.arange(99)).ground.tolist()):
        if ground != last:
            numbers, last = [*numbers, number], ground
    return numbers[: 2 * SCENES]


NUMBERS = unlike()


def clip(scene, frames, speed=1.0):
    """Paint [1, 3, frames, 64, 64]: things that move over a textured ground that pans.

    At speed 1, a thing crosses a third of the picture in 81 frames.
    """
    times = (torch.arange(frames) / 80 - 0.5) * speed
    return paint(draw(5, torch.tensor([NUMBERS[scene]])), times, 64)


def latent(video, rate=4):
    """Encode frame by frame, and average `rate` frames but for the first, as causal VAEs do."""
    first, rest = codec.encode(video).split([1, video.shape[2] - 1], 2)
    return torch.cat([first, *(part.mean(2, keepdim=True) for part in rest.split(rate, 2))], 2)


@pytest.mark.parametrize("first", [13, 33, 34, 35, 36, 61])
def test_a_cut_is_found_wherever_it_lies_in_a_latent_frame(first):
    for scene in range(SCENES):
        video = torch.cat([clip(2 * scene, first), clip(2 * scene + 1, 81 - first)], 2)
        (cut,) = scene_cuts(latent(video))
        # The latent frame that the new scene's first frame is in, or the next one.
        assert cut - (first + 3) // 4 in ((0,) if first % 4 == 1 else (0, 1))


def test_a_cut_is_found_where_frames_are_latent_frames():
    for scene in range(SCENES):
        video = torch.cat([clip(2 * scene, 20), clip(2 * scene + 1, 30)], 2)
        assert scene_cuts(latent(video, 1)) == [20]


def test_several_cuts_are_found_in_order():
    video = torch.cat([clip(scene, 32) for scene in range(5)], 2)
    assert scene_cuts(latent(video[:, :, :-3])) == [9, 17, 25, 33]


@pytest.mark.parametrize("speed", [1.0, 2.0, 3.0])
def test_motion_is_no_cut(speed):
    assert all(not scene_cuts(latent(clip(scene, 81, speed))) for scene in range(2 * SCENES))


def test_a_flash_and_a_dissolve_are_no_cuts():
    share = torch.linspace(-1, 2, 81).clamp(0, 1).view(-1, 1, 1)
    for scene in range(SCENES):
        video, other = clip(2 * scene, 81), clip(2 * scene + 1, 81)
        assert not scene_cuts(latent(video.lerp(other, share)))
        video[:, :, 41:45] += 1
        assert not scene_cuts(latent(video.clamp(-1, 1)))


def test_a_still_and_a_short_video_have_no_cuts():
    still = codec.encode(clip(0, 1)).expand(-1, -1, 21, -1, -1)
    assert not scene_cuts(still)
    assert not scene_cuts(torch.zeros(1, 16, 21, 8, 8))
    for frames in (1, 2, 3, 4):
        assert not scene_cuts(latent(clip(0, 81))[:, :, :frames])


def test_a_batch_has_the_cuts_of_all_items():
    cut, other = (
        torch.cat([clip(2 * scene, count), clip(2 * scene + 1, 81 - count)], 2)
        for scene, count in ((0, 33), (1, 49))
    )
    assert scene_cuts(latent(torch.cat([cut, cut]))) == [9]
    assert scene_cuts(latent(torch.cat([cut, other]))) == []


def test_the_latent_stays():
    x = latent(clip(0, 81))
    before = x.clone()
    scene_cuts(x)
    assert torch.equal(x, before)
