"""Reading shards: a batch is a function of seed and step, held-out videos are whole ones."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.resample import resize
from surf.surf_core.training.data import Shards
from surf.surf_core.training.prepare.clips import Clip, clips
from surf.surf_core.training.prepare.options import tiny
from surf.surf_core.training.sampler import BucketSampler
from surf.surf_core.training.tiny import codec
from surf.surf_core.training.tiny.clips import write_clips, write_video
from surf.surf_core.training.tiny.prompt import encode_prompt
from surf.surf_core.training.tiny.scenes import render

from . import prepared


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_clips(folder / "v", 12, seed=1)
    for level in (90, 150):
        prepared.write(folder / "v" / f"long{level}.mp4", 16, level=level)
    prepared.write_sound(folder / "v" / "sound.mp4")
    prepared.run(folder / "v", folder / "out")
    return folder / "out"


def test_a_batch_is_a_function_of_seed_and_step(root):
    def batch(step, seed=0, rank=0, world=1):
        shards = Shards(root, held_out=0.0)
        keys = BucketSampler(shards.buckets(), 4, seed).at(step, rank, world).keys
        return shards.batch(keys)

    first, again = batch(5), batch(5)
    assert {name: tuple(x.shape) for name, x in first.items()} == {
        "hr": (4, 16, 5, 32, 32),
        "lr": (4, 16, 5, 8, 8),
        "start": (4, 16, 5, 32, 32),
        "text": (4, 3, 4096),
    }
    assert all(x.dtype == torch.float32 for x in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hr"], batch(6)["hr"])
    assert not torch.equal(first["hr"], batch(5, seed=1)["hr"])
    halves = [batch(5, rank=rank, world=2)["hr"] for rank in (0, 1)]
    assert torch.equal(first["hr"], torch.stack(halves, 1).flatten(0, 1))


def test_only_accepted_clips_are_read(root):
    shards = Shards(root, held_out=0.0)
    assert len(shards) == len(shards.buckets()) == 12 + 3 + 3
    assert set(shards.buckets().values()) == {"128x128x5"}
    assert shards.options == prepared.OPTIONS


def test_whole_videos_are_held_out_and_more_of_them_as_the_share_grows(root):
    held = [set(Shards(root, held_out=share).held_out) for share in (0.0, 0.3, 0.6, 0.9)]
    assert held[0] == set()
    assert held[0] < held[1] < held[2] < held[3]
    shards = Shards(root, held_out=0.6)
    videos = {shards.row(key).content for key in shards.held_out}
    assert videos.isdisjoint(shards.row(key).content for key in shards.buckets())
    assert len(shards.buckets()) + len(shards.held_out) == len(shards)


def test_a_sample_is_what_was_filmed(root):
    shards = Shards(root)
    for key in (*shards.held_out, *shards.buckets()):
        row, sample = shards.row(key), shards.load(key)
        if row.source != "scene00003.mp4":
            continue
        (clip,) = (c for c in clips(root.parent / "v" / row.source, (5,)) if isinstance(c, Clip))
        pixels = codec.decode(sample.hr[None])[0].movedim(0, -1) * 127.5 + 127.5
        assert (pixels - clip.frames).abs().mean() < 6
        assert torch.allclose(sample.text, encode_prompt(sample.caption)[0], atol=2e-3)
        return
    pytest.fail("the scene is not there")


def test_without_a_stored_start_the_latent_is_enlarged(root, tmp_path):
    options = replace(tiny(), start="latent")
    prepared.run(root.parent / "v" / "scene00000.mp4", tmp_path, options=options, text="none")
    shards = Shards(tmp_path, held_out=0.0)
    (key,) = shards.buckets()
    sample = shards.load(key)
    enlarged = resize(sample.lr, (32, 32), "bilinear")
    assert torch.allclose(sample.start, enlarged, atol=1e-6)
    assert sample.text is None
    assert sorted(shards.batch([key])) == ["hr", "lr", "start"]


def test_reading_refuses_what_is_not_there(root, tmp_path):
    shards = Shards(root)
    with pytest.raises(KeyError, match="take it from buckets"):
        shards.load("nothing")
    with pytest.raises(ValueError, match="expected clips of one bucket"):
        shards.batch([])
    with pytest.raises(ValueError, match="held_out=1"):
        Shards(root, held_out=1)
    with pytest.raises(FileNotFoundError, match="surf_core.training.prepare"):
        Shards(tmp_path)
    prepared.write_sound(tmp_path / "sound.mp4")
    prepared.run(tmp_path / "sound.mp4", tmp_path / "out")
    with pytest.raises(ValueError, match="none accepted"):
        Shards(tmp_path / "out")


def test_drawn_videos_keep_their_pixels_and_their_bytes(tmp_path):
    first = write_clips(tmp_path / "a", 3, seed=4)
    second = write_clips(tmp_path / "b", 2, seed=4)
    assert [path.name for path in first] == [f"scene0000{i}.mp4" for i in range(3)]
    for a, b in zip(first[:2], second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert a.with_suffix(".txt").read_text() == b.with_suffix(".txt").read_text()
    scene = render(1, 5, 128, torch.Generator().manual_seed(4 * 1_000_003))
    assert first[0].with_suffix(".txt").read_text().strip() == scene.prompts[0]
    (clip,) = clips(first[0], (5,))
    error = (clip.frames.float() / 127.5 - 1).movedim(-1, 0) - scene.video[0]
    # 40 dB: of 2, the range of the pixels, a hundredth.
    assert error.square().mean().sqrt() < 0.02
    with pytest.raises(ValueError, match="even size"):
        write_clips(tmp_path / "c", 1, seed=0, size=127)
    write_video(tmp_path / "d.mp4", scene.video[0], crf=40)
    assert (tmp_path / "d.mp4").stat().st_size < first[0].stat().st_size / 2
