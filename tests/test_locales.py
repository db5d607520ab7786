"""Translations under locales/: complete for the nodes that exist, and nothing left over.

ComfyUI merges locales/<language>/nodeDefs.json into the texts of its front end.
"""

import itertools
import json
import re
from pathlib import Path

import pytest
from comfy_api.latest import io
from surf.tests.test_pack import NODES, OF_THE_HOST, SearchableSchema

ROOT = Path(__file__).parents[1]
LOCALES = ROOT / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
DEMANDED = {"ja", "zh", "zh-TW"}
MESSAGE_SYNTAX = re.compile(r"[{}@|]")
"""What vue-i18n takes for a placeholder, a link or a plural."""
PAGES = [
    (language, node_id, ROOT / "web" / "docs" / node_id / f"{language}.md")
    for language in LANGUAGES
    for node_id in NODES
]
"""The help pages that the front end asks for: web/docs/<node id>/<locale>.md."""


def texts_of(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def expected(schema):
    """Paths of all texts that the schema asks a translation for."""
    sockets = [("inputs", item.id, item.tooltip) for item in schema.inputs]
    sockets += [("outputs", str(n), item.tooltip) for n, item in enumerate(schema.outputs)]
    yield ("display_name",)
    if schema.description:
        yield ("description",)
    for kind, name, tooltip in sockets:
        yield (kind, name, "name")
        if tooltip:
            yield (kind, name, "tooltip")


def leaves(texts, path=()):
    """Path and text of every string in nested dictionaries."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def test_the_demanded_languages_are_there():
    assert set(LANGUAGES) >= DEMANDED


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_every_node_is_translated_and_none_is_left_over(language):
    asked = {
        (node_id, *path)
        for node_id, node in NODES.items()
        for path in expected(node.define_schema())
    }
    translated = {path for path, _ in leaves(texts_of(language))}
    assert sorted(asked - translated) == []
    assert sorted(translated - asked) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_filled_and_free_of_message_syntax(language):
    for path, text in leaves(texts_of(language)):
        assert isinstance(text, str), path
        assert text.strip(), path
        assert not MESSAGE_SYNTAX.search(text), path


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_call_an_input_by_the_label_that_is_shown(language):
    """An id such as `sigma_start` is nowhere on a translated node."""
    texts = texts_of(language)
    ids = {item.id for node in NODES.values() for item in node.define_schema().inputs}
    ids -= {"latent_image"}  # also an input of the samplers of ComfyUI
    names = {name for name in ids if "_" in name}
    found = [
        (*path, name)
        for path, text in leaves(texts)
        for name in names.intersection(re.findall(r"\w+", text, re.ASCII))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("language", "node_id", "path"), PAGES, ids=[f"{page[1]}-{page[0]}" for page in PAGES]
)
def test_a_translated_help_page_names_everything_by_label_and_id(language, node_id, path):
    schema, texts = NODES[node_id].define_schema(), texts_of(language)[node_id]
    page = path.read_text(encoding="utf-8")
    name = texts["display_name"]
    title = name if name == schema.display_name else f"{name} / {schema.display_name}"
    assert page.startswith(f"# {title}\n")
    names = [(texts["inputs"][item.id]["name"], item.id) for item in schema.inputs]
    names += [
        (texts["outputs"][str(n)]["name"], item.display_name)
        for n, item in enumerate(schema.outputs)
    ]
    assert [row for row in names if f"\n| **{row[0]}** `{row[1]}` | " not in page] == []
    for item in schema.inputs:
        options = getattr(item, "options", None)
        if options and item.id not in OF_THE_HOST:
            assert all(f"`{option}`" in page for option in options), item.id


@pytest.mark.parametrize(("language", "node_id", "path"), PAGES)
def test_a_translated_help_page_has_the_rows_of_the_english_one(language, node_id, path):
    english = ROOT / "web" / "docs" / f"{node_id}.md"
    assert rows_of_tables(path) == rows_of_tables(english)


def rows_of_tables(page):
    """Count the rows of each table of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    tables = itertools.groupby(lines, lambda line: line.startswith("|"))
    return [len([*rows]) for is_table, rows in tables if is_table]


def test_every_translated_help_page_has_its_node_and_language():
    pages = {path for path in (ROOT / "web" / "docs").glob("Surf*/*")}
    assert pages <= {path for _, _, path in PAGES}


def words_of(language):
    return json.loads((LOCALES / language / "search.json").read_text(encoding="utf-8"))


def test_a_search_finds_nodes_in_every_language(monkeypatch):
    monkeypatch.setattr(io, "Schema", SearchableSchema)
    aliases = [node.define_schema().search_aliases for node in NODES.values()]
    asked = words_of(LANGUAGES[0]).keys()
    for language in LANGUAGES:
        assert words_of(language).keys() == asked
        for word, others in words_of(language).items():
            found = [words for words in aliases if word in words]
            assert others, word
            assert found, word
            assert all(set(others) <= set(words) for words in found)


@pytest.mark.parametrize("page", sorted(ROOT.glob("README.*.md")), ids=lambda page: page.name)
def test_a_translated_readme_is_linked_and_short(page):
    text = page.read_text(encoding="utf-8")
    assert f"({page.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
