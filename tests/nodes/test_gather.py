"""Wan's blocks on the tokens of a mask, in float64: a network of few lines with the host's seam."""

import pytest
import torch
from surf.nodes.host.attention import windows
from surf.nodes.host.attention.token_layout import KEEP_KEY
from surf.nodes.host.skip import gather
from surf.surf_core.skip import Mask
from surf.surf_core.window import segments
from torch.nn.functional import scaled_dot_product_attention as sdpa

WIDTH = 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(grid, share=0.5, seed=0):
    scores = torch.rand(grid, generator=torch.Generator().manual_seed(seed))
    return Mask(tokens=scores > 1 - share, scores=scores, source="test", tau=1.0)


class WanModel:
    """The host's way through its blocks: its seam, its options, its times."""

    patch_size = (1, 2, 2)

    def __init__(self, before=0, after=0, blocks=4, deaf=False):
        self.ref_conv, self.blocks, self.deaf = before or None, range(blocks), deaf
        self.before, self.after, self.seen = before, after, []

    def _forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None,
                 transformer_options=None, **kwargs):  # fmt: skip
        tokens = x[:, :WIDTH, :, ::2, ::2].flatten(2).transpose(1, 2)
        extra = (random(len(x), n, WIDTH, seed=n) for n in (self.before, self.after))
        ref, appended = extra
        tokens = torch.cat([ref, tokens, appended], dim=1)
        pe = random(1, tokens.shape[1], 1, WIDTH, seed=8)
        replace = transformer_options.get("patches_replace", {}).get("dit", {})
        for index in self.blocks:

            def block(args, index=index):
                return {"img": self._block(index, transformer_options, **args)}

            args = {"img": tokens, "pe": pe, "vec": timestep, "txt": context}
            run = None if self.deaf else replace.get(("double_block", index))
            tokens = (run(args, {"original_block": block}) if run else block(args))["img"]
        return tokens

    def _block(self, index, options, img, pe, vec, txt):
        self.seen.append(img.shape[1])
        options = {**options, "block_index": index}
        turned, vec = img + pe[:, :, 0], self._spread(vec, img)
        attend = options.get("optimized_attention_override")
        out = attend(dense, turned, turned * 2, img * vec, 1, transformer_options=options) \
            if attend else dense(turned, turned * 2, img * vec, 1)  # fmt: skip
        return img + out + txt.mean()

    def _spread(self, vec, img):
        """As the host does: one row for all tokens, or each for as many in a row."""
        each = -(-img.shape[1] // vec.shape[1])
        if vec.shape[1] in (1, img.shape[1]):
            return vec[:, :, 0]
        return vec.repeat_interleave(each, 1)[:, : img.shape[1], 0]


def dense(q, k, v, heads, mask=None, **kwargs):
    return sdpa(q, k, v, attn_mask=mask)


class Executor:
    """The end of the host's chain of wrappers, or a wrapper before it."""

    def __init__(self, network, wrappers=()):
        self.class_obj, self.original, self.wrappers = network, network._forward, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.class_obj, self.wrappers[1:]), *args, **kwargs)


VIDEO = random(2, 16, 5, 6, 8)
TEXT, TIMES = torch.ones(1, 7, 4, dtype=torch.float64), torch.ones(2, 1, 6, WIDTH).double()


def cells(keep):
    return keep.repeat_interleave(2, 1).repeat_interleave(2, 2)


def through(network, keep=None, window=0, times=TIMES, **options):
    """Call a network the way a refined model is: with windows, with a mask."""
    wrappers = [] if keep is None else [gather.make_wrapper()]
    extra = (
        {"reference_latent": torch.zeros(1, 16, 2 * network.before, 2)} if network.before else {}
    )
    if network.after:
        extra["context_latents"] = [torch.zeros(1, 16, 1, 2 * network.after, 2)]
    if window:
        mine = windows.Windows(window)
        override = mine.over(options.get("optimized_attention_override"))
        options["optimized_attention_override"] = override
        wrappers.insert(0, windows.make_wrapper(mine, override))
    if keep is not None:
        options[KEEP_KEY] = cells(keep)
    kept = dict(options)
    out = Executor(network, wrappers)(VIDEO, times, TEXT, None, None, options, **extra)
    assert options == kept
    return out


def masked(keep, window, before, after):
    """The attention of the reference: all tokens, skipped ones seen by none."""
    frame, length = keep[0].numel(), before + keep.numel() + after
    seen = torch.ones(length, dtype=torch.bool)
    seen[before : before + keep.numel()] = keep.flatten()

    def override(func, q, k, v, heads, mask=None, **kwargs):
        home = torch.full((length,), -1)
        odd = bool(kwargs["transformer_options"]["block_index"] % 2)
        for number, (start, stop) in enumerate(segments(len(keep), window, odd)):
            home[before + start * frame : before + stop * frame] = number
        allowed = (home[:, None] == home) | (home[:, None] < 0) | (home < 0)
        return func(q, k, v, heads, mask=allowed & seen)

    return {"optimized_attention_override": override}, seen


@pytest.mark.parametrize("window", [0, 2, 3, 5])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 5), (3, 5)])
@pytest.mark.parametrize("kept", ["some", "frames", "one"])
def test_kept_tokens_match_the_masked_reference(window, before, after, kept, tolerance):
    keep = some((5, 3, 4), 0.5).tokens
    if kept == "frames":
        keep[[0, 3]] = False
    if kept == "one":
        keep[:] = False
        keep[2, 1, 1] = True
    options, seen = masked(keep, window, before, after)
    expected = through(WanModel(before, after), **options)
    network = WanModel(before, after)
    got = through(network, keep, window)
    close = {"rtol": 0, "atol": tolerance[torch.float64]}
    torch.testing.assert_close(got[:, seen], expected[:, seen], **close)
    assert not got[:, ~seen].any()
    assert set(network.seen) == {int(seen.sum())}


@pytest.mark.parametrize(("before", "rows"), [(0, 5), (0, 60), (3, 5), (3, 63)])
def test_times_of_frames_follow_their_tokens(before, rows, tolerance):
    times, keep = random(2, rows, 6, WIDTH) / 4, some((5, 3, 4), 0.5).tokens
    options, seen = masked(keep, 0, before, 0)
    expected = through(WanModel(before), times=times, **options)
    got = through(WanModel(before), keep, times=times)
    close = {"rtol": 0, "atol": tolerance[torch.float64]}
    torch.testing.assert_close(got[:, seen], expected[:, seen], **close)


def test_nothing_skipped_gathers_nothing():
    network, keep = WanModel(), torch.ones(5, 3, 4, dtype=torch.bool)
    assert torch.equal(through(network, keep, 2), through(WanModel(), None, 2))
    assert set(network.seen) == {60}


def test_replaced_blocks_run_inside_each_of_ours():
    keep, lengths = some((5, 3, 4), 0.5).tokens, []

    def theirs(args, extra):
        lengths.append(args["img"].shape[1])
        return extra["original_block"]({**args, "img": 2 * args["img"]})

    replaced = {"dit": {("double_block", 1): theirs, ("single_block", 0): theirs}, "other": {}}
    options, seen = masked(keep, 0, 0, 0)
    expected = through(WanModel(), patches_replace=replaced, **options)
    got = through(WanModel(), keep, patches_replace=replaced)
    torch.testing.assert_close(got[:, seen], expected[:, seen])
    assert lengths == [60, int(keep.sum())]
    assert list(replaced["dit"]) == [("double_block", 1), ("single_block", 0)]


def test_a_network_without_the_seam_is_refused():
    with pytest.raises(ValueError, match="a mask needs a host that lets blocks be replaced"):
        through(WanModel(deaf=True), some((5, 3, 4)).tokens)


def test_a_network_that_answers_from_a_cache_later_is_not():
    keep = some((5, 3, 4)).tokens
    network, wrapped = WanModel(), gather.make_wrapper()
    options = {KEEP_KEY: cells(keep)}
    call = (VIDEO, TIMES, TEXT, None, None, options)
    wrapped(Executor(network), *call)
    network.deaf = True
    wrapped(Executor(network), *call)


def test_tokens_that_another_node_adds_are_refused():
    keep = some((5, 3, 4)).tokens

    def more(args, extra):
        return {"img": torch.cat([args["img"]] * 2, dim=1)}

    with pytest.raises(ValueError, match="expected 60 tokens.*another node adds"):
        through(WanModel(), keep, patches_replace={"dit": {("double_block", 0): more}})


def test_functions_that_see_the_tokens_are_refused_while_it_runs():
    """A prompt may bring them: hooks."""
    with pytest.raises(ValueError, match="attn1_patch"):
        through(WanModel(), some((5, 3, 4)).tokens, patches={"attn1_patch": [print]})
