"""Video and sound between two legs: what changes with the size, what must not, what is refused."""

from types import SimpleNamespace

import host_stub
import pytest
import torch
from surf.nodes.host import audio_length
from surf.nodes.host.nested import Parts
from surf.nodes.host.preview import audio, pictures, samples
from surf.nodes.host.preview.noise import item_seeds, noise_after, noise_of
from surf.nodes.host.preview.pictures import Pictures
from surf.surf_core.schedule import shift_sigma, snr_equal_sigma

SHAPES = (1, 24, 3, 8, 12), (1, 32, 2, 15)


def nested(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Parts(*(torch.randn(shape, generator=generator) for shape in SHAPES)).joined()


def model(kind="MiniMaxH3", **sampling):
    """A MODEL of the stub whose class has the name of one of the host's."""
    made = host_stub.Patcher(24, base=type(kind, (), {}))
    made.get_model_object = lambda name: SimpleNamespace(**sampling)
    return made


def test_only_the_video_is_resized():
    x = nested()
    small = samples.resized(x, (4, 6))
    assert small.unbind()[0].shape == (1, 24, 3, 4, 6)
    assert small.unbind()[1] is x.unbind()[1]


def test_a_pack_takes_the_form_of_its_samples_again():
    x = nested()
    back = samples.like_samples(samples.packed(x), x)
    assert all(torch.equal(a, b) for a, b in zip(back.unbind(), x.unbind(), strict=True))
    zeros = samples.zeros_like(x)
    assert [part.abs().max() for part in zeros.unbind()] == [0, 0]


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (5, 7)])
@pytest.mark.parametrize("seeds", [None, [7]])
def test_noise_of_the_sound_goes_on_to_the_bit(size, seeds):
    """Its deviation is not 1, and stays what it is."""
    noise = Parts(nested().unbind()[0], 0.9 * nested().unbind()[1]).joined()
    like = samples.resized(nested(1), size)
    after = noise_after(noise, size, seeds, like)
    assert torch.equal(after.unbind()[1], noise.unbind()[1])
    assert after.unbind()[0].shape[-2:] == size
    if size == SHAPES[0][-2:]:
        assert torch.equal(after.unbind()[0], noise.unbind()[0]) == (seeds is None)


def test_implied_noise_of_both_parts_comes_from_the_pack():
    clean, noise, sigma = nested(1), nested(2), 0.4
    x = (1 - sigma) * samples.packed(clean) + sigma * samples.packed(noise)
    found = noise_of((x, torch.tensor([sigma]), samples.packed(clean)), clean)
    for a, b in zip(found.unbind(), noise.unbind(), strict=True):
        torch.testing.assert_close(a, b)


def test_seeds_follow_from_the_noise_of_the_video():
    video, sound = nested().unbind()
    assert item_seeds(3, nested()) == item_seeds(3, video)
    assert item_seeds(3, Parts(video, sound + 1).joined()) == item_seeds(3, video)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 1.58])
def test_a_lower_video_leaves_the_sound_of_minimax_h3_where_it_was(ratio):
    """Through both shifts, of video 12 / ratio and of sound 3."""
    base = torch.linspace(1, 0, 9)
    video = torch.tensor([shift_sigma(s, 12.0) for s in base.tolist()])
    lower = audio.lowered(video, ratio)
    for low, high in zip(lower.tolist(), video.tolist(), strict=True):
        assert low == pytest.approx(snr_equal_sigma(high, ratio))
    expected = [shift_sigma(s, 3.0) for s in base.tolist()]
    heard = [shift_sigma(s, 3.0 * ratio / 12.0) for s in lower.tolist()]
    assert heard == pytest.approx(expected, abs=1e-6)


def test_schedules_of_sound_are_found_where_there_are_any():
    assert audio.carries(None, model(audio_shift=3.0), "snr_equal")
    assert not audio.carries(None, model(audio_shift=3.0), "same")
    assert not audio.carries(None, model("WAN21"), "snr_equal")
    with pytest.raises(ValueError, match="set it to same"):
        audio.carries(None, model("LTXAV"), "snr_equal")
    two = SimpleNamespace(uncond_model_patcher=object())
    with pytest.raises(ValueError, match="a guider of one model"):
        audio.carries(two, model(audio_shift=3.0), "snr_equal")


@pytest.mark.parametrize(
    ("frames", "count"), [(1, 1), (2, 5), (3, 9), (7, 22), (12, 39), (37, 124)]
)
def test_pixel_frames_of_latent_frames_are_counted(frames, count):
    assert audio_length.pixel_frames(frames) == count


def test_sound_of_another_length_and_batches_are_refused_for_minimax_h3_alone():
    right = Parts(*nested().unbind())
    audio_length.check_length(model(), right)
    wrong = Parts(right.video, right.audio[..., :-1])
    with pytest.raises(ValueError, match="15 audio latents for 3 latent frames, got 14"):
        audio_length.check_length(model(), wrong)
    audio_length.check_length(model("LTXAV"), wrong)
    with pytest.raises(ValueError, match="batch of 2"):
        audio_length.check_length(model(), Parts(*(torch.cat([x, x]) for x in right.tensors)))


@pytest.fixture
def upscale(monkeypatch):
    """The stub has neither lanczos nor crops: sizes alone."""

    def resize(pixels, width, height, *_):
        return torch.nn.functional.interpolate(pixels, (height, width))

    monkeypatch.setattr(pictures.comfy.utils, "common_upscale", resize)


class BlankCoder:
    def encode(self, pixels):
        self.seen = pixels
        return torch.zeros(1, 24, 1, pixels.shape[1] // 16, pixels.shape[2] // 16)


def conditioning(*frames):
    keyframes = [
        {"resolved_frame_index": index, "latent": torch.ones(1, 24, count, 8, 12)}
        for index, count in frames
    ]
    return {"positive": [[None, {"minimax_keyframes": keyframes}]]}


def test_pictures_replace_single_frames_at_the_ends_alone(upscale):
    made = Pictures(first_frame=torch.rand(2, 50, 70, 3), vae=BlankCoder())
    conds = conditioning((0, 1), (4, 1), (0, 2))
    out = made.encoded(model_of_cells(), conds, 3, (4, 5))["positive"][0][1]["minimax_keyframes"]
    assert [x["latent"].shape[-2:] for x in out] == [(4, 6), (8, 12), (8, 12)]
    assert made.vae.seen.shape == (1, 64, 80, 3)
    assert conds["positive"][0][1]["minimax_keyframes"][0]["latent"].shape[-2:] == (8, 12)


def model_of_cells():
    made = model(latent_channels=32, latent_dimensions=3, spacial_downscale_ratio=16)
    made.model.diffusion_model.latents_dim = 24
    return made


def test_pictures_without_a_keyframe_or_for_another_model_are_refused(upscale):
    made = Pictures(last_frame=torch.rand(1, 50, 70, 3), vae=BlankCoder())
    with pytest.raises(ValueError, match="a keyframe at frame 8.*last_frame of MiniMaxH3"):
        made.encoded(model_of_cells(), conditioning((0, 1)), 3, (4, 6))
    with pytest.raises(ValueError, match="are for MiniMax H3"):
        made.encoded(model("WAN21"), conditioning((8, 1)), 3, (4, 6))
    assert Pictures().encoded(None, conds := conditioning((0, 1)), 3, (4, 6)) is conds


def test_a_vae_of_another_family_is_refused(upscale):
    made = Pictures(first_frame=torch.rand(1, 64, 96, 3), vae=SimpleNamespace(
        encode=lambda pixels: torch.zeros(1, 16, 1, 8, 12)))  # fmt: skip
    with pytest.raises(ValueError, match="24 channels"):
        made.encoded(model_of_cells(), conditioning((0, 1)), 3, (4, 6))
