"""The front end in each language of locales/: titles, labels and help pages of our nodes."""

import json

import pytest
from surf.tests.test_locales import LANGUAGES, ROOT, texts_of
from surf.tests.test_pack import NODES
from surf.tests.web.conftest import open_canvas

FIRST = next(ROOT.glob("workflows/01 *.json"))
SHOWN = """
    const name = (item) => item.label || item.localized_name || item.name;
    return app.graph.nodes.map((node) => ({
        id: node.id, type: node.type, title: node.title,
        inputs: [...node.inputs, ...(node.widgets ?? [])].map((item) => [item.name, name(item)]),
        outputs: node.outputs.map(name),
    }));
"""
SELECT = """
    app.canvas.selectNode(app.graph.nodes.find((node) => node.type === given[0]));
    return null;
"""


@pytest.fixture(scope="module", params=LANGUAGES)
def translated(request, chromium):
    """A canvas in a language with the first workflow dropped on it, and our texts of it."""
    language = request.param
    with open_canvas(chromium, language, **{"Comfy.Locale": language}) as canvas:
        canvas.errors.clear()  # what the front end says while it starts
        canvas.drop(FIRST)
        canvas.picture(f"language-{language}")
        yield canvas, texts_of(language)


def test_titles_and_labels_are_those_of_the_language(translated):
    canvas, texts = translated
    nodes = json.loads(FIRST.read_text(encoding="utf-8"))["nodes"]
    titles = {str(node["id"]): node.get("title") for node in nodes}
    ours = [node for node in canvas.call(SHOWN) if node["type"] in NODES]
    assert len(ours) == 5
    for node in ours:
        text = texts[node["type"]]
        assert node["title"] == (titles[str(node["id"])] or text["display_name"])
        labels = {name: text["name"] for name, text in text.get("inputs", {}).items()}
        seen = {name: label for name, label in node["inputs"] if name in labels}
        assert seen == labels
        assert node["outputs"] == [item["name"] for item in text["outputs"].values()]
    assert canvas.errors == []


def test_the_help_page_is_that_of_the_language(translated):
    canvas, texts = translated
    canvas.page.keyboard.press("Escape")  # older front ends miss nodes of the graph they begin with
    canvas.call(SELECT, "SurfRefiner")
    canvas.page.get_by_test_id("info-button").click()
    heading = canvas.page.locator("h1", has_text=texts["SurfRefiner"]["display_name"])
    heading.wait_for(timeout=10_000)
    row = texts["SurfRefiner"]["inputs"]["sigma_start"]["name"]
    canvas.page.get_by_role("cell", name=f"{row} sigma_start").wait_for(timeout=5_000)
    canvas.picture(f"help-{canvas.style}")
    assert canvas.errors == []
