"""Sound, joint sequences and wide heads priced by hand; the committed page says what cost says."""

from dataclasses import replace
from pathlib import Path

import pytest
from surf.surf_core.cost import (
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    LTX_2,
    MINIMAX_H3,
    WAN_5B,
    WAN_14B,
    AudioShape,
    ModelShape,
    audio_tokens,
    forward_flops,
    latent_frames,
    tokens,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PRICED = {
    "MiniMax H3": MINIMAX_H3, "LTX-2.3": LTX_2, "HunyuanVideo 1.5": HUNYUAN_VIDEO_15,
    "HunyuanVideo 1.5 I2V": replace(HUNYUAN_VIDEO_15, text_tokens=985), "Wan 2.2 5B": WAN_5B,
    "Wan 2.2 A14B": WAN_14B,
}  # fmt: skip


def page_rows(heading, page=None):
    """Read the rows of one table of a page, or of the committed one."""
    page = page or next(RESULTS.glob("flops-*-audio-video.md"))
    part = page.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
    return [line.strip("| ").split(" | ") for line in lines]


def sides(size):
    return tuple(map(int, reversed(size.split("x"))))


def test_every_model_is_on_the_page_and_costs_what_torch_counted_within_half_a_percent():
    rows = page_rows("One forward")
    assert {row[0] for row in rows} == set(PRICED)
    for name, size, frames, *counts, counted, priced, ratio in rows:
        shape, clip = PRICED[name], (int(frames), *sides(size))
        flops = forward_flops(shape, *clip)
        assert priced == f"{flops / 1e15:.4f}"
        assert flops / 1e15 == pytest.approx(float(counted), rel=5e-3)
        assert 0.995 < float(ratio) < 1.005
        expected = tokens(shape, *clip), audio_tokens(shape, clip[0]), shape.text_tokens
        assert counts == [str(count) for count in expected]


def test_previews_on_the_page_cost_what_cost_says():
    rows = page_rows("Previews")
    clips = {row[0]: int(row[2]) for row in page_rows("One forward")}
    for name, before, after, switch, guidance, plain, preview, gain in rows:
        k, steps = (int(number) for number in switch.split(" of "))
        high, low = (
            forward_flops(PRICED[name], clips[name], *sides(size)) for size in (before, after)
        )
        runs = 2e-15 if guidance == "on" else 1e-15
        total, ours = steps * high * runs, (k * high + (steps - k) * low) * runs
        assert [plain, preview] == [f"{total:.4g}", f"{ours:.4g}"]
        assert gain == f"{total / ours:.2f}"


def test_refinements_on_the_page_cost_what_cost_says():
    for name, size, window, one, steps, total, ratio in page_rows("Refinements"):
        clip = {"MiniMax H3": 124}.get(name, 121), *sides(size)
        windowed = forward_flops(PRICED[name], *clip, 0 if window == "full" else int(window))
        assert one == f"{windowed / 1e15:.4g}"
        assert total == f"{int(steps) * windowed / 1e15:.4g}"
        assert ratio == f"{forward_flops(PRICED[name], *clip) / windowed:.2f}"


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(1, 1), (5, 2), (6, 3), (17, 5), (18, 6), (22, 7), (39, 12), (56, 17), (124, 37), (362, 107)],
)
def test_latent_frames_of_h3_begin_anew_after_seventeen(frames, expected):
    assert latent_frames(MINIMAX_H3, frames) == expected


@pytest.mark.parametrize(
    ("shape", "frames", "count"),
    [(MINIMAX_H3, 39, 2 * 65), (MINIMAX_H3, 124, 2 * 207), (LTX_2, 121, 121), (WAN_14B, 81, 0)],
)
def test_sound_lasts_as_long_as_the_frames(shape, frames, count):
    assert audio_tokens(shape, frames) == count


def test_sound_in_the_sequence_costs_what_text_in_it_costs():
    silent = replace(MINIMAX_H3, audio=None)
    as_text = replace(silent, text_tokens=600 + audio_tokens(MINIMAX_H3, 124))
    with_sound = forward_flops(MINIMAX_H3, 124, 768, 1344)
    assert (
        with_sound == forward_flops(as_text, 124, 768, 1344) > forward_flops(silent, 124, 768, 1344)
    )


def test_a_gate_and_wider_heads_cost_their_matrices():
    plain = ModelShape(
        name="test", dim=8, layers=3, heads=2, ffn_dim=32, text_tokens=0, joint_text=True
    )
    n = tokens(plain, 5, 64, 96)

    def extra(**changes):
        changed = forward_flops(replace(plain, **changes), 5, 64, 96)
        return changed - forward_flops(plain, 5, 64, 96)

    assert extra(gated_ffn=True) == 2 * 3 * n * 8 * 32
    assert extra(attention_dim=12) == 2 * 3 * (n * 4 * 8 * 4 + 2 * n * n * 4)
    assert extra(attention_dim=8) == 0


def test_an_audio_stream_costs_itself_and_the_exchange_with_the_video():
    """By hand, at two widths; without sound the stream and the exchange are free."""
    sound = AudioShape(latents_per_second=5, frames_per_second=5, dim=4, ffn_dim=7)
    with_sound = ModelShape(
        name="test", dim=8, layers=1, heads=2, ffn_dim=32, text_tokens=3, audio=sound
    )
    n, a, text = tokens(with_sound, 9, 64, 96), audio_tokens(with_sound, 9), 3
    assert a == 9
    own = a * 4 * 4 * 4 + a * 2 * 4 * 7 + 2 * a * a * 4
    reads_text = 2 * a * 16 + 2 * text * 16 + 2 * a * text * 4
    to_video = 2 * n * 8 * 4 + 2 * a * 4 * 4 + 2 * n * a * 4
    to_audio = 2 * a * 4 * 4 + 2 * n * 8 * 4 + 2 * a * n * 4
    alone = forward_flops(replace(with_sound, audio=None), 9, 64, 96)
    extra = forward_flops(with_sound, 9, 64, 96) - alone
    assert extra == 2 * (own + reads_text + to_video + to_audio)


def test_windows_of_a_joint_sequence_count_its_text_once_each():
    """Every window attends to the text too, and the text to everything."""
    frame, text, d = 45 * 80, 256, 3072
    cuts = {False: (4, 4, 4, 4, 4, 4, 4, 4, 1), True: (2, 4, 4, 4, 4, 4, 4, 4, 3)}
    pairs = {
        shifted: sum(t * frame * (t * frame + text) for t in parts)
        for shifted, parts in cuts.items()
    }
    rest = text * (33 * frame + text)
    whole = (33 * frame + text) ** 2
    saved = forward_flops(HUNYUAN_VIDEO, 129, 720, 1280) - forward_flops(
        HUNYUAN_VIDEO, 129, 720, 1280, 4
    )
    assert saved == 4 * d * 30 * sum(whole - part - rest for part in pairs.values())
