"""Every workflow in the real front end: it loads by drop, keeps its values, and can be queued."""

import json

import pytest
from surf.tests.test_workflow_files import WORKFLOWS, describe

NODES = """
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


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def dropped(request, canvas):
    """A canvas with a workflow dropped on it, and that workflow."""
    canvas.errors.clear()
    canvas.clear()
    canvas.drop(request.param)
    return canvas, request.param


def test_workflow_loads_keeps_its_values_and_is_queued(dropped):
    canvas, path = dropped
    graph = json.loads(path.read_text(encoding="utf-8"))
    shown = {str(node["id"]): node for node in canvas.call(NODES)}
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
    canvas.picture(f"{path.stem}-{canvas.style}")
    assert canvas.errors == []
