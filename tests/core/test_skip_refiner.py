"""The refiner on kept tokens: equal to masking the others out, cheaper by what the mask says."""

from dataclasses import replace

import pytest
import torch
from surf.surf_core.cost import SURF_1B, Evaluations, ModelShape, activation_bytes, forward_flops
from surf.surf_core.flow import refine_with
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT, outline
from surf.surf_core.refiner import fused as steps
from surf.surf_core.skip import (
    Mask,
    Skipping,
    choose,
    compose,
    packing,
    refine_skipping,
    weight,
)
from surf.surf_core.training.live_bytes import LiveBytes
from surf.surf_core.window import segments
from torch.utils.flop_counter import FlopCounterMode

CLIPS = [(1, 4), (3, 4), (5, 4), (7, 3), (9, 2), (6, 0)]
SIZE = (3, 5)
both_blocks = pytest.mark.parametrize("block", ["wan", "scale"])


def make(window=4, block="scale", dtype=torch.float64, layers=3, **options):
    config = RefinerConfig(
        dim=24, heads=2, layers=layers, ffn_dim=48, window=window, latent_channels=4, text_dim=8,
        block=block, **options,
    )  # fmt: skip
    model = SurfRefinerDiT(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    return model.to(dtype)


def inputs(frames, size=SIZE, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 4, frames, 2 * size[0], 2 * size[1], generator=generator)
    context = torch.randn(batch, 6, 8, generator=generator)
    return z.to(dtype), torch.linspace(50, 950, batch).to(dtype), context.to(dtype)


def keep_of(frames, share=0.5, size=SIZE, seed=0):
    keep = torch.rand(frames, *size, generator=torch.Generator().manual_seed(seed)) < share
    keep[0, 0, 0] = True
    return keep


def mask_of(keep):
    return Mask(tokens=keep, scores=keep.float(), source="test", tau=0.5)


def cells(keep):
    return keep.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


class TokenMaskedAttention:
    """Attention of the whole clip, where nobody sees a skipped token or another window."""

    def __init__(self, keep, window):
        self.keep, self.window, self.layer = keep, window, -1

    def __call__(self, q, k, v, bounds):
        self.layer += 1
        frames = len(self.keep)
        home = torch.empty(frames, dtype=torch.long)
        cuts = segments(frames, self.window, bool(self.layer % 2))
        for index, (start, stop) in enumerate(cuts):
            home[start:stop] = index
        home = home.repeat_interleave(self.keep[0].numel())
        allowed = (home[:, None] == home) & self.keep.flatten()
        # A skipped token's own row is not read; it may see all.
        allowed |= ~self.keep.flatten()[:, None]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2)


@both_blocks
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize(("frames", "window"), CLIPS)
def test_kept_tokens_are_as_if_the_others_were_masked_out(frames, window, share, block, tolerance):
    model, reference = make(window, block), make(0, block)
    given, keep = inputs(frames), keep_of(frames, share)
    reference.packed = TokenMaskedAttention(keep, window)
    reference.segmentwise = False
    with torch.no_grad():
        out, expected = model(*given, keep=keep), reference(*given)
    where = cells(keep)
    assert expected[..., where].std() > 0.1
    assert (out - expected)[..., where].abs().max() <= tolerance[torch.float64]
    assert not out[..., ~where].any()


@both_blocks
@pytest.mark.parametrize(("frames", "window"), CLIPS)
def test_all_ways_through_the_model_agree(frames, window, block, monkeypatch, tolerance):
    """Segment by segment, few rows at a time, layer by layer, and with gradients on."""
    model, given, keep = make(window, block), inputs(frames), keep_of(frames)
    with torch.no_grad():
        out = model(*given, keep=keep)
        model.segmentwise = False
        whole = model(*given, keep=keep)
        model.segmentwise, model.rows = True, 7
        monkeypatch.setattr(steps, "ROWS", 7)
        rows = model(*given, keep=keep)
    trained = model(*given, keep=keep)
    for other in (whole, rows, trained):
        assert (out - other).abs().max() <= tolerance[torch.float64]


@both_blocks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("frames", "window"), CLIPS)
def test_with_nothing_skipped_it_is_the_plain_model_bit_for_bit(frames, window, block, dtype):
    model, given = make(window, block, dtype), inputs(frames, dtype=dtype)
    given = (given[0], given[1].float(), given[2])
    with torch.no_grad():
        plain = model(*given)
        assert torch.equal(model(*given, keep=torch.ones(frames, *SIZE, dtype=torch.bool)), plain)
        # Also where the tokens do go through the packing.
        model._packing = lambda keep, grid, device: packing(keep).to(device)
        packed = model(*given, keep=torch.ones(frames, *SIZE, dtype=torch.bool))
    assert torch.equal(packed, plain)


@both_blocks
def test_skipped_tokens_are_not_read_and_samples_stay_apart(block, tolerance):
    model, (z, t, context), keep = make(2, block), inputs(5), keep_of(5)
    other = torch.where(cells(keep), z, torch.full_like(z, 1e3))
    with torch.no_grad():
        out = model(z, t, context, keep=keep)
        assert torch.equal(model(other, t, context, keep=keep), out)
        alone = model(z[1:], t[1:], context[1:], keep=keep)
    assert (alone - out[1:]).abs().max() <= tolerance[torch.float64]


@both_blocks
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient_from_kept_tokens(block, checkpointing):
    model, given, keep = make(2, block), inputs(5), keep_of(5)
    model.checkpointing = checkpointing
    z = given[0].requires_grad_()
    model(z, *given[1:], keep=keep).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not z.grad[..., ~cells(keep)].any()
    assert z.grad[..., cells(keep)].all()


def test_a_mask_may_leave_windows_empty():
    model, given = make(2), inputs(7)
    keep = torch.zeros(7, *SIZE, dtype=torch.bool)
    keep[5, 1, 2] = True
    with torch.no_grad():
        out = model(*given, keep=keep)
    assert out.isfinite().all()
    assert out[..., cells(keep)].abs().min() > 0


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (torch.ones(4, 3, 5, dtype=torch.bool), "another length"),
        (torch.ones(5, 5, 3, dtype=torch.bool), "another resolution"),
        (torch.ones(5, 6, 10, dtype=torch.bool), "another resolution"),
        (torch.zeros(5, 3, 5, dtype=torch.bool), "skips the whole clip"),
        (torch.ones(2, 5, 3, 5, dtype=torch.bool), "one for all samples"),
        (torch.ones(5, 3, 5), "of bool"),
    ],
)
def test_masks_that_do_not_fit_are_rejected(keep, expected):
    with pytest.raises(ValueError, match=expected):
        make()(*inputs(5), keep=keep)
    if keep.dtype == torch.bool and keep.ndim == 3:
        with pytest.raises(ValueError, match=expected):
            Skipping(make(), inputs(5)[0], mask_of(keep))


# The cost.


@both_blocks
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("window", [0, 4])
def test_torch_counts_what_the_mask_predicts(block, window, share):
    """surf_1b's layers at 480p on the meta device, with tokens missing unevenly over time."""

    def attention(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return ((q @ k.mT) @ v).transpose(1, 2)

    config = replace(RefinerConfig.surf_1b(window), layers=2, block=block)
    fused = steps.Fused(
        name="none",
        modulated_norm=lambda x, scale, shift: x,
        norm_rotate=lambda q, k, *_: (q, k),
        rotate=lambda x, table: x,
    )
    model = outline(config, attention=attention, fused=fused)
    keep = torch.rand(21, 30, 52, generator=torch.Generator().manual_seed(0))
    keep = keep < share * torch.linspace(0, 2, 21).view(21, 1, 1)
    z = torch.zeros(1, 16, 21, 60, 104, device="meta")
    text = torch.zeros(1, 512, 4096, device="meta")

    def counted(keep):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(z, torch.zeros(1, device="meta"), text, keep=keep)
        return counter.get_total_flops()

    counts = packing(keep).counts
    shape = replace(SURF_1B, layers=2)
    part, whole = (forward_flops(shape, 81, 480, 832, window, kept) for kept in (counts, None))
    ratio = counted(keep) / counted(None)
    assert part / whole == pytest.approx(ratio, rel=0.05)
    # Two layers carry the text's embedding and the ends, forty hide them.
    ends = 2 * 512 * (4096 + 1152) * 1152
    assert part == pytest.approx(counted(keep) - ends, rel=0.05)


def test_a_stage_counts_kept_tokens():
    shape = ModelShape.of(RefinerConfig.tiny(), cell_pixels=4, cell_frames=1)
    full = Evaluations(shape=shape, steps=3, frames=5, height=64, width=64, window=2)
    half = replace(full, kept=(32, 0, 64, 10, 54))
    assert half.tokens == 3 * 2 * 160
    assert replace(full, kept=(64,) * 5).flops == full.flops
    assert 0.4 * full.flops < half.flops < 0.6 * full.flops
    for kept in ((32,) * 4, (65, 0, 0, 0, 0), (-1, 0, 0, 0, 0)):
        with pytest.raises(ValueError, match="5 counts of kept tokens, 0 to 64"):
            assert replace(full, kept=kept).flops


@both_blocks
@pytest.mark.parametrize("share", [0.25, 0.6, 0.98])
@pytest.mark.parametrize(("segmentwise", "batch"), [(True, 1), (False, 2)])
def test_activation_bytes_of_a_mask_are_those_that_live(block, share, segmentwise, batch):
    big = RefinerConfig.surf_1b() if block == "scale" else RefinerConfig.wan_1_3b()
    config = replace(big, layers=2, window=4)
    model = outline(config, attention=lambda q, k, v: torch.empty_like(q)).to(torch.bfloat16)
    model.segmentwise = segmentwise
    keep = torch.rand(21, 45, 80, generator=torch.Generator().manual_seed(0)) < share
    z = torch.zeros(batch, 16, 21, 90, 160, dtype=torch.bfloat16, device="meta")
    text = torch.zeros(batch, 512, 4096, dtype=torch.bfloat16, device="meta")
    with LiveBytes(model, z, text) as live, torch.no_grad():
        model(z, torch.zeros(batch, device="meta"), text, keep=keep)
    options = {"segmentwise": segmentwise, "batch": batch, "kept": packing(keep).counts}
    estimate = activation_bytes(ModelShape.of(config), 81, 720, 1280, 4, **options)
    assert estimate == pytest.approx(live.peak, rel=0.05)
    whole = activation_bytes(ModelShape.of(config), 81, 720, 1280, 4, **options | {"kept": None})
    assert estimate < whole or share > 0.9


# Composition.


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_cell_that_only_one_side_makes_never_sees_the_other(bad):
    """A refiner need not fill what it skips, nor a start what is refined."""
    generator = torch.Generator().manual_seed(0)
    refined, start = torch.randn(2, 1, 2, 1, 4, 6, generator=generator)
    share = torch.zeros(1, 4, 6)
    share[..., 2:4], share[..., 4:] = 0.5, 1
    expected = compose(refined, start, share)
    refined[..., :2], start[..., 4:] = bad, bad
    assert torch.equal(compose(refined, start, share), expected)
    assert torch.isfinite(expected).all()


def test_weights_fall_inside_of_what_is_refined_within_a_frame():
    keep = torch.zeros(3, 4, 6, dtype=torch.bool)
    keep[1, :, 3:] = True
    assert torch.equal(weight(keep, (1, 2, 2)), cells(keep).float())
    soft = weight(keep, (1, 2, 2), seam=2)
    assert not soft[~cells(keep)].any()
    assert torch.allclose(soft[1, 3, 6:], torch.tensor([1 / 3, 2 / 3, 1, 1, 1, 1]))
    assert not soft[[0, 2]].any()
    with pytest.raises(ValueError, match="seam must lie"):
        weight(keep, (1, 2, 2), seam=-1)


def test_composing_is_exact_at_both_ends():
    refined, start = (torch.randn(2, 4, 3, 4, 6) for _ in range(2))
    share = torch.rand(3, 4, 6).round(decimals=1)
    share[0], share[1] = 0, 1
    out = compose(refined, start, share)
    assert torch.equal(out[..., share == 0], start[..., share == 0])
    assert torch.equal(out[..., share == 1], refined[..., share == 1])
    assert torch.allclose(out, share * refined + (1 - share) * start, atol=1e-5)


TIMES = [("sigma", 0.65), ("t", 0.3), ("t", 0.0)]


@pytest.mark.parametrize("seam", [0, 2])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize(("time", "s"), TIMES)
def test_skipped_cells_are_the_start_at_every_step_and_exactly_at_the_end(
    time, s, cfg, seam, tolerance
):
    model = make(2, time=time, sigma_start=s)
    start, _, context = inputs(5)
    keep, where = keep_of(5), None
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(5)).double()
    estimates = []
    with torch.no_grad():
        out = refine_skipping(
            model, start, context, mask_of(keep), seam=seam, steps=4, noise=noise, cfg=cfg,
            negative=-context, on_step=lambda i, z, x0: estimates.append(x0),
        )  # fmt: skip
        plain = refine_with(model, start, context, steps=4, noise=noise, cfg=cfg, negative=-context)
    where = cells(keep)
    assert len(estimates) == 4
    for x0 in estimates:
        assert (x0 - start)[..., ~where].abs().max() <= tolerance[torch.float64]
    assert torch.equal(out[..., ~where], start[..., ~where])
    assert (out - start)[..., where].abs().min() > 0
    assert not torch.allclose(out, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("time", "s"), TIMES)
def test_refining_with_nothing_skipped_is_refining_bit_for_bit(time, s, dtype):
    model = make(2, dtype=dtype, time=time, sigma_start=s, sigma_start_range=(s, 1.0))
    start, _, context = inputs(5, dtype=dtype)
    noise = torch.randn(start.shape).to(dtype)
    options = {"steps": 3, "noise": noise, "sigma_start": s}
    mask = choose(torch.rand(5, *SIZE), source="test", tau=0)
    with torch.no_grad():
        plain = refine_with(model, start, context, **options)
        assert torch.equal(refine_skipping(model, start, context, mask, **options), plain)
