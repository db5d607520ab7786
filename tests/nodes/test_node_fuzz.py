"""Generated calls of every node on the fake host; tests/host/fuzz_cases.py takes a real one.

A few in the usual run; `pytest tests/nodes/test_node_fuzz.py --fuzz 2000` takes minutes.
"""

import asyncio

import comfy.samplers
import host_stub
import pytest
import surf
from surf.tests import node_calls
from surf.tests.node_values import Family
from surf.tests.nodes.skip_node import CellVae, latent, run, wan


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
