"""What a user sees of the pack's nodes: ids, inputs, outputs, tooltips and help pages."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from comfy_api.latest import io
from surf.nodes import SurfExtension
from surf.tests.frozen_nodes import INPUTS, OUTPUTS
from surf.tests.frozen_nodes import describe as describe_input

ROOT = Path(__file__).parents[1]
OF_THE_HOST = ("sampler_name", "scheduler", "sampler_low", "scheduler_low", "file")
"""Inputs whose options the host knows."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def list_nodes():
    return asyncio.run(SurfExtension().get_node_list())


NODES = {node.define_schema().node_id: node for node in list_nodes()}


def type_of(socket):
    """The host's name of an input's or output's type."""
    return socket.get_io_type() if hasattr(socket, "get_io_type") else socket.io_type


def test_node_ids_are_the_frozen_list():
    assert sorted(NODES) == sorted(INPUTS) == sorted(OUTPUTS)
    assert len(list_nodes()) == len(INPUTS)


@pytest.mark.parametrize("node_id", INPUTS)
def test_inputs_and_outputs_are_frozen_in_their_order(node_id):
    schema = NODES[node_id].define_schema()
    assert [item.id for item in schema.inputs] == list(INPUTS[node_id])
    outputs = [(item.display_name, type_of(item)) for item in schema.outputs]
    assert outputs == list(OUTPUTS[node_id].items())


@pytest.mark.parametrize(
    ("node_id", "name"), [(node, name) for node, inputs in INPUTS.items() for name in inputs]
)
def test_type_default_range_and_options_of_an_input_are_frozen(node_id, name):
    [item] = [item for item in NODES[node_id].define_schema().inputs if item.id == name]
    frozen = INPUTS[node_id][name]
    assert describe_input(item, frozen) == frozen


@pytest.mark.parametrize("node_id", INPUTS)
def test_main_widgets_come_before_advanced_ones(node_id):
    """As the front end lists them: what may be left out last. Sizes stay beside their bucket."""
    listed = sorted(INPUTS[node_id].items(), key=lambda item: item[1].get("optional", False))
    shown = [
        bool(said.get("advanced"))
        for name, said in listed
        if said["type"] in WIDGETS and not name.endswith(("width", "height"))
    ]
    assert shown == sorted(shown)


def test_nodes_whose_gain_is_not_measured_are_experimental():
    schemas = [(node_id, node.define_schema()) for node_id, node in NODES.items()]
    experimental = {node_id for node_id, schema in schemas if schema.is_experimental}
    assert experimental == {"SurfColourMatch", "SurfCompile", "SurfReshiftLadder"}


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_says_what_it_is(node_id):
    schema = NODES[node_id].define_schema()
    assert node_id.startswith("Surf")
    assert schema.category == "SURF"
    assert schema.display_name
    assert schema.description
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.tooltip, f"{socket.id or socket.display_name} has no tooltip"


@pytest.mark.parametrize("node_id", NODES)
def test_every_help_page_names_every_input_and_output(node_id):
    schema = NODES[node_id].define_schema()
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text()
    assert page.startswith(f"# {schema.display_name}\n")
    names = [item.id for item in schema.inputs] + [item.display_name for item in schema.outputs]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    for item in schema.inputs:
        options = getattr(item, "options", None)
        if options and item.id not in OF_THE_HOST:
            assert all(f"`{option}`" in page for option in options), item.id


def test_every_help_page_has_its_node():
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == set(NODES)


@dataclass
class SearchableSchema(io.Schema):
    """As newer hosts have it."""

    search_aliases: list = field(default_factory=list)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("surf", None),
        ("preview", "SurfReshiftKSampler"),
        ("faster wan", "SurfReshiftKSampler"),
        ("speed up", "SurfReshiftKSampler"),
        ("drafts", "SurfReshiftKSampler"),
        ("video refiner", "SurfRefiner"),
        ("video upscale", "SurfRefiner"),
        ("hires fix", "SurfRefiner"),
        ("1080p", "SurfRefiner"),
        ("4k", "SurfRefiner"),
    ],
)
def test_what_people_type_finds_the_node(word, expected, monkeypatch):
    """Every node has a name that begins with Surf; `search_aliases` hold the other words."""
    monkeypatch.setattr(io, "Schema", SearchableSchema)
    schemas = {name: node.define_schema() for name, node in NODES.items()}
    if expected is None:
        assert all(schema.display_name.startswith("Surf ") for schema in schemas.values())
    else:
        assert word in schemas[expected].search_aliases
