"""Every workflow in the real front end: it loads by drop, keeps its values, and can be queued."""

import json

import pytest
from surf.tests.test_pack import NODES
from surf.tests.test_workflow_files import WIDEST, WORKFLOWS, describe
from surf.tests.web.geometry import (
    MEASURE,
    SHOW_PREVIEWS,
    WINDOWS,
    fitted_zoom,
    hidden,
    overlaps,
    strays,
    width,
)

SHOWN = """
    const kinds = window.LiteGraph.registered_node_types;
    return app.graph.nodes.map((node) => ({
        id: node.id, type: node.type, known: node.type in kinds,
        widgets: (node.widgets ?? []).map((widget) => [widget.name, widget.value]),
    }));
"""
PROMPT = "return (await app.graphToPrompt()).output;"
AGAIN = """
    const saved = JSON.parse(JSON.stringify((await app.graphToPrompt()).workflow));
    await app.loadGraphData(saved, true, true);
    return (await app.graphToPrompt()).output;
"""
QUEUE = "await app.queuePrompt(0, 1); return null;"


FOUND = """
    const {$pinia} = document.querySelector("#vue-app").__vue_app__.config.globalProperties;
    const search = $pinia._s.get("nodeDef").nodeSearchService;
    const {keys} = search.nodeFuseSearch.fuse.options;
    const found = search.searchNode(given[0]).map((node) => node.name);
    return {found, hasAliases: keys.some((key) => (key.name ?? key) === "search_aliases")};
"""
SEARCHES = {
    "video refiner": "SurfRefiner",
    "video upscale": "SurfRefiner",
    "hires fix": "SurfRefiner",
    "1080p": "SurfRefiner",
    "4k": "SurfRefiner",
    "faster wan": "SurfReshiftKSampler",
    "speed up": "SurfReshiftKSampler",
    "preview": "SurfReshiftKSampler",
    "drafts": "SurfDrafts",
}
"""What people type -> what they look for."""
STRETCHED = 1.2
"""How much larger ComfyUI 0.8.0 draws Nodes 2.0: too large for the smallest window."""
LEAST_ZOOM = 8 / 14
"""Below it the front end draws no text on classic nodes."""


@pytest.mark.parametrize("words", SEARCHES)
def test_words_that_people_type_find_our_nodes(words, canvas):
    seen = canvas.call(FOUND, words)
    if not seen["hasAliases"]:
        pytest.skip("the front end of ComfyUI 0.8.0 looks at names alone")
    assert SEARCHES[words] in seen["found"][:10]


def test_our_name_finds_every_node_of_ours(canvas):
    assert set(canvas.call(FOUND, "surf")["found"][: len(NODES)]) == set(NODES)


def test_the_graph_that_the_front_end_begins_with_is_known(canvas):
    """What is wrong with one of its nodes would stay with the node of the same id in ours."""
    assert canvas.unknown_at_first == []


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def dropped(request, canvas):
    """A canvas with a workflow dropped on it, and that workflow."""
    canvas.errors.clear()
    canvas.clear()
    canvas.drop(request.param)
    return canvas, request.param


def test_workflow_looks_tidy_and_can_be_queued(dropped):
    canvas, path = dropped
    canvas.picture(f"{path.stem}-{canvas.style}")
    seen = canvas.call(MEASURE)
    keeps_values_and_is_queued(canvas, path)
    is_tidy(seen)
    opens_readable(seen["boxes"])
    canvas.call(SHOW_PREVIEWS)
    assert list(overlaps(canvas.call(MEASURE)["boxes"])) == [], "with live previews"
    assert canvas.errors == []


def is_tidy(seen):
    """Nothing overlaps or leaves its group, no wire crosses a title, the note is in view."""
    assert seen["undrawn"] == 0
    assert list(overlaps(seen["boxes"])) == []
    assert list(strays(seen["boxes"], seen["framed"])) == []
    assert seen["crossed"] == []
    assert width(seen["boxes"]) <= WIDEST * STRETCHED
    [note] = [box for name, box in seen["boxes"].items() if name.endswith("MarkdownNote")]
    stretched = width(seen["boxes"]) > WIDEST
    for window in WINDOWS[stretched:]:
        assert not hidden(note, seen["opened"], window), window
    assert seen["opened"]["scale"] >= LEAST_ZOOM


def opens_readable(boxes):
    """As the template browser opens it; that of ComfyUI 0.8.0 does not fit graphs."""
    if width(boxes) <= WIDEST:
        assert [window for window in WINDOWS if fitted_zoom(boxes, window) < LEAST_ZOOM] == []


def keeps_values_and_is_queued(canvas, path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    shown = {str(node["id"]): node for node in canvas.call(SHOWN)}
    assert shown.keys() == {str(node["id"]) for node in graph["nodes"]}
    assert [node["type"] for node in shown.values() if not node["known"]] == []
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        names = describe(node["type"])[3]
        expected = dict(zip(names, node["widgets_values"], strict=True))
        expected.pop("upload", None)
        seen = dict(shown[str(node["id"])]["widgets"])
        assert {name: seen.get(name) for name in expected} == expected, node["type"]
    prompt = canvas.call(PROMPT)
    active = {str(node["id"]) for node in graph["nodes"] if node["mode"] == 0}
    assert prompt.keys() == {key for key in active if shown[key]["type"] != "MarkdownNote"}
    assert canvas.call(AGAIN) == prompt
    canvas.call(QUEUE)
    assert canvas.site.prompts.pop() == prompt


def test_a_graph_that_is_not_tidy_is_seen(canvas):
    canvas.clear()
    canvas.drop(WORKFLOWS[0])
    canvas.call("""
        const {nodes, groups} = app.graph, [one, other] = nodes;
        other.pos = [one.pos[0] + 40, one.pos[1] + 40];
        const note = nodes.find((node) => node.type === "MarkdownNote");
        note.pos = [note.pos[0] - 300, note.pos[1]];
        const [first] = app.graph.links.values(), from = app.graph.getNodeById(first.origin_id);
        groups[0].pos = [from.pos[0] + from.size[0] - 20, from.pos[1]];
        return null;
    """)
    seen = canvas.call(MEASURE)
    assert list(overlaps(seen["boxes"]))
    assert fitted_zoom(seen["boxes"], WINDOWS[0]) < LEAST_ZOOM
    assert width(seen["boxes"]) > WIDEST
    [note] = [box for name, box in seen["boxes"].items() if name.endswith("MarkdownNote")]
    assert hidden(note, seen["opened"], WINDOWS[0])
    assert seen["crossed"]
    said = " ".join(strays(seen["boxes"], [*seen["framed"], ["the note", note]]))
    assert "leaves 1  Models and prompt" in said
    assert "is in 2 groups" in said
    assert "MarkdownNote covers the note" in said
