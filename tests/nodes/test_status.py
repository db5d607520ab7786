"""Status under a node: sent to the node that runs, and nowhere without a server."""

import sys
from types import SimpleNamespace

import pytest
import torch
from surf.nodes.decode import SurfVAEDecode
from surf.nodes.host.compiling import CompiledCalls
from surf.nodes.host.node import show_status
from surf.nodes.host.node.status import LINE
from surf.nodes.preview import SurfReshiftKSampler
from surf.nodes.refine import SurfRefiner
from surf.tests.nodes.test_nodes import given
from surf.tests.nodes.vaes import Vae


@pytest.fixture
def shown(monkeypatch):
    """(node, text) of every status, as a host with a running prompt would get it."""
    sent = []
    server = SimpleNamespace(send_progress_text=lambda text, node: sent.append((node, text)))
    context = SimpleNamespace(node_id="7")
    for name, members in {
        "server": {"PromptServer": SimpleNamespace(instance=server)},
        "comfy_execution.utils": {"get_executing_context": lambda: context},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**members))
    return sent


def test_preview_says_sizes_and_steps(shown):
    """Handover "evaluate" takes one more at the switch."""
    SurfReshiftKSampler.execute(**given(SurfReshiftKSampler))
    assert ("7", "192 x 128: 3 steps\nbefore the switch") in shown
    assert ("7", "96 x 64: 2 steps\nafter the switch") in shown


def test_refiner_says_size_and_step(shown):
    SurfRefiner.execute(**given(SurfRefiner))
    texts = [text for _, text in shown]
    assert texts[0] == "384 x 256: 0/2 steps"
    assert texts[-1] == "384 x 256: 2/2 steps"
    assert len("3840 x 2160: 100/100 steps") == LINE


def test_decode_says_pieces(shown):
    SurfVAEDecode.execute({"samples": torch.zeros(1, 16, 2, 40, 30)}, Vae(), 0, 0, 256)
    assert [text for _, text in shown] == ["decoded 1/2 pieces", "decoded 2/2 pieces"]


def test_lines_break_between_words_where_a_narrow_node_ends(shown):
    """The front end would break them within words."""
    text = "64 x 64: 0/2 steps, from the start: seed-2 has changed\nand one-word-longer-than-a-line"
    show_status(text)
    assert shown[0][1].splitlines() == [
        "64 x 64: 0/2 steps, from", "the start: seed-2 has", "changed",
        "and", "one-word-longer-than-a-line",
    ]  # fmt: skip


def test_compiled_model_says_so_under_the_node_that_compiled_it(shown):
    calls = CompiledCalls()
    shown.clear()
    sys.modules["comfy_execution.utils"].get_executing_context().node_id = "8"
    assert calls(lambda x: x + 1, 1) == 2
    assert [node for node, _ in shown] == ["7", "7"]
    assert shown[0][1] == "compiling: this step\nmay take minutes"
    calls(lambda: None)
    assert len(shown) == 2


def test_without_a_server_or_a_running_node_nothing_is_sent(shown, monkeypatch):
    sys.modules["comfy_execution.utils"].get_executing_context = lambda: None
    show_status("nobody runs")
    assert shown == []
    show_status("for a node that ran", "3")
    assert shown == [("3", "for a node that ran")]
    monkeypatch.delitem(sys.modules, "server")
    show_status("no server", "3")
    assert len(shown) == 1
