"""Surf Signature: what survived, as a picture and as JSON."""

import json

import pytest
import torch
from PIL import ImageDraw
from surf.nodes.host.signature import picture
from surf.nodes.signature import SurfSignature
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw

TIMES = torch.linspace(-0.5, 0.5, 13)[:5]


def frames(seed, size=64, channels=3):
    video = paint(draw(seed, torch.arange(1)), TIMES, size) / 2 + 0.5
    made = video[0].movedim(0, -1)
    return made if channels == 3 else torch.cat([made, torch.ones_like(made[..., :1])], dim=-1)


def run(image, reference, other=None, rows=480):
    out = SurfSignature.execute(image, reference, rows, other)
    return out.args[0], json.loads(out.args[1]), out.ui


def test_a_video_keeps_all_of_itself_and_another_seed_nothing():
    same, other = frames(5), frames(6)
    _, report, _ = run(same, same, other)
    assert {part["kept"] for part in report["parts"].values()} == {1.0}
    _, report, _ = run(other, same, other)
    assert [report["parts"][name]["kept"] for name in ("layout", "motion", "detail")] == [0, 0, 0]
    assert report["floor"] == "another seed"


def test_picture_shows_frames_of_both_and_bars_of_what_is_kept():
    same, other = frames(5), frames(6)
    picture, report, shown = run(same, same, other)
    assert picture.shape[0] == 1
    assert picture.shape[2:] == (720, 3)
    kept = torch.tensor([0x58, 0xC2, 0xA9]) / 255
    green = ((picture[0] - kept).abs().amax(dim=-1) < 0.01).sum()
    empty, _, _ = run(other, same, other)
    assert green > 5 * 600 * 10
    assert ((empty[0] - kept).abs().amax(dim=-1) < 0.01).sum() < 0.6 * green
    assert "look at them" in shown["text"][0]
    assert len(shown["images"]) == 1


def test_sizes_and_alpha_may_differ_and_inputs_stay(monkeypatch):
    large, small = frames(5, 96, channels=4), frames(5, 64)
    before = large.clone(), small.clone()
    _, report, _ = run(large, small)
    assert report["size"] == [64, 64]
    assert report["parts"]["layout"]["kept"] > 0.9
    assert torch.equal(large, before[0])
    assert torch.equal(small, before[1])


@pytest.mark.parametrize(
    ("image", "said"),
    [(frames(5)[:, :32], "shape of the video"), (frames(5).repeat(3, 1, 1, 1), "same length")],
)
def test_what_cannot_be_compared_is_refused(image, said):
    with pytest.raises(ValueError, match=f"Surf Signature: .*{said}"):
        run(image, frames(5))


def test_no_line_of_the_picture_is_cut(monkeypatch):
    """The longest texts, of a reference that stands still but for a little, fit in the picture."""
    written, room = [], []

    class MeasuredCanvas(ImageDraw.ImageDraw):
        def text(self, place, text, *args, font, **more):
            written.append(text)
            room.append(picture.WIDTH - picture.MARGIN - place[0] - font.getlength(text))
            super().text(place, text, *args, font=font, **more)

    monkeypatch.setattr(picture.ImageDraw, "Draw", MeasuredCanvas)
    flat = torch.full((5, 64, 64, 3), 0.5)
    flat[2:] += 0.01
    for other in (None, frames(6)):
        written.clear()
        _, report, _ = run(frames(5), flat, other)
        assert min(room) >= 0
        said = " ".join(written)
        assert report["note"] in said
        assert all(part["says"] in said for part in report["parts"].values())
