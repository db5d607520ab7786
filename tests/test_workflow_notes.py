"""What the note of each shipped workflow promises: its cost and its download, counted again.

The cost comes from the widgets of the graph through `surf_core.cost`, so that a changed widget
without a changed note is seen.
"""

import json
import re

import pytest
from surf.tests.test_workflow_files import ROOT, WORKFLOWS
from surf.tests.workflow_costs import read, rows

UNKNOWN_SIZES = {
    "hunyuanvideo15_latent_upsampler_1080p.safetensors",
    "wan2.1-1.3b-control-lora-tile-v1.1_comfy.safetensors",
}
"""Files whose size neither ComfyUI's templates nor its Manager list."""
PLAIN, FIRST = "video/surf_compare", "01 Try SURF without downloads"
"""What the first workflow alone saves, for comparison."""
UNITS = {"PFLOPs": 1e15, "GFLOPs": 1e9}


def loads(graph):
    """Name -> address of every file that the loaders name."""
    models = [m for node in graph.nodes.values() for m in node["properties"].get("models", [])]
    return {model["name"]: model["url"] for model in models}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_has_the_cost_of_the_graph(path):
    graph = read(path)
    note = graph.note()
    unit = re.search(r"^\| counted \| (\w+) \|$", note, re.MULTILINE)[1]
    found = dict(re.findall(r"^\| (.+) \| ([\d.]+) \|$", note, re.MULTILINE))
    assert found == {row: f"{flops / UNITS[unit]:.1f}" for row, flops in rows(graph).items()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_lists_the_files_of_the_graph_and_their_sum(path):
    graph = read(path)
    note = graph.note()
    listed = re.findall(r"^- \[(\S+)\]\((\S+)\)(?: ([\d.]+) GB)? in `\w+`$", note, re.MULTILINE)
    assert {name: url for name, url, _ in listed} == loads(graph)
    if not listed:
        return
    total = float(re.search(r"^\*\*To download, ([\d.]+) GB in all", note, re.MULTILINE)[1])
    assert {name for name, _, size in listed if not size} <= UNKNOWN_SIZES
    assert total == pytest.approx(sum(float(size) for *_, size in listed if size), abs=0.06)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_begins_with_the_name_and_has_one_thing_to_try(path):
    note = read(path).note()
    assert note.startswith(f"## {path.stem}\n")
    assert note.count("**Try:**") == 1
    assert len(note.split()) <= 260


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if read(path).all("LoadImage")], ids=lambda path: path.stem
)
def test_note_says_where_the_picture_is_chosen(path):
    graph = read(path)
    title = graph.find("LoadImage")["title"].removesuffix(" (bypassed)")
    assert f"*{title}*" in graph.note()


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if not read(path).all("LoadVideo")], ids=lambda p: p.stem
)
def test_the_group_that_the_note_mutes_leaves_a_graph_that_saves_the_preview(path):
    graph, raw = read(path), json.loads(path.read_text())
    number = re.search(r"mute group (\d) \(right-click its title", graph.note())[1]
    [group] = [each for each in raw["groups"] if each["title"].startswith(f"{number} ")]
    x, y, width, height = group["bounding"]
    muted = {
        node["id"] for node in raw["nodes"]
        if x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height
    }  # fmt: skip
    kinds = [graph.nodes[each]["type"] for each in muted]
    refiners = {"SurfRefiner", "HunyuanVideo15LatentUpscaleWithModel", "SurfSeedVR2Skip"}
    assert refiners & set(kinds)
    left = [link for link in raw["links"] if link[3] not in muted]
    assert not [link for link in left if link[1] in muted]
    saved = [
        node["widgets_values"][0] for node in graph.all("SaveVideo") if node["id"] not in muted
    ]
    assert [name for name in saved if name != PLAIN] == ["video/surf_preview"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_videos_are_told_apart_by_their_names(path):
    graph = read(path)
    names = [node["widgets_values"][0] for node in graph.all("SaveVideo")]
    if graph.all("LoadVideo") and graph.all("SurfSeedVR2Skip"):
        assert names == ["video/surf_refined"]
        return
    target = re.search(r"\d+p|4K", path.stem)
    expected = [f"video/surf_{target[0].lower()}" if target else "video/surf_256p"]
    expected += ["video/surf_preview"] + [PLAIN] * (path.stem == FIRST)
    assert sorted(names) == sorted(expected)


def test_the_toy_is_compared_by_the_figures_of_its_page():
    [page] = (ROOT / "benchmarks" / "results").glob("*-tiny-signature.md")
    said, text = read(WORKFLOWS[0]).note(), page.read_text(encoding="utf-8")
    names = {
        "40 steps": "the plain run has {} % right",
        "16 steps": "16 steps {} %",
        "k = 10, inherited, snr_equal": "the preview {} %",
        "half resolution, 40 steps": "half the size {} %",
    }
    for name, words in names.items():
        [row] = re.findall(rf"^\| {re.escape(name)} \| [\d.]+ \|.*\| (\S+) \+- \S+ \|$", text, re.M)
        assert words.format(row) in said


@pytest.mark.parametrize(
    "path", [path for path in WORKFLOWS if "I2V" in path.stem], ids=lambda path: path.stem
)
def test_the_picture_is_encoded_for_the_sizes_that_run(path):
    graph = read(path)
    for node in graph.all("SurfReshiftAnyGuider"):
        own = graph.find("MiniMaxH3ImageToVideo")
        first = graph.source(own, "first_frame")
        assert first is graph.source(node, "first_frame") is graph.find("LoadImage")
        assert graph.source(own, "vae") is graph.source(node, "vae")
        return
    if placed := graph.all("LTXVImgToVideoInplace"):
        pictures = [graph.source(node, "image") for node in placed]
        pictures.append(graph.source(graph.find("SurfRefiner"), "start_image"))
        assert [graph.source(node, "image") for node in pictures] == 3 * graph.all("LoadImage")
        return
    made = graph.widgets(graph.find("SurfImageToVideo"))
    sampler = graph.widgets(graph.find("SurfReshiftKSampler"))
    names = ("resolution", "scale", "width", "height")
    assert [made[f"low_{name}"] for name in names] == [sampler[f"low_{name}"] for name in names]
    for refiner in map(graph.widgets, graph.all("SurfRefiner")):
        assert made["target_resolution"] == refiner["resolution"]


def test_a_changed_widget_is_seen_in_the_cost():
    graph = read(next(path for path in WORKFLOWS if "5B" in path.stem))
    before = rows(graph)
    graph.find("SurfReshiftKSampler")["widgets_values"][3] += 1
    after = rows(graph)
    assert list(before) != list(after)
    assert list(before.values())[0] < list(after.values())[0]


def test_a_plan_is_set_as_the_nodes_that_it_prices():
    planned = [read(path) for path in WORKFLOWS if read(path).all("SurfPlan")]
    assert planned
    for graph in planned:
        plan, sampler = graph.find("SurfPlan"), graph.find("SurfReshiftKSampler")
        said, set_there = (graph.widgets(node) for node in (plan, sampler))
        shared = said.keys() & set_there.keys()
        assert {"steps", "switch_step", "cfg", "cfg_low", "low_scale"} <= shared
        assert all(said[name] == set_there[name] for name in shared)
        refiner = graph.find("SurfRefiner")
        own = graph.widgets(refiner)
        assert (said["refine_steps"], said["refine_cfg"]) == (own["steps"], own["cfg"])
        for name in ("resolution", "scale", "window", "tile", "chunk_frames"):
            assert said[name] == own[name], name
        assert graph.source(sampler, "model") is plan
        assert graph.source(plan, "latent") is graph.source(sampler, "latent_image")
        assert graph.source(plan, "refiner") is graph.source(refiner, "model")
