"""Windowed attention on a fake host: ranges, masks, ties of length, chaining, refusals."""

import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from surf.nodes.host.attention import token_layout, windows
from surf.nodes.host.node import reporting_as
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.window import segments
from torch.nn.functional import scaled_dot_product_attention as sdpa

PATCH = (1, 2, 2)


def dense(q, k, v, mask=None):
    return sdpa(q, k, v, attn_mask=mask)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class WanModel:
    patch_size = PATCH
    ref_conv = None

    def _forward(self, x, timestep, context, clip_fea=None, transformer_options=None, **kwargs):
        return "output"


class HunyuanVideo(WanModel):
    double_blocks = (SimpleNamespace(flipped_img_txt=True),) * 3


class DirectExecutor:
    def __init__(self, network):
        self.class_obj, self.original = network, network._forward

    def __call__(self, *args, **kwargs):
        return self.original(*args, **kwargs)


class WindowsPatcher:
    """A MODEL with what `with_windows` uses."""

    def __init__(self, network, options=None):
        self.network, self.wrappers = network, {}
        self.model_options = {"transformer_options": options or {}}

    def get_model_object(self, name):
        return self.network

    def clone(self):
        new = WindowsPatcher(self.network, dict(self.model_options["transformer_options"]))
        new.wrappers = {key: list(wrappers) for key, wrappers in self.wrappers.items()}
        return new

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.pop(key, None)


def read(network, x, context, **named):
    return token_layout.read_call(DirectExecutor(network), (x, None, context), named)


def block(index, kind="double"):
    return {"block_type": kind, "block_index": index}


@pytest.mark.parametrize(("frames", "window"), [(1, 2), (3, 4), (7, 2), (9, 4), (13, 5)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 5), (3, 5)])
def test_ranges_match_the_masked_reference(frames, window, shifted, before, after):
    per_frame, length = 3, before + frames * 3 + after
    q, k, v = (random(2, length, 8, seed=seed) for seed in range(3))
    cuts = segments(frames, window, shifted)
    ranges = [slice(before + a * per_frame, before + b * per_frame) for a, b in cuts]
    out = windows.attend_ranges(dense, q, k, v, None, ranges, axis=1, out_axis=1)
    home = torch.full((length,), -1)
    for number, run in enumerate(ranges):
        home[run] = number
    allowed = (home[:, None] == home) | (home[:, None] < 0) | (home < 0)
    torch.testing.assert_close(out, dense(q, k, v, allowed), rtol=0, atol=1e-12)


def test_runs_keep_the_hosts_text_mask():
    q, k, v = (random(1, 2, 11, 4, seed=seed) for seed in range(3))
    mask = torch.zeros(1, 1, 1, 11, dtype=torch.float64)
    mask[..., 9:] = -torch.inf
    ranges = [slice(0, 3), slice(3, 6)]
    out = windows.attend_ranges(dense, q, k, v, mask, ranges, axis=2, out_axis=2)
    changed = v.clone()
    changed[:, :, 9:] += 100
    again = windows.attend_ranges(dense, q, k, changed, mask, ranges, axis=2, out_axis=2)
    assert torch.equal(out, again)


def test_a_mask_with_a_row_for_each_query_follows_its_queries():
    q, k, v = (random(1, 8, 4, seed=seed) for seed in range(3))
    mask = random(1, 8, 8, seed=5)
    ranges = [slice(2, 5), slice(5, 8)]
    out = windows.attend_ranges(dense, q, k, v, mask, ranges, axis=1, out_axis=1)
    alone = dense(q[:, 2:5], k[:, :5], v[:, :5], mask[:, 2:5, :5])
    torch.testing.assert_close(out[:, 2:5], alone, rtol=0, atol=1e-12)


def test_wan_tells_self_attention_from_cross_attention_of_the_same_length():
    x, context = torch.zeros(1, 16, 4, 6, 4), torch.zeros(1, 24, 8)
    call = read(WanModel(), x, context)
    assert (call.frames, call.per_frame) == (4, 6)
    found = [call.self_attention_depth(24, 24, block(i)) for i in (0, 0, 1, 1, 2, 2)]
    assert found == [0, None, 1, None, 2, None]


def test_wan_tells_them_apart_in_control_blocks_too():
    network = WanModel()
    network.vace_layers_mapping = {0: 0, 2: 1}
    call = read(network, torch.zeros(1, 16, 4, 6, 4), torch.zeros(1, 24, 8))
    seen = [call.self_attention_depth(24, 24, block(i)) for i in (0, 0, 0, 0, 1, 1, 2, 2, 2, 2)]
    assert seen == [0, None, 0, None, 1, None, 2, None, 1, None]


def test_control_blocks_alternate_by_their_own_order():
    network = WanModel()
    network.vace_layers_mapping = {0: 0, 2: 1, 4: 2}
    call = read(network, torch.zeros(1, 16, 2, 4, 4), torch.zeros(1, 7, 8))
    depths = [call.self_attention_depth(8, 8, block(i)) for i in (0, 0, 1, 2, 2, 3, 4, 4)]
    assert depths == [0, 0, 1, 2, 1, 3, 4, 2]


def test_wan_counts_reference_appended_and_context_tokens():
    network = WanModel()
    network.ref_conv = object()
    extra = {
        "reference_latent": torch.zeros(1, 16, 6, 4),
        "time_dim_concat": torch.zeros(1, 16, 2, 6, 4),
        "context_latents": [torch.zeros(1, 16, 1, 4, 4), torch.zeros(1, 16, 3, 2, 2)],
    }
    call = read(network, torch.zeros(1, 16, 5, 5, 3), torch.zeros(1, 7, 8), **extra)
    assert call.per_frame == 6
    assert call.find_video(6 + 30 + 12 + 4 + 3) == 6
    assert call.find_video(30) is None


def test_joint_models_find_the_video_on_either_side_of_the_text():
    network, x, text = HunyuanVideo(), torch.zeros(1, 16, 3, 4, 4), torch.zeros(1, 9, 8)
    call = read(network, x, text, ref_latent=torch.zeros(1, 16, 1, 4, 4))
    assert call.find_video(4 + 12 + 9) == 4
    assert call.find_video(9) is None
    network.double_blocks = (SimpleNamespace(),) * 3
    call = read(network, x, text)
    assert call.find_video(12 + 9) == 9
    assert call.self_attention_depth(21, 21, block(2)) == 2
    assert call.self_attention_depth(21, 21, block(1, "single")) == 4


def test_unexpected_tokens_are_refused_after_the_call():
    mine = windows.Windows(2)
    override = mine.over(None)
    with reporting_as("This Node"):
        wrapper = windows.make_wrapper(mine, override)

    class Patched(WanModel):
        def _forward(self, x, timestep, context, transformer_options=None):
            q = torch.zeros(1, 40, 4)
            return override(lambda q, *args, **kwargs: q, q, q, q, 1, transformer_options=block(0))

    with pytest.raises(ValueError, match="^This Node: .*set window to 0"):
        wrapper(DirectExecutor(Patched()), torch.zeros(1, 16, 4, 6, 4), None, torch.zeros(1, 7, 8))
    assert mine.state.call is None


def test_a_host_without_block_numbers_is_refused():
    state, q = threading.local(), torch.zeros(1, 8, 4)
    with reporting_as("This Node"):
        override = windows.make_override(state, 2, None)
    state.call = read(WanModel(), torch.zeros(1, 16, 2, 4, 4), torch.zeros(1, 7, 8))
    with pytest.raises(ValueError, match="^This Node: windowed attention needs .*0.8.0"):
        override(lambda q, *args, **kwargs: q, q, q, q, 1, transformer_options={})


def test_window_zero_gives_the_model_itself():
    model = WindowsPatcher(WanModel())
    assert windows.with_windows(model, 0) is model


def spy(seen):
    """An override that another node left, noting how many tokens it is asked about."""

    def earlier(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((q.shape[1], kwargs["low_precision_attention"]))
        return func(q, k, v, heads, mask=mask, **kwargs)

    return earlier


def self_attention(model, attends_itself=False):
    """Self-attention of block 1 over 5 frames of 6 tokens, as a host would run it."""
    options = model.model_options["transformer_options"]
    q = random(1, 5 * 6, 4)

    class Runs(WanModel):
        blocks = (None,)

        def _forward(self, x, timestep, context, transformer_options=None):
            call = {"transformer_options": block(1), "low_precision_attention": False}

            def attend(q, k, v, *args, **kwargs):
                return dense(q, k, v)

            if attends_itself:
                return dense(q, q, q)
            override = transformer_options[windows.OVERRIDE]
            return override(attend, q, q, q, 1, **call)

    [wrapper] = model.wrappers[windows.WRAPPER_KEY]
    x, text = torch.zeros(1, 16, 5, 6, 4), torch.zeros(1, 7, 8)
    return wrapper(DirectExecutor(Runs()), x, None, text, transformer_options=options)


def test_windowed_leaves_its_model_alone_and_chains_the_override():
    seen = []
    earlier = spy(seen)
    model = WindowsPatcher(WanModel(), {windows.OVERRIDE: earlier})
    out = self_attention(windows.with_windows(model, 2))
    assert model.model_options["transformer_options"] == {windows.OVERRIDE: earlier}
    assert not model.wrappers
    assert seen == [(6, False), (12, False), (12, False)]
    q = random(1, 5 * 6, 4)
    assert not torch.equal(out, dense(q, q, q))


def test_the_last_windows_replace_earlier_ones():
    seen = []
    model = WindowsPatcher(WanModel(), {windows.OVERRIDE: spy(seen)})
    first = windows.with_windows(model, 3)
    twice = windows.with_windows(first, 2)
    assert torch.equal(self_attention(twice), self_attention(windows.with_windows(model, 2)))
    assert seen == 2 * [(6, False), (12, False), (12, False)]
    override = twice.model_options["transformer_options"][windows.OVERRIDE]
    assert (
        getattr(override, windows.REPLACED)
        is model.model_options["transformer_options"][windows.OVERRIDE]
    )
    seen.clear()
    self_attention(first)
    assert seen == [(6, False), (18, False), (6, False)]


def test_the_last_windows_replace_earlier_ones_that_another_override_chained():
    seen = []
    first = windows.with_windows(WindowsPatcher(WanModel()), 2)
    ours = first.model_options["transformer_options"][windows.OVERRIDE]

    def chained(func, *args, **kwargs):
        def inner(q, k, v, *rest, **more):
            seen.append(q.shape[1])
            return func(q, k, v, *rest, **more)

        return ours(inner, *args, **kwargs)

    first.model_options["transformer_options"][windows.OVERRIDE] = chained
    second = windows.with_windows(first, 3)
    expected = self_attention(windows.with_windows(WindowsPatcher(WanModel()), 3))
    assert torch.equal(self_attention(second), expected)
    assert seen == [6, 18, 6]


def sparse(seen, previous):
    """An override that answers self-attention by itself, and hands on what it declines."""

    def answers(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((q.shape[1], k.shape[1]))
        if q.shape != k.shape:
            return previous(func, q, k, v, heads, mask=mask, **kwargs)
        return dense(q, k, v)

    return answers


@pytest.mark.parametrize("chains", [True, False])
def test_windows_are_put_back_above_an_override_that_took_their_place(chains, caplog):
    seen, model = [], windows.with_windows(WindowsPatcher(WanModel()), 2)
    expected = self_attention(model)
    options = model.model_options["transformer_options"]
    options[windows.OVERRIDE] = sparse(seen, options[windows.OVERRIDE] if chains else None)
    with caplog.at_level(logging.INFO):
        out = [self_attention(model) for _ in range(2)]
    assert torch.equal(out[0], expected)
    assert torch.equal(out[1], expected)
    assert seen == 2 * [(6, 6), (12, 12), (12, 12)]
    [said] = [r.getMessage() for r in caplog.records if "put back" in r.getMessage()]
    assert "test_windows.sparse.<locals>.answers" in said


def test_an_override_that_was_taken_out_is_put_back_too():
    model = windows.with_windows(WindowsPatcher(WanModel()), 2)
    expected = self_attention(model)
    del model.model_options["transformer_options"][windows.OVERRIDE]
    assert torch.equal(self_attention(model), expected)


def test_a_chained_override_sees_each_window_once():
    """Windows that are put back, above an override that hands on everything to ours below it."""
    seen, model = [], windows.with_windows(WindowsPatcher(WanModel()), 2)
    expected = self_attention(model)
    options = model.model_options["transformer_options"]
    ours = options[windows.OVERRIDE]

    def hands_on(func, q, *args, **kwargs):
        seen.append(q.shape[1])
        return ours(func, q, *args, **kwargs)

    options[windows.OVERRIDE] = hands_on
    assert torch.equal(self_attention(model), expected)
    assert seen == [6, 12, 12]


def test_attention_that_goes_past_the_windows_is_told_once(caplog):
    model = windows.with_windows(WindowsPatcher(WanModel()), 2)
    for _ in range(2):
        self_attention(model, attends_itself=True)
    [said] = [r.getMessage() for r in caplog.records]
    assert "windows are off in 1 of 1 blocks" in said
    caplog.clear()
    model = windows.with_windows(WindowsPatcher(WanModel()), 2)
    for past in (False, True):
        self_attention(model, attends_itself=past)
    assert not caplog.records


@pytest.mark.parametrize("window", [1, -2])
def test_with_windows_rejects_a_window(window):
    with pytest.raises(ValueError, match="^window must be"):
        windows.with_windows(WindowsPatcher(WanModel()), window)


def test_with_windows_rejects_a_model_it_does_not_know():
    class WanModel_S2V(WanModel):
        pass

    class FlatPatch(HunyuanVideo):
        patch_size = (2, 2)

    FlatPatch.__name__ = "HunyuanVideo"
    images = [
        type(name, (), {"patch_size": 2})() for name in ("Flux", "QwenImageTransformer2DModel")
    ]
    images.append(type("MMDiT", (), {"patch_size": None})())
    for network in (WanModel_S2V(), FlatPatch(), torch.nn.Identity(), *images):
        with pytest.raises(ValueError, match="^windowed attention expected .*set window to 0"):
            windows.with_windows(WindowsPatcher(network), 4)
    compiled = SimpleNamespace(_orig_mod=WanModel())
    token_layout.check_tokens_known(compiled)


def test_with_windows_rejects_a_refiner_that_has_windows_of_its_own():
    class HostedRefiner(SurfRefinerDiT):
        pass

    model = WindowsPatcher(HostedRefiner(RefinerConfig.tiny()))
    with pytest.raises(ValueError, match="Surf refiner.*connect it directly"):
        windows.with_windows(model, 4)
    assert windows.with_windows(model, 0) is model
