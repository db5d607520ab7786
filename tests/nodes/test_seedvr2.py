"""Surf SeedVR2 Skip without a host: windows over refined tokens, the cache, refusals."""

from types import SimpleNamespace

import host_stub
import pytest
import torch
from surf.nodes.host.node import reporting_as
from surf.nodes.host.skip import seedvr2
from surf.nodes.host.skip.seedvr2_blocks import replace_blocks, run_block
from surf.nodes.host.skip.seedvr2_windows import PrefilledCache, fill_cache, partition, phase
from surf.nodes.seedvr2 import SurfSeedVR2Skip, describe
from surf.surf_core.skip import Mask, packing

GRID = (3, 4, 5)
CUTS = [
    (slice(t, t + 2), slice(h, h + 3), slice(w, w + 2))
    for w in (0, 2, 4)
    for h in (0, 3)
    for t in (0, 2)
]
"""Windows that do not divide the grid."""


def drawn(seed=0, share=0.5):
    tokens = torch.rand(GRID, generator=torch.Generator().manual_seed(seed)) < share
    tokens[:2, :3, 2:4] = False
    return tokens


class Rope:
    """Says of every token where it lies in its window."""

    def __init__(self, mm):
        self.mm = mm

    def get_freqs(self, sizes, texts=None):
        rows = [torch.arange(t * h * w) for t, h, w in sizes.tolist()]
        table = torch.cat(rows)[:, None].float()
        return table if texts is None else (table, torch.arange(int(texts.sum()))[:, None])


def attention(mm=True, version_7b=False):
    return SimpleNamespace(
        window_method="by_size", window=(4, 3, 3), version_7b=version_7b, rope=Rope(mm)
    )


@pytest.mark.parametrize("keep", [drawn(), drawn(1, 0.1), torch.ones(GRID, dtype=torch.bool)])
def test_windows_hold_every_kept_token_once(keep):
    windows = partition(keep, CUTS)
    assert windows.order.sort().values.tolist() == list(range(int(keep.sum())))
    assert sum(windows.counts) == len(windows.rows) == int(keep.sum())
    assert 0 not in windows.counts


def test_a_window_holds_what_the_mask_keeps_of_it_in_order():
    keep, number = drawn(), -torch.ones(GRID, dtype=torch.long)
    number[keep] = torch.arange(int(keep.sum()))
    windows, before, seen = partition(keep, CUTS), 0, 0
    full = [cut for cut in CUTS if keep[cut].any()]
    assert len(full) < len(CUTS)
    assert windows.sizes == tuple(tuple(keep[cut].shape) for cut in full)
    for cut, count in zip(full, windows.counts, strict=True):
        inside = number[cut].flatten()
        assert windows.order[seen : seen + count].tolist() == inside[inside >= 0].tolist()
        places = (inside >= 0).nonzero().flatten() + before
        assert windows.rows[seen : seen + count].tolist() == places.tolist()
        seen, before = seen + count, before + len(inside)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(("mm", "version_7b"), [(True, False), (False, False), (False, True)])
def test_the_cache_is_filled_for_refined_tokens_alone(samples, mm, version_7b):
    keep, cache, module = drawn(), PrefilledCache(), attention(mm, version_7b)
    windows, kept = partition(keep, CUTS), int(keep.sum())
    fill_cache(cache, module, windows, torch.tensor([[7]] * samples))
    forward, reverse, sizes, held, lengths, counts = cache[f"{phase(module)}.win_transform"]
    tokens = torch.arange(samples * kept)
    assert torch.equal(reverse(forward(tokens)), tokens)
    assert torch.equal(forward(tokens)[:kept], windows.order)
    assert torch.equal(forward(tokens)[-kept:], windows.order + (samples - 1) * kept)
    assert held.tolist() == counts == [len(windows.counts)] * samples
    assert lengths == cache[f"{phase(module)}.vid_len"].tolist() == list(windows.counts) * samples
    assert len(sizes) == len(lengths)
    name = "mmrope_freqs_3d" if mm else "rope_freqs_3d"
    table = cache[f"{phase(module)}.{name}"]
    table, text = table if mm else (table, None)
    expected = Rope(mm).get_freqs(torch.tensor(windows.sizes))[windows.rows]
    assert torch.equal(table, expected.repeat(samples, 1))
    assert text is None or len(text) == 7 * len(lengths)
    assert not cache.unread


class HostCache:
    """As the host's."""

    def __init__(self, cache=None):
        self.cache = {} if cache is None else cache

    def __call__(self, key, make):
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]


def block(names):
    """A block of the host that adds 1 to every token, with a row of modulation for each."""

    def run(args):
        cache = args["cache"]
        for name in names:
            cache(name, lambda: None)
        cache("emb_repeat_0_vid", lambda: torch.repeat_interleave(
            torch.arange(len(args["vid_shape"])), cache("vid_len", lambda: None)
        ))  # fmt: skip
        return {**args, "vid": args["vid"] + 1}

    return {"original_block": run}


def run_blocks(keep, samples=1, grid=GRID, names=("win_transform", "vid_len", "rope_freqs_3d")):
    """Two blocks of one phase over tokens that are all 1; what comes out, and the cache."""
    module = attention(False)
    windows, places, cache = partition(keep, CUTS), packing(keep), HostCache()
    size = grid[0] * grid[1] * grid[2]
    args = {
        "vid": torch.ones(samples * size, 2),
        "vid_shape": torch.tensor([grid] * samples),
        "txt_shape": torch.tensor([[7]] * samples),
        "cache": cache,
    }
    seen = []
    for index in range(2):
        with reporting_as("Surf SeedVR2 Skip"):
            run = run_block(module, windows, places, index, 1, None)
        args = run(args, block([f"{phase(module)}.{name}" for name in names]))
        seen.append(len(args["vid"]))
        args = {**args, "cache": cache}
    return args["vid"], cache.cache, seen


@pytest.mark.parametrize("samples", [1, 2])
def test_blocks_run_on_kept_tokens_and_all_come_back(samples):
    keep = drawn()
    vid, cache, seen = run_blocks(keep, samples)
    assert seen == [samples * int(keep.sum()), samples * keep.numel()]
    flat = keep.flatten().repeat(samples)
    assert torch.equal(vid, torch.where(flat[:, None], 3.0, 0.0).expand(-1, 2))
    rows = torch.arange(samples).repeat_interleave(keep.numel())
    assert torch.equal(cache["emb_repeat_0_vid"], rows)
    assert "vid_len" not in cache


@pytest.mark.parametrize("chains", [True, False])
def test_blocks_are_put_back_round_one_that_took_their_place(chains):
    keep, module = drawn(), attention(False)
    module.window_op = lambda grid, window: CUTS
    network = SimpleNamespace(blocks=[SimpleNamespace(attn=module) for _ in range(2)])
    mask = Mask(tokens=keep, scores=keep.float(), source="detail", tau=0.5)
    installed, seen = {}, []
    clone = host_stub.Patcher()
    clone.set_model_patch_replace = lambda run, _, name, index: installed.update(
        {(name, index): run}
    )
    put_back = replace_blocks(clone, network, mask)
    options = {"patches_replace": {"dit": installed}}
    assert put_back(options) is options

    def other(args, extra):
        seen.append(len(args["vid"]))
        return installed["block", 0](args, extra) if chains else extra["original_block"](args)

    again = put_back({"patches_replace": {"dit": {**installed, ("block", 0): other}}})
    patches, cache = again["patches_replace"]["dit"], HostCache()
    args = {
        "vid": torch.ones(keep.numel(), 2), "vid_shape": torch.tensor([GRID]),
        "txt_shape": torch.tensor([[7]]), "cache": cache,
    }  # fmt: skip
    names = [f"{phase(module)}.{name}" for name in ("win_transform", "vid_len", "rope_freqs_3d")]
    for index in range(2):
        args = {**patches["block", index](args, block(names)), "cache": cache}
    assert seen == [int(keep.sum())]
    expected = torch.where(keep.flatten()[:, None], 3.0, 0.0).expand(-1, 2)
    assert torch.equal(args["vid"], expected)


def test_another_clip_is_rejected():
    with pytest.raises(ValueError, match=r"^Surf SeedVR2 Skip: expected 60 tokens.*got 80"):
        run_blocks(drawn(), grid=(4, 4, 5))


def test_blocks_that_do_not_ask_are_rejected():
    with pytest.raises(ValueError, match=r"^Surf SeedVR2 Skip: .*look up .*rope_freqs_3d"):
        run_blocks(drawn(), names=("win_transform", "vid_len"))


def test_a_host_without_seedvr2_is_rejected():
    with pytest.raises(ValueError, match=r"^Surf SeedVR2 Skip: expected a ComfyUI with SeedVR2"):
        SurfSeedVR2Skip.execute(host_stub.Patcher(), [], choose="tau", keep=0.5, tau=3.0)


def test_conditioning_without_a_latent_is_rejected():
    with pytest.raises(ValueError, match="^expected conditioning with the"):
        seedvr2._low_quality([[torch.zeros(1, 58, 8), {}]])


def test_the_latent_is_what_the_conditioning_holds():
    condition = torch.randn(2, 17, 1, 4, 4)
    start = seedvr2._low_quality([[None, {"condition": condition}]] * 2)
    assert torch.equal(start, condition[:, :16])


def test_the_report_tells_what_is_refined():
    tokens = torch.zeros(2, 2, 2, dtype=torch.bool)
    tokens[0, 0] = True
    mask = Mask(tokens=tokens, scores=tokens.float(), source="detail", tau=0.5)
    assert describe(mask).startswith("2 of 8 tokens are refined (25.0%): 2 latent frames of 2 x 2")
