"""Windows in time: who sees whom."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from surf.surf_core.window import attend_in_windows, segments

steady = settings(max_examples=50, deadline=None, derandomize=True)

window_size = st.integers(2, 40)
CASES = [
    (frames, window, shifted)
    for frames in (1, 2, 3, 5, 8, 13, 21)
    for window in (0, 2, 3, 4, 7, 21, 32)
    for shifted in (False, True)
]


def lengths(frames, window, shifted):
    return [stop - start for start, stop in segments(frames, window, shifted)]


@steady
@given(st.integers(1, 200), window_size, st.booleans())
def test_windows_cover_every_frame_once(frames, window, shifted):
    covered = [f for start, stop in segments(frames, window, shifted) for f in range(start, stop)]
    assert covered == list(range(frames))


@steady
@given(st.integers(1, 200), window_size, st.booleans())
def test_windows_are_full_but_for_the_ends(frames, window, shifted):
    sizes = lengths(frames, window, shifted)
    assert all(0 < size <= window for size in sizes)
    assert all(size == window for size in sizes[1:-1])


@steady
@given(st.integers(1, 200), window_size)
def test_shifted_windows_start_half_a_window_early(frames, window):
    first = lengths(frames, window, True)[0]
    assert first == (frames if frames <= window else window // 2)


@steady
@given(st.integers(1, 200), st.booleans())
def test_window_zero_is_full_attention(frames, shifted):
    assert segments(frames, 0, shifted) == [(0, frames)]


@steady
@given(window_size, st.booleans(), st.data())
def test_one_window_holds_a_short_clip_also_when_shifted(window, shifted, data):
    frames = data.draw(st.integers(1, window))
    assert segments(frames, window, shifted) == [(0, frames)]


def test_windows_of_a_wan_clip_are_clipped_not_wrapped():
    assert lengths(21, 4, False) == [4, 4, 4, 4, 4, 1]
    assert lengths(21, 4, True) == [2, 4, 4, 4, 4, 3]
    assert lengths(5, 3, True) == [1, 3, 1]


@steady
@given(st.integers(1, 120), window_size)
def test_two_layers_join_every_frame_to_its_neighbours(frames, window):
    seen = {
        (a, a + 1)
        for shifted in (False, True)
        for start, stop in segments(frames, window, shifted)
        for a in range(start, stop - 1)
    }
    assert seen == {(a, a + 1) for a in range(frames - 1)}


@pytest.mark.parametrize(("frames", "window"), [(0, 4), (-3, 4), (5, 1), (5, -2)])
def test_segments_reject_no_frames_and_windows_of_one(frames, window):
    with pytest.raises(ValueError, match="latent frame"):
        segments(frames, window, False)


def qkv(frames, per_frame=3, width=8, batch=2):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, frames * per_frame, width)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))


def dense(q, k, v, mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ v


def rolled(q, k, v, frames, window, shifted):
    """Eq. 3 to the letter: pad, roll, partition, and mask the wrapped halves and the padding."""
    per_frame = q.shape[1] // frames
    shift = window // 2 if shifted and frames > window else 0
    window = window if 0 < window < frames else frames
    padded = -(-frames // window) * window
    part = torch.where(torch.arange(padded) < frames, 0, 1)
    wrapped = torch.arange(padded) < shift  # these go to the end of the rolled clip
    label = (part + 2 * wrapped).roll(-shift).view(-1, window).repeat_interleave(per_frame, dim=1)
    mask = label[:, :, None] == label[:, None, :]

    def windows(x):
        x = F.pad(x.unflatten(1, (frames, per_frame)), (0, 0, 0, 0, 0, padded - frames))
        return x.roll(-shift, dims=1).unflatten(1, (-1, window)).flatten(2, 3)

    out = dense(windows(q), windows(k), windows(v), mask)
    out = out.unflatten(2, (window, per_frame)).flatten(1, 2).roll(shift, dims=1)
    return out[:, :frames].flatten(1, 2)


@pytest.mark.parametrize(("frames", "window", "shifted"), CASES)
def test_segments_match_roll_and_mask(frames, window, shifted, tolerance):
    q, k, v = qkv(frames)
    out = attend_in_windows(q, k, v, frames=frames, window=window, shifted=shifted, attention=dense)
    expected = rolled(q, k, v, frames, window, shifted)
    assert torch.allclose(out, expected, atol=tolerance[torch.float64])


def test_wrapped_windows_without_a_mask_would_differ():
    """The control: the comparison above can fail."""
    q, k, v = qkv(8)
    out = attend_in_windows(q, k, v, frames=8, window=4, shifted=True, attention=dense)
    wrapped = attend_in_windows(
        *(x.roll(-6, dims=1) for x in (q, k, v)), frames=8, window=4, shifted=False, attention=dense
    ).roll(6, dims=1)
    assert (out - wrapped).abs().max() > 0.1


@pytest.mark.parametrize(("frames", "window", "shifted"), CASES)
def test_attention_is_called_once_per_window_on_views(frames, window, shifted):
    q, k, v = qkv(frames, per_frame=7)
    sizes = []

    def attention(*parts):
        sizes.append(parts[0].shape[1] // 7)
        assert all(
            part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            for part, whole in zip(parts, (q, k, v), strict=True)
        )
        return parts[2] + 1

    out = attend_in_windows(
        q, k, v, frames=frames, window=window, shifted=shifted, attention=attention
    )
    assert sizes == lengths(frames, window, shifted)
    assert torch.equal(out, v + 1)


def test_attend_in_windows_takes_heads_as_a_fourth_axis():
    q, k, v = (x.unflatten(-1, (2, 4)) for x in qkv(5))

    def attention(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(
            1, 2
        )

    out = attend_in_windows(q, k, v, frames=5, window=2, shifted=True, attention=attention)
    assert out.shape == v.shape


def test_gradients_stay_inside_their_window():
    q, k, v = (x.requires_grad_() for x in qkv(7))
    out = attend_in_windows(q, k, v, frames=7, window=3, shifted=True, attention=dense)
    out[:, 3:12].sum().backward()  # frames 1 to 3, the second window
    for x in (q, k, v):
        assert (x.grad[:, :3] == 0).all()
        assert (x.grad[:, 12:] == 0).all()
        assert (x.grad[:, 3:12] != 0).any()


def test_attend_in_windows_rejects_tokens_that_are_no_whole_frames():
    q, k, v = qkv(5)
    with pytest.raises(ValueError, match="pass the video tokens only"):
        attend_in_windows(q, k, v, frames=4, window=2, shifted=False, attention=dense)
