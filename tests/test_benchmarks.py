"""Benchmarks run at toy size, so that they run when there is a GPU, or an hour, for them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from surf.surf_core import checkpoint
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.skip.pixel_net import WEIGHTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Fresh weights of one thin layer: options of the command line, by what they are for."""
    folder = tmp_path_factory.mktemp("models")
    plain = replace(RefinerConfig.tiny(), layers=1, ffn_dim=128)
    trained = replace(plain, time="t", window=2, sigma_start=0.2, sigma_start_range=(0.0, 0.4))
    for name, config in {"weights": plain, "refiner": trained}.items():
        model = SurfRefinerDiT(config)
        model.initialise(torch.Generator().manual_seed(0))
        checkpoint.save(folder / name, model.state_dict(), config, {})
    return {path.name: f"--{path.name}={path}" for path in folder.iterdir()}


@pytest.fixture(scope="module")
def measured(forks):
    """Run a benchmark of the tiny models, and read its table."""

    def run(name, out, *options):
        process = forks.start(f"benchmarks.quality.{name}", f"--out={out}", *options)
        printed = process.finish(1800)
        text = out.read_text(encoding="utf-8")
        assert text in printed
        assert re.search(r"Commit .*torch \d", text)
        return table(text)

    return run


def table(text):
    """First cell of each row -> other cells, first come."""
    found = {}
    for name, *cells in rows_of(text):
        found.setdefault(name, cells)
    return found


def rows_of(text):
    """The rows of a page's tables, as lists of cells."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "---"]


@pytest.mark.slow
def test_what_a_prompt_asks_for_is_found_in_painted_scenes(measured, models, tmp_path):
    options = ["--pairs=2", models["weights"], models["refiner"]]
    rows = measured("prompts", tmp_path / "a.md", *options)
    for scenes in ("painted, 128 pixels", "painted, 64 pixels"):
        assert all(float(cell.split()[0]) == 100 for cell in rows[scenes])
    for wrong in ("full resolution, 128 pixels", "grey, 128 pixels"):
        assert float(rows[wrong][-1].split()[0]) == 0
    assert len(rows) == 1 + 15


@pytest.mark.slow
def test_the_shipped_weights_draw_what_their_committed_table_says(measured, models, tmp_path):
    [result] = (ROOT / "benchmarks" / "results").glob("*-prompts.md")
    committed = table(result.read_text(encoding="utf-8"))
    # No refiner has a part in these two stages, so that a thin one will do.
    rows = measured("prompts", tmp_path / "a.md", "--pairs=8", models["refiner"])
    fewer = "16 steps at full resolution, 128 pixels"
    for stage in ("full resolution, 128 pixels", fewer, "SURF preview, 64 pixels"):
        # The last column has no binomial error, and with few prompts none that says much.
        for cell, of_all in zip(rows[stage][:-1], committed[stage][:-1], strict=True):
            share, error = map(float, cell.split(" +- "))
            assert abs(share - float(of_all.split()[0])) <= 3 * error, (stage, rows[stage])


@pytest.fixture(scope="module")
def made_again(measured, models, tmp_path_factory):
    """Make the page of two pairs, and again from what was kept: rows, and both texts."""

    def run(benchmark):
        folder, texts = tmp_path_factory.mktemp(benchmark), []
        for name in ("first.md", "again.md"):
            options = ["--pairs=2", "--batch=1", f"--state={folder / 'kept'}", models["weights"]]
            rows = measured(benchmark, folder / name, *options)
            texts.append((folder / name).read_text(encoding="utf-8"))
        return rows, texts

    return run


@pytest.fixture(scope="module")
def signature(made_again):
    return made_again("tiny_signature")


@pytest.mark.slow
def test_the_signature_has_its_controls_as_rows(signature):
    rows, _ = signature
    assert rows["video"][0] == "GFLOPs"
    for name in ("40 steps", "40 steps, averaged down in pixels"):
        assert rows[name][1:6] == ["1.000 +- 0.000"] * 5
    assert all(abs(float(cell.split()[0])) < 1e-3 for cell in rows["grey"][1:6])
    cost = {
        name: float(cells[0]) for name, cells in rows.items() if "steps" in name or "k =" in name
    }
    for k, steps in ((2, 10), (5, 12), (10, 16), (20, 24)):
        preview = f"k = {k}, inherited, snr_equal"
        assert cost[f"{steps} steps"] == pytest.approx(cost[preview], rel=0.03)
        assert cost[f"k = {k}, no low steps"] == pytest.approx(cost["40 steps"] * k / 40, abs=0.1)
    assert {"12 steps", "20 steps", "half resolution, 40 steps", "40 steps, another seed"} <= set(
        rows
    )


@pytest.mark.slow
def test_a_signature_goes_on_from_what_was_kept(signature):
    def tables(text):
        return [line for line in text.splitlines() if line.startswith("| ")]

    first, again = signature[1]
    assert tables(first) == tables(again)


@pytest.mark.slow
def test_previews_of_the_table_are_those_of_the_demo(forks):
    script = """
import torch
from benchmarks.quality.held_out import Switched, shown
from benchmarks.quality.tiny_signature import OURS
from surf_core.tiny.model import TinyT2V
tiny = TinyT2V(["red ball moving right in the northeast"])
preview = Switched(tiny, [0]).preview(10, *OURS.split(", "))
torch.testing.assert_close(preview, shown(tiny, [0], 10), rtol=0, atol=1e-3)
"""
    forks.start_script(script).finish(600)


@pytest.fixture(scope="module")
def switch_ways(made_again):
    return made_again("tiny_switch")


@pytest.mark.slow
def test_ways_of_switching_are_measured_beside_their_controls(switch_ways):
    rows, (text, again) = switch_ways
    names = list(rows)
    assert names[:7] == [
        "video", "baseline", "baseline, averaged down in pixels",
        "baseline, averaged down in the latent", "grey", "another seed", "half resolution",
    ]  # fmt: skip
    fewer = [f"{steps} steps" for steps in (8, 12, 15, 16, 18, 25, 32, 40)]
    assert [*names[7:15], *names[15:18]] == [
        *fewer, "no low steps", "the paper's rule", "the nodes' defaults",
    ]  # fmt: skip
    assert {"A", "B + D", "A + B + C", "A + B + C + D", "5 + 15, B + D"} < set(names)
    assert {"5 - 35, the paper's rule", "30 - 10, the nodes' defaults"} < set(names)
    for k in (2, 5, 10, 20):
        assert f"k = {k} of 50, the nodes' defaults" in names
    assert rows["baseline"][1:7] == ["1.000 +- 0.000"] * 6
    assert all(abs(float(cell.split()[0])) < 1e-3 for cell in rows["grey"][1:6])
    assert rows["10 - 30, the paper's rule"] == rows["the paper's rule"]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines == [line for line in again.splitlines() if line.startswith("| ")]


@pytest.mark.slow
def test_every_preview_is_compared_with_full_steps_of_equal_cost(switch_ways):
    rows, (text, _) = switch_ways
    cost = {
        name: float(cells[0]) for name, cells in rows.items() if name not in ("video", "preview")
    }
    pairs = [
        (one, other)
        for one, other, *cells in rows_of(text)
        if re.fullmatch(r"\d+ steps", other) and len(cells) == 6
    ]
    previews = [name for name, cells in rows.items() if name in dict(pairs)]
    drawn = list(rows)[list(rows).index("the paper's rule") :]
    assert previews == [name for name in drawn if name != "preview" and "no low" not in name]
    for one, other in pairs:
        assert 0.8 * cost[one] <= cost[other] <= 1.05 * cost[one], (one, other)
    ratio = cost["no guidance after the switch"] - cost["no low steps"]
    assert ratio == pytest.approx((cost["the nodes' defaults"] - cost["no low steps"]) / 2, abs=0.1)


@pytest.mark.slow
def test_ways_of_switching_are_drawn_as_previews_are(forks):
    script = """
import torch
from benchmarks.quality import held_out, switch_ways
from surf_core.refiner.rope import rotary_table
from surf_core.schedule import flow_sigmas
from surf_core.tiny.demo import Settings
from surf_core.tiny.model import WEIGHTS, TinyT2V
grid, wide, cpu = (2, 3, 4), (2, 6, 8), torch.device("cpu")
plain, far = rotary_table(grid, 64, cpu), rotary_table(wide, 64, cpu)
assert torch.equal(switch_ways.table_of(grid, 64, 1.0), plain)
far = far.unflatten(1, wide)[:, :, ::2, ::2].flatten(1, 3)
torch.testing.assert_close(switch_ways.table_of(grid, 64, 2.0), far)
toy, s = switch_ways.embedded([0], WEIGHTS), Settings()
ours = switch_ways.RULES[switch_ways.OURS]
with torch.inference_mode():
    made = held_out.Switched(TinyT2V(held_out.prompts([0])), [0])
    known = made.preview(10, "inherited", "snr_equal")
    assert torch.equal(switch_ways.switched(toy, ours, s.cfg, s.cfg_low), known)
    # The steps before the switch are those of a whole run, where there was one.
    fresh = switch_ways.embedded([0], WEIGHTS)
    switch_ways.full(fresh, s.cfg, flow_sigmas(40, s.shift))
    assert len(fresh.known) == 1
    assert torch.equal(switch_ways.switched(fresh, ours, s.cfg, s.cfg_low), known)
    assert len(fresh.known) == 1
"""
    forks.start_script(script).finish(600)


@pytest.mark.slow
def test_the_refiner_is_measured_beside_interpolation(measured, models, tmp_path):
    options = ["--pairs=2", "--batch=2", models["refiner"], models["weights"]]
    rows = measured("tiny_refiner", tmp_path / "a.md", *options)
    assert float(rows["the scene through the VAE"][0].split()[0]) > 24
    assert {"clean", "degraded", "previews", "bicubic"} <= rows.keys()


@pytest.mark.slow
def test_skipping_is_measured_where_it_matters_for_every_source_of_masks(
    measured, models, tmp_path
):
    options = ["--pairs=2", models["refiner"]]
    rows = measured("skip", tmp_path / "a.md", *options)
    head, *names = rows
    assert head == "tokens refined"
    assert names == ["0 %, the enlarged preview", "100 %, all"] + [
        f"{keep} %, {source}"
        for source in ("oracle", "network on pixels", "pixel detail", "latent detail", "random")
        for keep in (75, 50, 25)
    ]
    missed = {name: float(rows[name][0].split()[0]) for name in names}
    assert missed["0 %, the enlarged preview"] == 100
    assert missed["100 %, all"] == missed["50 %, oracle"] == 0
    assert missed["50 %, pixel detail"] < 20 < missed["50 %, random"]
    assert rows["100 %, all"][2::2][0].startswith("0.00 +- 0.00")
    operations = [float(rows[name][-1]) for name in names]
    assert operations[:2] == [0, 1]
    assert 0.6 < operations[2] < 0.8


def animated(path, seed, frames=13, side=96):
    """Write noise that is smooth in its left half and sharp in its right one."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.rand(frames, side, side, 3, generator=generator)
    video[:, :, : side // 2] = 0.4 + 0.1 * torch.linspace(0, 1, side // 2).view(1, 1, -1, 1)
    pages = [Image.fromarray((255 * frame).byte().numpy()) for frame in video]
    pages[0].save(path, save_all=True, append_images=pages[1:], lossless=True, minimize_size=False)


@pytest.mark.slow
def test_footage_is_measured_file_by_file_beside_chance(measured, tmp_path):
    folder = tmp_path / "busy"
    folder.mkdir()
    for seed, name in enumerate(("a.webp", "b.webp", "c-distorted.webp")):
        animated(folder / name, seed)
    (folder / "copy.webp").write_bytes((folder / "a.webp").read_bytes())
    animated(folder / "short.webp", 9, frames=12)
    rows = measured("footage", tmp_path / "a.md", f"--clips={folder}", "--each=1")
    assert "## busy: 2 files" in (tmp_path / "a.md").read_text(encoding="utf-8")
    assert [float(rows[tau][0].split()[0]) for tau in ("3", "5", "8")] == [50.0] * 3
    assert rows["pixel detail"][:3] == ["1.0000 +- 0.0000"] * 3
    assert float(rows["pixel detail"][4].split()[0]) > 99
    assert float(rows["chance"][4].split()[0]) < 80


@pytest.mark.slow
def test_a_network_is_measured_on_makers_that_it_was_not_trained_on(measured, tmp_path):
    folder = tmp_path / "busy"
    folder.mkdir()
    for seed, name in enumerate(("kling", "kling-2", "luma", "vidu", "runway")):
        animated(folder / f"{name}.webp", seed, side=128)
    options = [f"--clips={folder}", "--seeds=1", "--steps=20", "--batch=1"]
    rows = measured("footage_net", tmp_path / "a.md", *options)
    assert list(rows) == ["score", "pixel detail", "network", "its control"]
    assert rows["pixel detail"][3] == "1.0000 +- 0.0000"
    assert all("[" in cell for name in list(rows)[2:] for cell in rows[name])
    rows = measured("footage_net", tmp_path / "b.md", options[0], f"--network={WEIGHTS}")
    assert list(rows) == ["score", "pixel detail", "network"]
    assert rows["network"] != rows["pixel detail"]


@pytest.mark.slow
def test_a_network_starts_as_pixel_detail_and_folds_divide_makers(forks):
    script = """
from pathlib import Path
import torch
from benchmarks.quality import footage_net
from surf_core.resample import resize
from surf_core.skip import pixel_detail
from surf_core.skip.pixel_net import PixelNet
names = ("kling-1", "kling-2", "grok", "luma", "vidu", "wan-1", "wan-2", "own")
videos = []
for seed, name in enumerate(names):
    frames = torch.rand(13, 3, 64, 96, generator=torch.Generator().manual_seed(seed)).mul(255)
    videos.append(footage_net.video_of(Path("a"), name, frames.byte(), seed))
folds = footage_net.folds_of(videos)
assert sorted(video.name for fold in folds for video in fold) == sorted(names)
for fold in folds:
    seen = footage_net.unlike(videos, fold)
    assert seen and not {v.maker for v in seen} & {v.maker for v in fold}
alike = footage_net.video_of(Path("a"), "other", frames.byte())
assert footage_net.unlike([alike], [videos[-1]]) == []
from surf_core.skip.pixel_net import WEIGHTS
trained = footage_net.video_of(Path("a"), "image_to_video_wan-1", frames.byte())
try:
    footage_net.unseen(WEIGHTS, [trained])
    raise SystemExit("took a clip that the network was trained on")
except ValueError as error:
    assert "image_to_video_wan-1" in str(error)
footage_net.unseen(WEIGHTS, videos)
clip = videos[-1].clips[0]
assert [one.ratio for one in videos[1].clips] == [4, 2]
small = resize(frames.byte().float().div(255).transpose(0, 1)[None], (16, 24), "area")
known = pixel_detail(small, (64, 96), 4, cell=(4, 8)).flatten()
for pixels in (True, False):
    found = footage_net.tokens(PixelNet(pixels), clip)
    torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-3)
"""
    forks.start_script(script).finish(600)


@pytest.mark.slow
def test_colour_matches_are_measured_beside_none(measured, models, tmp_path):
    rows = measured("colour", tmp_path / "a.md", "--pairs=2", models["weights"])
    names = ["none", "the preview itself, enlarged", "the preview's mean colour alone"]
    names += ["latent wavelet", "pixel wavelet", "pixel lab"]
    assert [name for name in rows if "%" not in name][: len(names)] == names
    to_preview = {name: float(rows[name][2].split()[0]) for name in names}
    assert to_preview["the preview itself, enlarged"] < to_preview["none"]


@pytest.mark.slow
def test_hard_tiles_leave_a_seam_and_blended_ones_less(measured, tmp_path):
    rows = measured("seams", tmp_path / "a.md", "--videos=1")
    hard, blended = (float(rows[name][2]) for name in ("none: hard edges", "8 cells"))
    assert hard > 1.3 * blended


@pytest.mark.slow
def test_hard_chunks_flicker_and_blended_ones_do_not(measured, tmp_path):
    measured("chunk_edges", tmp_path / "a.md", "--videos=4")
    _, *rows = rows_of((tmp_path / "a.md").read_text(encoding="utf-8"))
    tiny = [name for name, *_ in rows if name.startswith("embedded model")]
    # Three clips through two functions each.
    assert (len(tiny), len(rows)) == (2, 8)
    for name, _, blended, hard in rows:
        assert float(blended) <= 1.05, name
        # What is new in each frame jumps everywhere.
        if "new in each frame" not in name:
            assert float(hard) > (1.3 if name in tiny else 1.2), name
