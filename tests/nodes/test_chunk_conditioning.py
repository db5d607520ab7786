"""What lies beside a video follows its chunks of time: maps, masks, sound, keyframes."""

import sys

import host_stub
import pytest
import torch
from surf.nodes.host.audio_length import pixel_frames
from surf.nodes.host.nested import Parts
from surf.nodes.host.refine.tiling import with_tiles
from surf.nodes.host.refine.timeline import Timeline

GB = 2**30
CELLS = (32, 40)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Give the host a large device."""
    module = sys.modules["comfy.model_management"]
    monkeypatch.setattr(module, "get_total_memory", lambda device: 1000 * GB)
    monkeypatch.setattr(module, "extra_reserved_memory", lambda: 0, raising=False)


def model(kind="WAN21", channels=16):
    return host_stub.Patcher(channels, base=type(kind, (), {}))


def empty(frames, size=CELLS):
    return torch.empty((1, 16, frames, *size), device="meta")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(clone, apply_model, x, **conditioning):
    args = {"input": x, "timestep": torch.ones(len(x)), "c": conditioning}
    return clone.model_options["model_function_wrapper"](apply_model, args)


def test_conditioning_with_the_videos_frames_is_cut_like_the_latent():
    frames = 41
    time = torch.arange(frames).float().view(1, 1, -1, 1, 1).expand(1, 2, -1, *CELLS)
    pixels = time.repeat_interleave(8, -1).repeat_interleave(8, -2)
    follows = {
        "c_concat": time, "vace_context": time[:, None], "denoise_mask": time[:, :1],
        "camera_conditions": pixels, "control_video": time, "context": [time, time],
        "context_latents": [time, noise(1, 2, 3, 9, 9)],
        "audio_embed": torch.arange(frames).float().view(1, -1, 1, 1).expand(1, -1, 5, 3),
    }  # fmt: skip
    whole = {
        "c_crossattn": noise(1, frames, 32), "guidance": torch.tensor([6.0]), "nothing": None,
        "y": noise(1, 768), "vace_strength": [1.0], "clip_fea": noise(1, frames, 8),
        "reference_latent": noise(1, 16, *CELLS), "ref_latent": noise(1, 16, 1, 6, 6),
        "time_dim_concat": noise(1, 16, frames, *CELLS), "one": noise(1, 16, 1, *CELLS),
    }  # fmt: skip
    calls = []

    def apply_model(x, t, **c):
        mine = x[0, 0, :, 0, 0]
        calls.append(len(mine))
        for name in ("c_concat", "vace_context", "denoise_mask", "camera_conditions",
                     "control_video"):  # fmt: skip
            assert torch.equal(c[name][..., 0, 0].reshape(-1, len(mine))[0], mine), name
        assert torch.equal(c["audio_embed"][0, :, 0, 0], mine)
        assert all(torch.equal(each[0, 0, :, 0, 0], mine) for each in c["context"])
        assert torch.equal(c["context_latents"][0][0, 0, :, 0, 0], mine)
        assert c["context_latents"][1] is follows["context_latents"][1]
        assert all(c[name] is whole[name] for name in whole if name != "vace_strength")
        return x

    x = time.repeat(1, 8, 1, 1, 1)
    clone = with_tiles(model(), empty(frames), 0)
    torch.testing.assert_close(call(clone, apply_model, x, **follows, **whole), x)
    assert len(calls) > 1


def test_a_mask_of_cells_follows_chunks_and_tiles():
    frames = 41
    keep = torch.zeros(frames, *CELLS, dtype=torch.bool)
    keep[:30, :20] = True
    place = torch.arange(keep.numel()).view(1, 1, *keep.shape).float()
    calls = []

    def apply_model(x, t, transformer_options):
        mine = transformer_options["surf_keep"]
        assert torch.equal(mine, keep.flatten()[x[0, 0].long()])
        calls.append(x.shape)
        return x

    x = place.expand(1, 16, -1, -1, -1)
    options = {"surf_keep": keep}
    for tile in (0, 256):
        clone = with_tiles(model(), empty(frames), tile)
        torch.testing.assert_close(call(clone, apply_model, x, transformer_options=options), x)
    assert options == {"surf_keep": keep}
    assert len(calls) > 4


@pytest.mark.parametrize(
    ("conditioning", "said"),
    [
        ({"control": {"output": []}}, "a ControlNet belongs to the whole video"),
        ({"pose_latents": noise(1, 16, 40, *CELLS)}, r"'pose_latents' \(1, 16, 40, 32, 40\)"),
        ({"face_pixel_values": noise(1, 3, 77, 8, 8)}, "'face_pixel_values'"),
        ({"audio_embed": noise(1, 80, 5, 3)}, "'audio_embed'"),
        ({"poses": [noise(1, 16, 82, *CELLS)]}, "set chunk_frames to 161"),
    ],
)
def test_what_cannot_follow_chunks_is_refused_before_the_model_runs(conditioning, said):
    calls, x = [], noise(1, 16, 41, *CELLS)
    clone = with_tiles(model(), empty(41), 0)
    with pytest.raises(ValueError, match=said):
        call(clone, lambda x, t, **c: calls.append(x), x, **conditioning)
    assert not calls
    whole = with_tiles(model(), empty(41), 0, chunk_frames=161)
    assert torch.equal(call(whole, lambda x, t, **c: x, x, **conditioning), x)


def test_a_controlnet_is_refused_before_anything_runs():
    conds = {"positive": [[noise(1, 4, 8), {"control": object()}]]}
    with pytest.raises(ValueError, match="ControlNet .* chunks of 81 of its 161 frames"):
        with_tiles(model(), empty(41), 0, conds=conds)
    with_tiles(model(), empty(21), 0, conds=conds)


class Joint:
    """A MODEL of video and sound, and a video of so many latent frames."""

    def __init__(self, kind, frames):
        self.kind, self.frames = kind, frames
        self.model = model(kind, channels=24 if kind == "MiniMaxH3" else 128)
        if kind == "MiniMaxH3":
            self.count, shape = round(pixel_frames(frames) * 40 / 24), (1, 4, 2, None)
        else:
            self.count, shape = round((8 * frames - 7) * 25 / 24), (1, 4, None, 16)
        self.axis = shape.index(None)
        sound = torch.arange(self.count).float()
        shape = [self.count if n is None else n for n in shape]
        sound = sound.view(*[-1 if i == self.axis else 1 for i in range(4)]).expand(shape)
        video = torch.arange(frames).float().view(1, 1, -1, 1, 1).expand(1, 2, -1, 4, 4)
        self.parts = Parts(video.clone(), sound.clone())

    def call(self, apply_model, **conditioning):
        """Evaluate, and return the calls (first video frame, frames, audio's first, last)."""
        x, heard = self.parts, []

        def run(pack, t, latent_shapes, **c):
            video, audio = host_stub.latents.unpack_latents(pack, latent_shapes)
            heard.append((int(video[0, 0, 0, 0, 0]), video.shape[2],
                          int(audio.min()), int(audio.max()) + 1))  # fmt: skip
            apply_model(heard[-1], **c)
            return Parts(video * 2, audio * 0).packed()

        clone = with_tiles(self.model, x.video, 0, x.audio.shape)
        out = call(clone, run, x.packed(), latent_shapes=x.shapes, **conditioning)
        video, audio = host_stub.latents.unpack_latents(out, x.shapes)
        torch.testing.assert_close(video, x.video * 2)
        assert torch.equal(audio, x.audio)
        return heard


@pytest.mark.parametrize(("kind", "frames"), [("LTXAV", 151), ("MiniMaxH3", 257)])
def test_every_chunk_hears_its_own_sound(kind, frames):
    joint = Joint(kind, frames)
    mask = joint.parts.audio[:, :1]

    def check(heard, audio_denoise_mask):
        begin, end = heard[2:]
        assert audio_denoise_mask.amin() == begin
        assert audio_denoise_mask.amax() == end - 1

    heard = joint.call(check, audio_denoise_mask=mask)
    assert len(heard) > 1
    time = Timeline(joint.model, frames)
    for first, length, begin, end in heard:
        seconds = (pixel_frames(first) if kind == "MiniMaxH3" else 8 * first) / time.pixels(frames)
        assert begin == round(seconds * joint.count)
        rate = (end - begin) / time.pixels(length)
        assert rate == pytest.approx(joint.count / time.pixels(frames), rel=0.01)
    assert heard[-1][3] == joint.count


def test_keyframes_go_to_the_chunks_that_hold_them():
    joint, kept = Joint("MiniMaxH3", 257), []
    places = (0, 300, joint.model and pixel_frames(257) - 1)
    keyframes = [
        {"resolved_frame_index": place, "latent": torch.full((1, 24, 1, 4, 4), float(place)),
         "audio_latent": None}
        for place in places
    ]  # fmt: skip
    reference = torch.full((1, 24, 1, 6, 6), -1.0)
    payload = {
        "keyframes": keyframes, "refs": [{"latent": reference}], "layout": object(),
        "cond_video_latents": [*(keyframe["latent"] for keyframe in keyframes), reference],
        "cond_audio_latents": [], "seed": 3,
    }  # fmt: skip

    def note(heard, minimax_payload):
        begin = pixel_frames(heard[0])
        mine = minimax_payload["keyframes"]
        assert "layout" not in minimax_payload
        assert minimax_payload["seed"] == 3
        *latents, last = minimax_payload["cond_video_latents"]
        assert last is reference
        for keyframe, latent in zip(mine, latents, strict=True):
            assert keyframe["latent"] is latent
            assert keyframe["resolved_frame_index"] + begin == latent[0, 0, 0, 0, 0]
        kept.append([keyframe["resolved_frame_index"] + begin for keyframe in mine])

    joint.call(note, minimax_payload=payload)
    assert kept[0][0] == 0
    assert kept[-1][-1] == places[-1]
    assert {place for mine in kept for place in mine} == set(places)
    assert any(not mine for mine in kept) or len(kept) > 1
    assert payload["keyframes"] is keyframes
    assert len(payload["cond_video_latents"]) == 4
