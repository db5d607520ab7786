"""The embedded default: codec, prompts, weights, and the demo's own claims."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from surf.surf_core import checkpoint
from surf.surf_core.flow import euler
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.schedule import flow_sigmas
from surf.surf_core.skip import predict_mask
from surf.surf_core.tiny import codec, demo
from surf.surf_core.tiny.model import CELLS, FRAMES, WEIGHTS, TinyT2V
from surf.surf_core.tiny.pictures import contact_sheet, write_mp4
from surf.surf_core.tiny.prompt import encode_prompt
from surf.surf_core.tiny.refiner import LARGE, TinyRefiner, enlarge
from surf.surf_core.training.tiny.scenes import STEPS, WAKE, render, wake


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


def test_a_wake_trails_behind_its_object_and_fades():
    far = torch.tensor([-1.2 * WAKE, -0.9 * WAKE, -0.5 * WAKE, -0.1, 0.1, 2.0])
    for index, (x, y) in enumerate(STEPS):
        dx, dy = ((far * along).view(1, 1, -1) for along in (x, y))
        opacity = wake(torch.tensor([index]), dx, dy).flatten()
        assert (opacity[[0, 4, 5]] == 0).all()
        assert 0 < opacity[1] < opacity[2] < opacity[3] < 1
        beside = wake(torch.tensor([index]), dx - y, dy - x).flatten()
        assert (beside == 0).all()


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


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """A refiner of one layer, fresh but for a head that predicts something."""
    config = replace(
        RefinerConfig.tiny(2), layers=1, time="t", sigma_start=0.2, sigma_start_range=(0.0, 0.4)
    )
    model, generator = SurfRefinerDiT(config), torch.Generator().manual_seed(0)
    model.initialise(generator)
    weights = model.state_dict()
    weights["head.head.weight"] = 0.02 * torch.randn(64, 128, generator=generator)
    path = tmp_path_factory.mktemp("refiner") / "refiner.safetensors"
    checkpoint.save(path, weights, config, {}, torch.float32)
    return path


def test_refiner_counts_evaluations_and_obeys_noise_window_guidance_and_size(refiner, scenes):
    tiny = TinyRefiner(scenes.prompts[:2], refiner)
    shown = codec.encode(scenes.video[:2, ..., ::2, ::2])
    plain = tiny(shown, [1, 2], steps=2)
    assert plain.shape == (2, 16, FRAMES, LARGE, LARGE)
    assert tiny.evaluations == 2
    assert torch.equal(plain, tiny(shown, [1, 2], steps=2, sigma_start=0.2, window=2))
    for changed in ({"sigma_start": 0.1}, {"window": 0}, {"cfg": 3.0}, {"steps": 3}):
        assert not torch.equal(plain, tiny(shown, [1, 2], **{"steps": 2, **changed}))
    assert tiny(shown, [1, 2], steps=1, cells=CELLS).shape[-1] == CELLS
    with pytest.raises(ValueError, match="trained for these only"):
        tiny(shown, [1, 2], sigma_start=0.8)


def test_refiner_leaves_skipped_tokens_to_the_enlarged_preview(refiner, scenes):
    tiny = TinyRefiner(scenes.prompts[:1], refiner)
    shown = codec.encode(scenes.video[:1, ..., ::2, ::2])
    mask = predict_mask(enlarge(shown), keep=0.5)
    refined = tiny(shown, [1], steps=2, mask=mask)
    skipped = ~mask.tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(refined[..., skipped], enlarge(shown)[..., skipped])
    assert not torch.equal(refined[..., ~skipped], enlarge(shown)[..., ~skipped])


@pytest.mark.slow
def test_demo_counts_evaluations_and_keeps_more_layout_than_direct_low_resolution(
    refiner, tmp_path
):
    settings = demo.Settings(steps=8, switch_step=2, refine_steps=2)
    run = demo.Demo(list(demo.PROMPTS), settings, refiner=refiner)
    run()
    rows = {row.name: row for row in run.rows}
    fewer = rows["3 steps at full resolution"]
    assert list(rows) == [
        "baseline", "grey", "another seed", "direct low resolution", "2 steps at full resolution",
        fewer.name, "4 steps at full resolution", "the switch without low steps", "SURF preview",
        "SURF refined", "SURF refined, training-free",
    ]  # fmt: skip
    assert [row.evaluations for row in run.rows] == [8, 0, 8, 8, 2, 3, 4, 2, 8, 10, 10]
    assert [row.pixels for row in run.rows] == [64, 64, 64, 32, 64, 64, 64, 32, 32, 128, 64]
    assert rows["baseline"].bands == rows["baseline"].motion == rows["baseline"].sharpness == 1
    assert rows["grey"].bands == rows["grey"].gflops == 0
    assert rows["another seed"].bands < rows["2 steps at full resolution"].bands
    assert rows["SURF preview"].bands > rows["direct low resolution"].bands
    step = rows["baseline"].gflops / 8
    assert fewer.gflops <= rows["SURF preview"].gflops < fewer.gflops + step
    looked_at = [row.name for row in run.rows if row.name in run.videos]
    assert looked_at == [
        "baseline", "direct low resolution", fewer.name, "SURF preview", "SURF refined",
        "SURF refined, training-free",
    ]  # fmt: skip
    assert rows["SURF preview"].gflops < rows["baseline"].gflops
    assert json.dumps(run.report())
    write_mp4(tmp_path / "a.mp4", run.videos["baseline"][0])
    contact_sheet(tmp_path / "sheet.png", list(demo.PROMPTS), run.videos)
    assert (tmp_path / "a.mp4").stat().st_size > 500
    assert (tmp_path / "sheet.png").stat().st_size > 5000
