"""What survived of a reference: faithful copies keep all of it, other videos and noise do not."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from surf.surf_core.resample import resize
from surf.surf_core.signature import flicker, survival
from surf.surf_core.signature.__main__ import main
from surf.surf_core.signature.files import read_video
from surf.surf_core.tiny.pictures import FPS, write_mp4
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw
from surf.tests.host.own_video import write_changing_video

TIMES = torch.linspace(-0.5, 0.5, 13)[:6]


def painted(seed, size=96):
    return paint(draw(seed, torch.arange(1)), TIMES, size) / 2 + 0.5


@pytest.fixture(scope="module")
def reference():
    return painted(5)


@pytest.fixture(scope="module")
def other():
    return painted(6)


def test_a_faithful_copy_keeps_every_part(reference, other):
    found = survival(resize(reference, (64, 64), "area"), reference, other)
    assert {name: part.kept for name, part in found.parts.items()} == pytest.approx(
        dict.fromkeys(found.parts, 1.0), abs=1e-3
    )
    assert (found.frames, found.size, found.floor) == (6, (64, 64), "another seed")


@pytest.mark.parametrize("floor", ["other", None])
def test_another_seed_keeps_little_of_layout_motion_and_detail(floor, reference, other):
    found = survival(painted(7), reference, other if floor else None)
    assert max(found.parts[name].kept for name in ("layout", "motion", "detail")) < 0.25


def test_the_floor_itself_keeps_nothing(reference, other):
    found = survival(other, reference, other)
    assert [found.parts[name].kept for name in ("layout", "colour", "motion", "detail")] == [0] * 4
    grey = reference.mean(dim=(2, 3, 4), keepdim=True).expand_as(reference)
    found = survival(grey, reference)
    assert [found.parts[name].kept for name in ("layout", "colour", "motion", "detail")] == [0] * 4


def test_a_tint_takes_colour_alone(reference):
    found = survival((reference * torch.tensor([1, 0.8, 0.8]).view(3, 1, 1, 1)), reference)
    assert found.parts["colour"].kept < 0.8
    assert found.parts["layout"].kept > found.parts["colour"].kept


def test_flicker_is_measured_where_the_reference_stands_still():
    still = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(1)).expand(
        1, 3, 4, 32, 32
    )
    flashing = still + torch.tensor([0.0, 0.04, 0.0, 0.04]).view(1, 1, 4, 1, 1)
    mine, own = flicker(flashing, still)
    torch.testing.assert_close(mine, torch.tensor([0.04 * 255]), atol=1e-3, rtol=0)
    assert own.item() == 0
    assert survival(flashing, still).parts["flicker"].kept == 0
    assert flicker(still, flashing)[0].isnan().all()


def test_frames_of_a_vae_are_cropped_and_other_lengths_refused(reference):
    longer = torch.cat([reference, reference[:, :, -1:]], dim=2)
    assert survival(longer, reference).frames == 6
    with pytest.raises(ValueError, match="same length, got 3 and 13 frames"):
        survival(reference[:, :, :3], reference.repeat(1, 1, 3, 1, 1)[:, :, :13])


def test_the_input_of_another_shape_is_named_with_its_own_size(reference):
    large = resize(reference, (600, 600), "bilinear")
    for name, given in (("reference", (large[..., :300],)), ("other", (large, large[..., :300]))):
        with pytest.raises(
            ValueError, match=f"expected {name} in the shape of .* 600 x 600 .* 300 x 600; crop"
        ):
            survival(large, *given)


def test_a_reference_without_detail_or_motion_says_so(reference):
    """No number is a multiple of nothing."""
    grey = torch.full_like(reference, 0.5)
    noise = torch.rand(reference.shape, generator=torch.Generator().manual_seed(3))
    near = grey + (noise - 0.5) / 255
    for flat in (grey, near, torch.zeros_like(grey)):
        parts = survival(noise, flat).parts
        assert parts["detail"].kept is None
        assert parts["detail"].says.startswith("the reference has no fine detail")
        assert "nothing in the reference moves, but in the video" in parts["motion"].says
    parts = survival(noise, grey).parts
    assert all(parts[name].kept is None for name in ("layout", "colour", "motion"))
    assert "grey is as good as a copy here" in parts["layout"].says
    assert "another seed is as good" in survival(noise, reference, reference).parts["layout"].says
    smooth = grey + (noise - 0.5) / 20
    assert "over 10 times as much" in survival(noise, smooth).parts["detail"].says
    assert "times as much" in survival(reference, reference).parts["motion"].says


def test_a_still_picture_has_neither_motion_nor_flicker(reference):
    found = survival(reference[:, :, :1], reference[:, :, :1])
    assert found.parts["motion"].kept is found.parts["flicker"].kept is None
    assert found.parts["layout"].kept == pytest.approx(1)


def test_videos_are_compared_at_the_rows_that_were_asked_for(reference):
    assert survival(reference, reference, rows=32).size == (32, 32)
    assert survival(reference, reference, rows=0).size == (96, 96)


def test_report_is_json_and_says_what_it_cannot_judge(reference, other):
    found = survival(other, reference)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["parts"]["layout"]["kept"] >= 0
    assert found.text().endswith("no number here can judge: look at them.")


def test_command_compares_files(tmp_path, capsys, reference, other):
    names = [tmp_path / f"{name}.mp4" for name in ("video", "reference", "other")]
    for path, video in zip(names, (reference, reference, other), strict=True):
        write_mp4(path, video[0], size=96)
    video, truth, seed = map(str, names)
    assert main([video, truth, "--other", seed, "--json", str(tmp_path / "s.json")]) == 0
    assert "layout   100%" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["frames"] == 6
    frames, rate = read_video(names[0], rows=48)
    assert frames.shape == (1, 3, 6, 48, 48)
    assert rate == FPS


def test_command_says_that_frame_rates_differ(tmp_path, capsys):
    video = torch.rand(3, 6, 96, 96, generator=torch.Generator().manual_seed(1))
    paths = {rate: str(tmp_path / f"{rate}.mp4") for rate in (8, 16, 24)}
    for rate, path in paths.items():
        frames = video if rate < 24 else video[:, [0, *range(6)]]
        write_mp4(Path(path), frames, size=96, fps=rate)
    assert main([paths[8], paths[8]]) == 0
    assert "frames a second" not in capsys.readouterr().out
    assert main([paths[8], paths[16], "--json", str(tmp_path / "s.json")]) == 0
    said = "The files have 8 and 16 frames a second: frames of the same number were compared."
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["note"].startswith(said)
    assert main([paths[24], paths[8], "--other", paths[8]]) == 2
    assert "got 24 and 8 and 8 frames a second with 7 and 6 and 6 frames; convert" in (
        capsys.readouterr().err
    )


def test_command_says_that_sound_alone_has_no_picture(tmp_path, capsys):
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(1600))
    assert main([str(path), str(path)]) == 2
    assert "sound.wav without a picture; convert it to mp4." in capsys.readouterr().err


def test_command_refuses_other_lengths_and_compares_one_frame(tmp_path, capsys):
    video = torch.rand(3, 20, 96, 96)
    given = {"all": video, "one": video[:, :1]}
    paths = {name: tmp_path / f"{name}.mp4" for name in given}
    for name, path in paths.items():
        write_mp4(path, given[name], size=96)
    assert main([str(paths["all"]), str(paths["one"])]) == 2
    assert "same length, got 20 and 1 frames" in capsys.readouterr().err
    assert main([str(paths["one"]), str(paths["one"])]) == 0
    assert "motion      -  one frame" in capsys.readouterr().out


def test_command_says_what_is_no_video(tmp_path, capsys):
    words = tmp_path / "words.mp4"
    words.write_text("no video")
    assert main([str(words), str(words)]) == 2
    assert "expected a video, got" in capsys.readouterr().err
    for nothing in (tmp_path / "absent.mp4", tmp_path):
        assert main([str(nothing), str(words)]) == 2
        assert "which is no file; check its name." in capsys.readouterr().err


@pytest.mark.parametrize("rows", [-3, 1, 7])
def test_command_refuses_rows_before_it_reads(tmp_path, capsys, rows):
    absent = str(tmp_path / "absent.mp4")
    assert main([absent, absent, "--rows", str(rows)]) == 2
    assert f"rows must be 0, or at least 8, got {rows}; use 480." in capsys.readouterr().err


def test_command_prints_what_it_cannot_write(tmp_path, capsys):
    path = tmp_path / "a.mp4"
    write_mp4(path, torch.rand(3, 2, 96, 96), size=96)
    assert main([str(path), str(path), "--json", str(tmp_path / "absent" / "s.json")]) == 2
    said = capsys.readouterr()
    assert "layout   100%" in said.out
    assert "choose another --json." in said.err


def test_command_refuses_a_file_whose_frames_change_shape(tmp_path, capsys):
    path = tmp_path / "call.mp4"
    parts = [np.full((3, rows, 96, 3), 90, np.uint8) for rows in (96, 64)]
    write_changing_video(path, *parts)
    assert main([str(path), str(path), "--rows", "32"]) == 2
    assert "call.mp4 with 96 x 96, 96 x 64 pixels; encode it anew" in capsys.readouterr().err
    write_changing_video(path, parts[0], parts[0][:, ::2, ::2])
    assert read_video(path, rows=32)[0].shape == (1, 3, 6, 32, 32)
