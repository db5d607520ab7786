"""The embedded default: weights, prompts, refiner, and the demo's own claims."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from PIL import Image
from surf.surf_core import checkpoint
from surf.surf_core.flow import euler
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.schedule import flow_sigmas
from surf.surf_core.skip import predict_mask
from surf.surf_core.tiny import __main__ as command
from surf.surf_core.tiny import demo, poster
from surf.surf_core.tiny.adherence import colour_mask
from surf.surf_core.tiny.caption import COLOURS, PHRASES, TEXT_DIM, encode_caption
from surf.surf_core.tiny.model import (
    CELLS,
    CLIP,
    FRAMES,
    PIXELS,
    REFINER,
    VAE,
    WEIGHTS,
    TinyT2V,
    to_latent,
    to_pixels,
)
from surf.surf_core.tiny.refiner import LARGE, TinyRefiner, enlarge
from surf.surf_core.training.tiny.paint import paint
from surf.surf_core.training.tiny.world import draw

TIMES = torch.linspace(-0.5, 0.5, CLIP)


@pytest.fixture(scope="module")
def scenes():
    return draw(3, torch.arange(2))


@pytest.fixture(scope="module")
def shown(scenes):
    """Latents of the scenes as previews are."""
    return to_latent(paint(scenes, TIMES, PIXELS // 2) / 2 + 0.5)


def test_the_vae_keeps_scenes(scenes):
    video = paint(scenes, TIMES, PIXELS) / 2 + 0.5
    latent = to_latent(video)
    assert latent.shape == (2, 16, FRAMES, CELLS, CELLS)
    psnr = -10 * (to_pixels(latent) - video).square().mean().log10()
    assert psnr > 26
    assert 0.7 < latent.std() < 1.3


def test_prompt_tokens_depend_on_their_phrase_alone():
    ball, beads = "red ball moving right in the northeast", "two blue beads moving up"
    both = encode_caption(f"{ball}, {beads}, on sand")
    swapped = encode_caption(f"{beads}, {ball}, on sand")
    assert torch.equal(both[0, 0], swapped[0, 1])
    assert torch.equal(encode_caption(""), torch.zeros(1, PHRASES, TEXT_DIM))


def test_prompt_rejects_unknown_words_and_a_fourth_phrase():
    with pytest.raises(ValueError, match="knows red, .*, southeast; got 'circle'"):
        encode_caption("red circle")
    with pytest.raises(ValueError, match="at most 3"):
        encode_caption("red ball, two blue beads, green cube, on sand")


def test_weights_are_small_and_carry_their_recipe():
    files = set(WEIGHTS.parent.glob("*.safetensors"))
    assert files == {WEIGHTS, REFINER, VAE}
    assert sum(path.stat().st_size for path in files) <= 9.5e6
    config, notes = checkpoint.read_config(WEIGHTS)
    assert (config.heads, config.layers) == (notes["task"]["heads"], notes["task"]["layers"])
    config, _ = checkpoint.read_config(REFINER)
    assert (config.time, config.window, config.sigma_start_range) == ("t", 2, (0.0, 0.4))


@pytest.mark.slow
def test_model_paints_the_colour_it_is_asked_for():
    where = "ball moving right in the northeast, on stone"
    tiny = TinyT2V([f"{colour} {where}" for colour in COLOURS])
    noise = tiny.noise([1] * len(COLOURS))
    video = to_pixels(euler(tiny.velocity(3.0), noise, flow_sigmas(8, 3.0)))
    for index in range(len(COLOURS)):
        asked = torch.full((len(COLOURS),), index)
        share = colour_mask(video, asked).mean(dim=(1, 2, 3))
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


def test_refiner_counts_evaluations_and_obeys_noise_window_guidance_and_size(
    refiner, scenes, shown
):
    tiny = TinyRefiner(scenes.prompts(), refiner)
    plain = tiny(shown, [1, 2], steps=2)
    assert plain.shape == (2, 16, FRAMES, LARGE, LARGE)
    assert tiny.evaluations == 2
    assert torch.equal(plain, tiny(shown, [1, 2], steps=2, sigma_start=0.2, window=2))
    for changed in ({"sigma_start": 0.1}, {"window": 0}, {"cfg": 3.0}, {"steps": 3}):
        assert not torch.equal(plain, tiny(shown, [1, 2], **{"steps": 2, **changed}))
    assert tiny(shown, [1, 2], steps=1, cells=CELLS).shape[-1] == CELLS
    with pytest.raises(ValueError, match="trained for these only"):
        tiny(shown, [1, 2], sigma_start=0.8)


def test_refiner_leaves_skipped_tokens_to_the_enlarged_preview(refiner, scenes, shown):
    tiny = TinyRefiner(scenes.prompts()[:1], refiner)
    start = enlarge(shown[:1])
    mask = predict_mask(start, keep=0.5)
    refined = tiny(shown[:1], [1], steps=2, mask=mask)
    skipped = ~mask.tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(refined[..., skipped], start[..., skipped])
    assert not torch.equal(refined[..., ~skipped], start[..., ~skipped])


@pytest.mark.slow
def test_demo_counts_evaluations_and_keeps_more_layout_than_direct_low_resolution(refiner):
    settings = demo.Settings(steps=8, switch_step=2, refine_steps=2)
    said = []
    run = demo.Demo(list(demo.PROMPTS[:2]), settings, refiner=refiner, say=said.append)
    run()
    rows = {row.name: row for row in run.rows}
    fewer = rows["3 steps at full resolution"]
    assert list(rows) == [
        "baseline", "grey", "another seed", "2 steps at full resolution", fewer.name,
        "4 steps at full resolution", "direct low resolution", "the switch without low steps",
        "SURF preview", "SURF refined", "SURF refined, training-free",
    ]  # fmt: skip
    assert said == [name for name in rows if name != "grey"]
    assert [row.evaluations for row in run.rows] == [8, 0, 8, 2, 3, 4, 8, 2, 8, 10, 10]
    assert [row.pixels for row in run.rows] == [128] * 6 + [64] * 3 + [256, 128]
    assert rows["baseline"].bands == rows["baseline"].motion == rows["baseline"].sharpness == 1
    assert rows["grey"].bands == rows["grey"].gflops == rows["grey"].right == 0
    assert rows["another seed"].bands < rows["2 steps at full resolution"].bands
    assert rows["SURF preview"].bands > rows["direct low resolution"].bands
    step = rows["baseline"].gflops / 8
    assert fewer.gflops <= rows["SURF preview"].gflops < fewer.gflops + step
    assert rows["SURF preview"].gflops < rows["baseline"].gflops
    shown = ["8 steps", "3 steps", "half the size", "SURF preview", "SURF refined"]
    assert [panel.name for panel in run.panels] == shown
    for panel in run.panels:
        assert [list(answers) for answers in panel.answers] == [
            ["red ring", "two blue beads"], ["green cube", "one purple bead"],
        ]  # fmt: skip
    counts = [sum(sum(answers.values()) for answers in panel.answers) for panel in run.panels]
    assert counts == [
        rows[name].right
        for name in (
            "baseline", fewer.name, "direct low resolution", "SURF preview", "SURF refined",
        )
    ]  # fmt: skip
    assert run.report()["things"] == 4
    assert json.dumps(run.report())


def _panel(name, level, right, size=16):
    return poster.Panel(
        name=name, videos=torch.full((3, 3, 3, size, size), level), gflops=10 * level + 1,
        answers=[{"red ball": right}] * 3, ours=name == "ours",
    )  # fmt: skip


def _counts(page):
    return {colour: count for count, colour in page.convert("RGB").getcolors(10**6)}


def test_the_poster_shows_the_first_and_the_last_method_large_and_prices_all(tmp_path):
    panels = [_panel("a", 0.2, True), _panel("b", 0.4, False), _panel("c", 0.6, True, 8),
              _panel("ours", 0.8, True, 32)]  # fmt: skip
    page = poster.Poster(["red ball", "blue ball", "a ball"], panels, "title", "note", small=64)
    page.save(tmp_path / "sheet.png")
    colours = _counts(Image.open(tmp_path / "sheet.png"))
    large = page.large**2
    for level, area in ((51, large), (102, 64 * 64), (153, 64 * 64), (204, large)):
        assert colours[(level,) * 3] >= 3 * area
    for ink in (poster._RIGHT, poster._WRONG, poster._SURF, poster._PLAIN):
        assert tuple(bytes.fromhex(ink[1:])) in colours
    page.play(tmp_path / "a.mp4", turns=2)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 2 * 3
    left, top, _ = page._places[0]
    inside = frames[0][top + 8 : top + page.large - 8, left + 8 : left + page.large - 8]
    assert abs(inside.mean() - 51) < 12


def test_the_poster_plays_every_frame(tmp_path):
    panels = [_panel(name, 0.0, True) for name in "abc"]
    for panel in panels:
        panel.videos[:] = torch.tensor([0.0, 0.4, 1.0]).view(1, 1, 3, 1, 1)
    page = poster.Poster(["ball"], panels, "title", "note", small=64)
    left, top, _ = page._places[0]
    shown = [page.frame(index).getpixel((left + 9, top + 9))[0] for index in range(3)]
    assert shown == [0, 102, 255]


def test_long_prompts_take_two_lines_and_are_cut():
    assert poster.wrapped("red ball", 300) == ["red ball"]
    one, two = poster.wrapped("ball " * 30, 300)
    assert one.startswith("ball")
    assert two.endswith(" ...")
    assert max(poster._width(one), poster._width(two.removesuffix(" ..."))) <= 300


def test_the_command_says_at_once_that_it_runs_and_writes_three_files(
    refiner, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(demo.Demo, "__call__", lambda run: run.say("baseline"))
    drawn = SimpleNamespace(play=Path.touch, save=Path.touch)
    monkeypatch.setattr(command, "Poster", lambda *_: drawn)
    monkeypatch.setattr("sys.argv", ["tiny", "--out", str(tmp_path), "--threads", "1"])
    command.main()
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "4 prompts, 1 threads: loading the models ..."
    assert second == "baseline ..."
    assert {path.name for path in tmp_path.iterdir()} == {
        "demo.mp4", "contact_sheet.png", "report.json",
    }  # fmt: skip
