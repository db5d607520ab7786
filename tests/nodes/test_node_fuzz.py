"""Generated calls of every node on the fake host; tests/host/fuzz_cases.py takes a real one.

A few in the usual run; `pytest tests/nodes/test_node_fuzz.py --fuzz 2000` takes minutes.
"""

import asyncio

import comfy.samplers
import host_stub
import pytest
import surf
import torch
from surf.tests import node_calls
from surf.tests.frozen_nodes import INPUTS
from surf.tests.node_values import Family
from surf.tests.nodes.skip_node import CellVae, latent, run, wan
from surf.tests.test_pack import ROOT


@pytest.fixture(scope="module")
def world():
    extension = asyncio.run(surf.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id if hasattr(node, "GET_SCHEMA") else
             node.define_schema().node_id: node
             for node in asyncio.run(extension.get_node_list())}  # fmt: skip
    image = wan()
    image.model.latent_format.latent_dimensions = 2
    eps = host_stub.Patcher(kind=(host_stub.DiscreteFlow, host_stub.Eps))
    families = [
        Family(model=wan(), vae=CellVae()),
        Family(model=wan(48), vae=CellVae(48), channels=48),
        Family(model=image, vae=CellVae(), video=False),
        Family(model=eps, vae=CellVae(), plain=False),
    ]
    options = {"sampler_name": ["euler", "euler_ancestral"], "scheduler": ["simple"],
               "refiner_name": ["none.safetensors"]}  # fmt: skip
    return node_calls.CallInputs(
        nodes=nodes, families=families, masks=[run(preview=latent(1, 16, 3, 4, 6))[0]],
        options=options, sampler=comfy.samplers.sampler_object, guider=comfy.samplers.CFGGuider,
    )  # fmt: skip


def test_generated_calls_give_results_or_refuse_with_advice(world, request):
    count = request.config.getoption("--fuzz") or 120
    ends = node_calls.check_all(range(count), world)
    print(ends)
    assert min(ends.values()) > count // 10, ends


TAKES_LATENTS = [
    node
    for node, inputs in INPUTS.items()
    if any(said["type"] == "LATENT" for said in inputs.values())
]


def refuses_two_masks(node, world):
    """Say whether a node refuses two noise masks for a video of three latent frames."""
    every = len(node_calls.NODES)
    for seed in range(node_calls.NODES.index(node), 60 * every, every):
        _, given, odd = node_calls.generate(seed, world)
        videos = {name: x for name, x in given.items()
                  if INPUTS[node][name]["type"] == "LATENT" and x is not None}  # fmt: skip
        if odd or not videos:
            continue
        for name, x in videos.items():
            _, channels, *_, rows, columns = x["samples"].shape
            samples = torch.randn(1, channels, 3, rows, columns)
            given[name] = {"samples": samples, "noise_mask": torch.ones(2, rows, columns)}
        try:
            world.nodes[node].execute(**given)
        except ValueError as error:
            if "expected a noise mask for 1 or" in str(error):
                return True
    return False


@pytest.mark.parametrize("node", TAKES_LATENTS)
def test_help_names_noise_masks_of_another_count_where_a_node_refuses_them(node, world):
    page = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    named = "| a noise mask for items and latent frames |" in page
    assert named == refuses_two_masks(node, world)
