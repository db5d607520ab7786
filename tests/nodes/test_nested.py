"""Latents of video and audio: taken apart and joined in one place, whatever else looks at them."""

import host_stub
import pytest
import torch
from host_stub import latents as host
from surf.nodes.host import latents, nested
from surf.nodes.preview import SurfLatentDownscale

H3 = (1, 24, 3, 8, 12), (1, 32, 2, 13)
LTX = (2, 128, 3, 4, 6), (2, 8, 9, 16)
FAMILIES = pytest.mark.parametrize("shapes", [H3, LTX], ids=["h3", "ltx"])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts_of(shapes):
    return nested.Parts(*(random(*shape, seed=i) for i, shape in enumerate(shapes)))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


def model(name, channels):
    """A MODEL of the stub whose class has the name of one of the host's."""
    made = host_stub.Patcher(channels, base=type(name, (), {}))
    made.model.diffusion_model.latents_dim = 24
    sides = {"audio_latents_dim": 32} if "H3" in name else {}
    if name == "LTXAV":
        sides = {"num_audio_channels": 8, "audio_frequency_bins": 16}
    vars(made.model.diffusion_model).update(sides)
    return made


@FAMILIES
def test_parts_round_trip_through_the_hosts_value_and_the_pack(shapes):
    parts = parts_of(shapes)
    assert equal(nested.split(parts.joined(), "x"), parts)
    pack = parts.packed()
    assert pack.shape[:2] == (shapes[0][0], 1)
    assert equal(nested.unpack(pack, parts.shapes), parts)
    assert nested.unpack(torch.cat([pack, pack]), parts.shapes).shapes == [
        (2 * shape[0], *shape[1:]) for shape in shapes
    ]


@pytest.mark.parametrize("shape", [(1, 16, 3, 4, 6), (2, 16, 4, 6)])
def test_a_plain_latent_is_its_own_video(shape):
    x = random(*shape)
    parts = nested.split(x, "x")
    assert parts.audio is None
    assert parts.joined() is parts.packed() is nested.unpack(x, None).video is x
    assert nested.unpack(x, [x.shape]).video is x


@FAMILIES
def test_noise_and_clean_estimate_are_taken_from_the_pack_part_by_part(shapes):
    clean, noise, sigma = parts_of(shapes), parts_of(shapes), 0.3
    z = (1 - sigma) * clean.packed() + sigma * noise.packed()
    implied = nested.unpack((z - (1 - sigma) * clean.packed()) / sigma, clean.shapes)
    for found, drawn in zip(implied.tensors, noise.tensors, strict=True):
        assert torch.allclose(found, drawn, atol=1e-5)


@FAMILIES
def test_a_noise_mask_is_split_and_joined_as_the_host_reads_it(shapes):
    parts = parts_of(shapes)
    video = torch.rand(1, 1, *shapes[0][2:])
    for given, expected in (
        (video, (video, None)), (host.NestedTensor([video]), (video, None)), (None, (None, None)),
    ):  # fmt: skip
        assert nested.split_mask(given) == expected
    assert nested.join_mask(None, None, parts) is None
    assert nested.join_mask(video, None, nested.Parts(parts.video)) is video
    silent = torch.zeros(shapes[1])
    masks = nested.split_mask(nested.join_mask(None, silent, parts))
    assert masks[0].shape == parts.video.shape
    assert masks[0].min() == 1
    assert masks[1] is silent


SWAPPED = tuple(reversed(LTX))
BAD = {
    "three parts": ([*LTX, LTX[1]], "expected two nested parts.*got 3 of"),
    "one part": (LTX[:1], "expected two nested parts.*got 1 of"),
    "swapped parts": (SWAPPED, r"video \[B, C, T, H, W\] and then audio.*got 2.*LTXVConcatAV"),
    "two videos": ([LTX[0]] * 2, "two nested parts"),
    "an image and audio": ([(1, 16, 4, 6), LTX[1]], "two nested parts"),
    "another number of audios": ([LTX[0], (1, *LTX[1][1:])], r"as many audios.*got \[2, 1\]"),
    "no audio": ([LTX[0], (2, 8, 0, 16)], "at least one cell"),
}


@pytest.mark.parametrize("name", BAD)
def test_parts_of_another_kind_are_refused(name):
    shapes, words = BAD[name]
    with pytest.raises(ValueError, match=f"^latent.*{words}"):
        nested.split(host.NestedTensor([torch.zeros(shape) for shape in shapes]), "latent")


def test_audio_that_is_not_finite_is_refused():
    parts = parts_of(LTX)
    parts.audio[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="latent must be finite"):
        nested.split(parts.joined(), "latent")


def opened(name, channels, samples, **more):
    return latents.open_parts(model(name, channels), {"samples": samples, **more}, "latent")


def test_a_latent_opens_for_the_models_that_take_it():
    both = parts_of(H3)
    assert equal(opened("MiniMaxH3", 32, both.joined()), both)
    both = parts_of(LTX)
    assert equal(opened("LTXAV", 128, both.joined()), both)
    assert opened("LTXAV", 128, both.video).audio is None


@pytest.mark.parametrize(
    ("name", "channels", "samples", "words"),
    [
        ("MiniMaxH3", 32, parts_of(H3).video, "both in one run, got video alone.*EmptyMiniMaxH3"),
        ("LTXV", 128, parts_of(LTX).joined(), "which has no audio.*LTXVSeparateAVLatent"),
        ("LTXAV", 128, parts_of(H3).joined(), "128 channels, got 24"),
        ("MiniMaxH3", 32, parts_of(LTX).joined(), "24 channels, got 128"),
        ("MiniMaxH3", 32, parts_of((H3[0], (1, 8, 9, 16))).joined(), r"audio \[B, 32, 2, any\]"),
        ("MiniMaxH3", 32, parts_of((H3[0], (1, 32, 1, 13))).joined(), r"got \(1, 32, 1, 13\)"),
        ("LTXAV", 128, parts_of(((1, *LTX[0][1:]), H3[1])).joined(), r"audio \[B, 8, any, 16\]"),
    ],
)
def test_a_latent_of_another_model_is_refused(name, channels, samples, words):
    with pytest.raises(ValueError, match=words):
        opened(name, channels, samples)


def test_masks_of_every_part_are_checked():
    both, bad = parts_of(LTX), torch.full((2, 8, 9, 16), float("nan"))
    mask = nested.join_mask(None, bad, both)
    with pytest.raises(ValueError, match="noise mask must be finite"):
        opened("LTXAV", 128, both.joined(), noise_mask=mask)


@FAMILIES
def test_masks_of_other_parts_than_video_and_audio_are_refused(shapes):
    video, audio = (torch.ones(shape) for shape in shapes)
    both = parts_of(shapes).joined()
    name, channels = ("MiniMaxH3", 32) if shapes is H3 else ("LTXAV", 128)
    for parts in ([audio, video], [video, audio, audio]):
        with pytest.raises(ValueError, match=f"latent: expected a noise mask.*got {len(parts)} of"):
            opened(name, channels, both, noise_mask=host.NestedTensor(parts))
    for parts in ([video, audio], [video[:1, 0], audio], [video]):
        opened(name, channels, both, noise_mask=host.NestedTensor(parts))
    # The host would stretch it over the three frames.
    with pytest.raises(
        ValueError, match="expected a noise mask for 1 or . items and 1 or 3 latent"
    ):
        opened(name, channels, both, noise_mask=host.NestedTensor([video[0, :2], audio]))


DOWN = {"resolution": "by scale", "scale": 0.5, "width": 96, "height": 64, "method": "auto"}


def downscaled(latent, **changes):
    return SurfLatentDownscale.execute(latent, **(DOWN | changes)).args[0]


@FAMILIES
def test_downscaling_shrinks_the_video_and_its_mask_and_keeps_the_audio(shapes):
    parts = parts_of(shapes)
    rows, columns = shapes[0][-2:]
    mask = torch.rand(1, 1, shapes[0][2], rows, columns)
    silent = torch.zeros(shapes[1])
    latent = {"samples": parts.joined(), "noise_mask": nested.join_mask(mask, silent, parts)}
    out = downscaled(latent)
    plain = downscaled({"samples": parts.video, "noise_mask": mask})
    small = nested.split(out["samples"], "x")
    assert torch.equal(small.video, plain["samples"])
    assert small.audio is parts.audio
    masks = nested.split_mask(out["noise_mask"])
    assert torch.equal(masks[0], plain["noise_mask"])
    assert masks[1] is silent
    assert equal(nested.split(latent["samples"], "x"), parts)


def test_a_bucket_counts_the_cells_of_the_video():
    """864 x 480 pixels of H3 are 54 x 30 cells of 16."""
    parts = nested.Parts(torch.zeros(1, 24, 2, 30, 54), torch.zeros(1, 32, 2, 8))
    out = downscaled({"samples": parts.joined()}, resolution="240p")
    assert out["samples"].shape[-2:] == (16, 26)


@FAMILIES
def test_closing_a_latent_fits_the_videos_mask(shapes):
    parts = parts_of(shapes)
    mask = torch.rand(1, *shapes[0][-2:])
    large = parts.with_video(parts.video.repeat_interleave(2, -1).repeat_interleave(2, -2))
    for given in (mask, nested.join_mask(mask, None, parts)):
        out = latents.close_latent(
            {"samples": parts.joined(), "noise_mask": given, "downscale_ratio_spacial": 8},
            large.joined(),
        )
        assert "downscale_ratio_spacial" not in out
        video, audio = nested.split_mask(out["noise_mask"])
        assert video.shape[-2:] == large.video.shape[-2:]
        assert audio.shape == parts.audio.shape
        assert audio.min() == 1
    same = latents.close_latent({"samples": parts.joined(), "noise_mask": mask}, parts.joined())
    assert same["noise_mask"] is mask


def test_a_latent_is_blank_where_every_part_is():
    assert latents.is_blank(nested.Parts(torch.zeros(H3[0]), torch.zeros(H3[1])).joined())
    assert not latents.is_blank(nested.Parts(torch.zeros(H3[0]), torch.ones(H3[1])).joined())


@FAMILIES
def test_the_fake_host_samples_a_pack_and_gives_parts_back(shapes):
    """With mask 0 the audio comes back, and a guider's caller sees parts, not the pack."""
    parts, seen = parts_of(shapes), []
    guider = host_stub.CFGGuider(model("LTXAV", 128))
    guider.set_conds(*[[[torch.zeros(1, 2, 4), {}]]] * 2)
    out = guider.sample(
        host.prepare_noise(parts.joined(), 1), parts.joined(), host_stub.sampler_object("euler"),
        torch.tensor([0.8, 0.4, 0.0]),
        denoise_mask=nested.join_mask(None, torch.zeros(shapes[1]), parts),
        callback=lambda step, x0, x, total: seen.append(x0.unbind()),
    )  # fmt: skip
    out = nested.split(out, "x")
    assert out.shapes == parts.shapes
    assert torch.allclose(out.audio, parts.audio, atol=1e-6)
    assert not torch.allclose(out.video, parts.video, atol=1e-2)
    assert [part.shape for part in seen[0]] == list(map(torch.Size, shapes))
