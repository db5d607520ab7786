"""Tiles of video with audio: what memory is asked for, and when the picture stays whole."""

import host_stub
import pytest
import torch
from surf.nodes.host.nested import Parts
from surf.nodes.host.refine.tiling import WRAPPER_KEY, with_tiles

GB = 2**30
VIDEO, AUDIO = (1, 128, 3, 16, 24), (1, 8, 17, 16)


def model(asked=None, needed=0):
    """A MODEL of LTX-2's cells and patch that notes the shapes that memory is asked for."""
    made = host_stub.Patcher(128, base=type("LTXAV", (), {}))
    made.model.diffusion_model.patch_size = (1, 1, 1)

    def memory_required(shape):
        if asked is not None:
            asked.append(list(shape))
        return needed * shape[-1]

    made.model.memory_required = memory_required
    return made


def numbers(rows, columns):
    return 128 * 3 * rows * columns + 8 * 17 * 16


def estimated(clone):
    """The shape of which the host would load for, from that of the pack."""
    [wrapper] = clone.wrappers["prepare_sampling"][WRAPPER_KEY]
    return wrapper(lambda model, shape: shape, None, [1, 1, numbers(16, 24)])


def test_the_memory_of_a_tile_is_asked_for_as_the_pack_that_the_host_samples():
    asked = []
    clone = with_tiles(model(asked), torch.empty(VIDEO, device="meta"), 0, AUDIO)
    assert asked
    assert asked[0] == [1, 1, numbers(16, 24)]
    assert estimated(clone) == asked[0]
    clone = with_tiles(model(), torch.empty(VIDEO, device="meta"), 256, AUDIO)
    assert estimated(clone) == [1, 1, numbers(8, 8)]


def parts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Parts(*(torch.randn(shape, generator=generator) for shape in (VIDEO, AUDIO)))


def call(clone, apply_model, x):
    wrapper = clone.model_options["model_function_wrapper"]
    args = {"input": x.packed(), "timestep": torch.ones(1), "c": {"latent_shapes": x.shapes}}
    return wrapper(apply_model, args)


def test_every_tile_hears_the_whole_audio_and_changes_none_of_it():
    x, heard = parts(), []

    def apply_model(pack, t, latent_shapes=None):
        video, audio = host_stub.latents.unpack_latents(pack, latent_shapes)
        heard.append((tuple(video.shape[-2:]), audio))
        return Parts(video * 2, audio * 0).packed()

    clone = with_tiles(model(), torch.empty(VIDEO, device="meta"), 256, AUDIO)
    out = call(clone, apply_model, x)
    assert {size for size, _ in heard} == {(8, 8)}
    assert len(heard) > 4
    assert all(torch.equal(audio, x.audio) for _, audio in heard)
    video, audio = host_stub.latents.unpack_latents(out, x.shapes)
    assert torch.allclose(video, x.video * 2, atol=1e-5)
    assert torch.equal(audio, x.audio)


def test_a_picture_that_must_stay_whole_is_refused_in_tiles_and_not_cut_on_demand():
    shape, whole = torch.empty(VIDEO, device="meta"), "audio is refined with the whole picture"
    with pytest.raises(ValueError, match="the whole picture, got tile=256; set tile to 0"):
        with_tiles(model(), shape, 256, AUDIO, whole)
    with_tiles(model(), shape, 1024, AUDIO, whole)
    clone, tries = with_tiles(model(needed=GB), shape, 0, AUDIO, whole), []
    assert estimated(clone) == [1, 1, numbers(16, 24)]

    def greedy(pack, t, **conditioning):
        tries.append(pack.shape)
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        call(clone, greedy, parts())
    assert len(tries) == 1
    clone = with_tiles(model(), shape, 0, AUDIO)
    tries.clear()
    with pytest.raises(torch.OutOfMemoryError):
        call(clone, greedy, parts())
    assert len(tries) > 1
