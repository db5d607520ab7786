"""The embedded default: codec, prompts, weights, and the demo's own claims."""

import json

import pytest
import torch
from safetensors import safe_open
from surf.surf_core.flow import euler
from surf.surf_core.schedule import flow_sigmas
from surf.surf_core.tiny import codec, demo
from surf.surf_core.tiny.model import CELLS, FRAMES, WEIGHTS, TinyT2V
from surf.surf_core.tiny.pictures import contact_sheet, write_mp4
from surf.surf_core.tiny.prompt import encode_prompt
from surf.surf_core.training.tiny.scenes import render


@pytest.fixture(scope="module")
def scenes():
    return render(8, FRAMES, 64, torch.Generator().manual_seed(0))


def test_codec_keeps_rendered_scenes(scenes):
    restored = codec.decode(codec.encode(scenes.video))
    psnr = -10 * torch.log10(((restored - scenes.video) / 2).square().mean())
    assert psnr > 32


def test_codec_is_identity_on_latents():
    latent = torch.randn(2, 16, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(codec.encode(codec.decode(latent)), latent, atol=1e-5)


def test_prompt_tokens_depend_on_their_phrase_alone():
    both = encode_prompt("red circle moving right, blue square moving up, on stripes")
    swapped = encode_prompt("blue square moving up, red circle moving right, on stripes")
    assert torch.equal(both[0, 0], swapped[0, 1])
    assert torch.equal(encode_prompt(""), torch.zeros(1, 3, 4096))


def test_prompt_rejects_unknown_words_and_a_fourth_phrase():
    with pytest.raises(ValueError, match="'purple'"):
        encode_prompt("purple circle")
    with pytest.raises(ValueError, match="at most 3"):
        encode_prompt("red circle, blue circle, green circle, on stripes")


def test_scenes_are_deterministic_and_say_what_they_show(scenes):
    again = render(8, FRAMES, 64, torch.Generator().manual_seed(0))
    assert again.prompts == scenes.prompts
    assert torch.equal(again.video, scenes.video)
    for prompt, video in zip(scenes.prompts, scenes.video, strict=True):
        encode_prompt(prompt)
        assert prompt.count("moving") in (1, 2)
        assert video.abs().max() <= 1


def test_weights_are_small_and_carry_their_recipe():
    assert sum(path.stat().st_size for path in WEIGHTS.parent.glob("*.safetensors")) < 10e6
    with safe_open(WEIGHTS, "pt") as file:
        notes = json.loads(file.metadata()["surf.notes"])
    assert notes["recipe"]["size"] == 4 * CELLS


def _colour_share(video: torch.Tensor, colour: str) -> torch.Tensor:
    red, green, blue = video.unbind(1)
    lit = {
        "red": (red > 0.6) & (green < 0.4) & (blue < 0.4),
        "green": (green > 0.45) & (red < 0.4) & (blue < 0.45),
        "blue": (blue > 0.6) & (red < 0.45) & (green < 0.5),
        "yellow": (red > 0.6) & (green > 0.55) & (blue < 0.45),
    }
    return lit[colour].float().mean(dim=(1, 2, 3))


def test_model_paints_the_colour_it_is_asked_for():
    colours = ["red", "green", "blue", "yellow"]
    tiny = TinyT2V([f"{colour} square moving right, on clouds" for colour in colours])
    video = demo.to_pixels(
        euler(tiny.velocity(4.0), tiny.noise([1, 2, 3, 4]), flow_sigmas(12, 3.0))
    )
    for index, colour in enumerate(colours):
        share = _colour_share(video, colour)
        assert share.argmax() == index
        assert share[index] > 0.02


def test_demo_counts_evaluations_and_keeps_more_layout_than_direct_low_resolution(tmp_path):
    run = demo.Run(list(demo.PROMPTS), demo.Settings(steps=16, switch_step=4, refine_steps=4))
    run()
    rows = {row.name: row for row in run.rows}
    assert [row.evaluations for row in run.rows] == [16, 16, 16, 20]
    assert rows["baseline"].layout_distance == 0
    assert rows["SURF preview"].layout_distance < rows["direct low resolution"].layout_distance
    assert rows["SURF preview"].gflops < rows["baseline"].gflops
    assert json.dumps(run.report())
    write_mp4(tmp_path / "a.mp4", run.videos["baseline"][0])
    contact_sheet(tmp_path / "sheet.png", list(demo.PROMPTS), run.videos)
    assert (tmp_path / "a.mp4").stat().st_size > 500
    assert (tmp_path / "sheet.png").stat().st_size > 5000
