"""The embedded default: weights, prompts, refiner, and the demo's own claims."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
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


def test_stops_at_the_end_of_words_say_nothing():
    assert torch.equal(encode_caption("red ball . , on sand."), encode_caption("red ball, on sand"))


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
        "4 steps at full resolution", "direct low resolution", "the clean estimate at the switch",
        "the switch without low steps", "SURF preview", "SURF refined",
        "SURF refined, training-free",
    ]  # fmt: skip
    copies = ("grey", "the switch without low steps")
    assert said == [name for name in rows if name not in copies]
    assert [row.evaluations for row in run.rows] == [8, 0, 8, 2, 3, 4, 8, 2, 2, 8, 10, 10]
    assert [row.pixels for row in run.rows] == [128] * 6 + [64, 128, 64, 64, 256, 128]
    assert rows["baseline"].bands == rows["baseline"].motion == rows["baseline"].sharpness == 1
    assert rows["grey"].bands == rows["grey"].gflops == rows["grey"].right == 0
    assert rows["another seed"].bands < rows["2 steps at full resolution"].bands
    assert rows["SURF preview"].bands > rows["direct low resolution"].bands
    step = rows["baseline"].gflops / 8
    assert fewer.gflops <= rows["SURF preview"].gflops < fewer.gflops + step
    assert rows["SURF preview"].gflops < rows["baseline"].gflops
    shown = ["8 steps", "3 steps, preview's cost", "8 steps, half size", *demo.STAGES]
    assert [panel.name for panel in run.panels] == shown
    for panel in run.panels:
        assert [[noun for noun, _ in named] for named in panel.faults] == [
            ["ring", "beads"], ["cube", "bead"],
        ]  # fmt: skip
    assert [panel.right for panel in run.panels] == [
        (rows[name].right, 4)
        for name in (
            "baseline", fewer.name, "direct low resolution", "the clean estimate at the switch",
            "SURF preview", "SURF refined",
        )
    ]  # fmt: skip
    assert (
        f"3 plain steps have {fewer.right} of 4 things right, the preview "
        f"{rows['SURF preview'].right}."
    ) in run.verdict()
    assert run.report()["things"] == 4
    assert json.dumps(run.report())


LEVELS = (51, 76, 102, 153, 178, 204)


def _poster(things=1):
    """Six methods of one grey each; the last stage has the first prompt wrong."""
    panels = [
        poster.Panel(
            name="abcdef"[index],
            videos=(level / 255) * torch.ones(2, 3, 3, *[8 * (index % 3 + 1)] * 2),
            gflops=level,
            seconds=1.0,
            faults=[[("ball", "shape" if index == 5 else "")], [("beads", "")] * things],
            ours=index > 2,
        )
        for index, level in enumerate(LEVELS)
    ]
    return poster.Poster(["red ball moving", "blue " * 50], panels, "title", "note", "aside")


def _counts(page):
    return {colour: count for count, colour in page.convert("RGB").getcolors(10**7)}


def test_a_scene_and_the_sheet_show_every_method_at_one_size():
    drawn = _poster()
    for page, tiles in ((next(drawn.scene(0)), poster.TILE**2),
                        (drawn.sheet(), 2 * poster.SHEET_TILE**2)):  # fmt: skip
        colours = _counts(page)
        for level in LEVELS:
            assert tiles <= colours[(level,) * 3] < 1.01 * tiles
        for ink in (poster.RIGHT, poster.WRONG, poster.SURF):
            assert tuple(bytes.fromhex(ink[1:])) in colours


def test_a_third_thing_gets_a_line_of_its_own():
    two, three = (_poster(things) for things in (2, 3))
    more = next(three.scene(0)).height - next(two.scene(0)).height
    assert more == three.sheet().height - two.sheet().height == 2 * poster.MARK
    assert next(_poster().scene(0)).size == poster.SCENE


def test_every_frame_of_every_scene_is_played(tmp_path):
    drawn = _poster()
    drawn.panels[0].videos[0] = torch.tensor([0.1, 0.4, 0.9]).view(1, 3, 1, 1)
    drawn.play(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frames[0].shape == (*poster.SCENE[::-1], 3)
    one = 3 * poster.TURNS + poster.HELD
    assert len(frames) == 2 * one
    first = [frame[400, 100].mean() / 255 for frame in frames]
    changing = [0.1, 0.4, 0.9] * poster.TURNS + [0.9] * poster.HELD
    assert first == pytest.approx(changing + [0.2] * one, abs=0.04)


def _command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["tiny", *words])
    command.main()


@pytest.fixture
def quick(monkeypatch):
    """The command without models: what it writes, and when."""
    drawn = SimpleNamespace(play=Path.touch, sheet=lambda: SimpleNamespace(save=Path.touch))
    monkeypatch.setattr(demo.Demo, "__call__", lambda run: run.say("baseline"))
    monkeypatch.setattr(demo.Demo, "verdict", lambda run: "")
    monkeypatch.setattr(command, "Poster", lambda *_: drawn)


FILES = {"demo.mp4", "contact_sheet.png", "report.json"}


def test_the_command_says_at_once_that_it_runs_and_writes_three_files(
    quick, tmp_path, monkeypatch, capsys
):
    _command(monkeypatch, "--out", str(tmp_path), "--threads", "1")
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "4 prompts, 1 threads: loading the models ..."
    assert second == "baseline ..."
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--threads", "0"), "argument --threads: expected 1 to 1024, got 0"),
        (("--switch-step", "0"), "argument --switch-step: expected 1 to 40, got 0"),
        (("--switch-step", "41"), "argument --switch-step: expected 1 to 40, got 41"),
        (("--seed", "9" * 30), "argument --seed: expected 0 to"),
        (("--prompt", "red circle"), "knows red, .*; got 'circle'"),
        (("--prompt", "red ball and blue cube"), "got red and blue; put a comma"),
        (("--prompt", "red ball moving up in the northeast, red cube moving up in the northwest"),
         "a colour of its own for each thing, got red twice; choose among red, yellow"),
        (("--out", "FILE"), "--out: expected a folder, got FILE .*; choose another"),
    ],
)  # fmt: skip
def test_the_command_refuses_before_it_draws(quick, tmp_path, monkeypatch, capsys, words, says):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        _command(monkeypatch, *words)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert re.search(says, said.err)
    assert "Traceback" not in said.err
    assert "baseline" not in said.out


def test_an_interrupted_command_leaves_the_folder_as_it_was(quick, tmp_path, monkeypatch, capsys):
    def interrupt(run):
        raise KeyboardInterrupt

    for name in FILES:
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(demo.Demo, "verdict", interrupt)
    with pytest.raises(SystemExit) as stopped:
        _command(monkeypatch, "--out", str(tmp_path))
    assert stopped.value.code == 130
    assert "as it was" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        FILES, "old"
    )
