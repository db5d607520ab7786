"""Scores of Surf SeedVR2 Skip from the pixels of the video that its latent was encoded from.

Dims: F pixel frames, T latent frames, H, W latent cells; h, w tokens.
"""

import pytest
import torch
from surf.nodes.host.skip.seedvr2_pixels import score_pixels
from surf.surf_core.skip import pixel_detail

PATCH = (1, 2, 2)
ROWS, COLUMNS = 6, 10
"""Latent cells: 48 x 80 pixels, 3 x 5 tokens."""


def noise(*sizes, seed=0):
    return torch.rand(*sizes, generator=torch.Generator().manual_seed(seed))


def video(frames=17, height=24, width=40):
    """Grey, with texture that wanders: each latent frame has it in another place."""
    image = torch.full((frames, height, width, 3), 0.5)
    for i in range(frames):
        left = (i + 3) // 4 * 8 % width
        image[i, :8, left : left + 8] = noise(8, 8, 3, seed=i)
    return image


def clip(frames=5, seed=1):
    return noise(1, 16, frames, ROWS, COLUMNS, seed=seed)


def score(image, of=None, whole=None):
    latent = None if whole is None else {"samples": whole}
    return score_pixels(image, clip() if of is None else of, latent, PATCH)


def test_scores_match_those_of_the_enlarged_preview():
    image = video()
    expected = pixel_detail(image.movedim(-1, 0)[None], (48, 80), 2.0, cell=(4, 8), patch=PATCH)
    assert torch.equal(score(image), expected)
    assert score(image).shape == (1, 5, 3, 5)


def test_the_texture_has_the_highest_scores_of_its_frame():
    for i, frame in enumerate(score(video())[0]):
        assert frame.flatten().argmax() == i % 5, i
        assert frame[2].max() < 0.01 * frame.max()


def test_frames_of_the_clips_size_are_not_enlarged():
    image = noise(17, 48, 80, 3)
    expected = pixel_detail(image.movedim(-1, 0)[None], (48, 80), 1.0, cell=(4, 8), patch=PATCH)
    assert torch.equal(score(image), expected)


@pytest.mark.parametrize("size", [(41, 75), (48, 70), (33, 65)])
def test_frames_before_they_were_padded_are_taken_as_they_are(size):
    image = noise(17, *size, 3)
    expected = pixel_detail(image.movedim(-1, 0)[None], size, 1.0, cell=(4, 8), patch=PATCH)
    assert torch.equal(score(image), expected)
    assert expected.shape == (1, 5, 3, 5)


def test_an_enlargement_is_found_through_the_padding():
    # 3.3 times 13 x 23 are 43 x 76, padded to 48 x 80; 3.478 times fill its width.
    image = noise(17, 13, 23, 3)
    expected = pixel_detail(image.movedim(-1, 0)[None], (45, 80), 80 / 23, cell=(4, 8), patch=PATCH)
    assert torch.equal(score(image), expected)


@pytest.mark.parametrize("frames", [14, 15, 16, 17])
def test_a_missing_end_repeats_the_last_frame_as_the_host_does(frames):
    image = video(17)[:frames]
    padded = torch.cat([image, image[-1:].expand(17 - frames, -1, -1, -1)])
    assert torch.equal(score(image), score(padded))


def test_a_still_of_one_frame_is_scored():
    assert score(video(1), of=clip(1)).shape == (1, 1, 3, 5)


def test_alpha_is_left_out():
    image = video()
    assert torch.equal(score(torch.cat([image, noise(17, 24, 40, 1)], dim=-1)), score(image))


@pytest.mark.parametrize(("first", "count"), [(0, 3), (0, 5), (2, 3), (3, 1), (4, 1)])
def test_a_part_has_the_scores_of_its_frames_in_the_whole(first, count):
    whole, image = clip(), video()
    part = whole[:, :, first : first + count]
    assert torch.equal(score(image, of=part, whole=whole), score(image)[:, first : first + count])


def test_inputs_are_not_changed():
    image, whole = video(), clip()
    before = image.clone(), whole.clone()
    score(image, of=whole[:, :, 1:3], whole=whole)
    assert torch.equal(image, before[0])
    assert torch.equal(whole, before[1])


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("of 14 to 17 frames, for 5 latent frames, got 13", lambda: score(video(13))),
        ("got 18; .* after Split SeedVR2 Latent", lambda: score(video(18))),
        ("got 18; .* all of them\\.$", lambda: score(video(18), whole=clip())),
        ("without it; connect what goes into", lambda: score(video(), whole=clip(seed=2))),
        ("without it; connect what goes into", lambda: score(video(), whole=clip(4))),
        ("80 x 48 pixels, got 40 x 40", lambda: score(video(height=40))),
        ("width, 3\\], got \\(17, 24, 40, 1\\)", lambda: score(video()[..., :1])),
        ("image must be finite", lambda: score(video() * torch.nan)),
        ("0 to 1 as image, got .* to 255; divide", lambda: score(255 * video() / video().max())),
        ("of torch.uint8", lambda: score((video() * 255).byte())),
        ("got conditioning of 2", lambda: score(video(), of=clip().repeat(2, 1, 1, 1, 1))),
        ("of whole tokens", lambda: score(video(), of=clip()[..., :5, :])),
        ("latent must be", lambda: score(video(), whole="nothing")),
    ],
)
def test_what_does_not_fit_is_rejected(words, make):
    with pytest.raises(ValueError, match=words):
        make()
