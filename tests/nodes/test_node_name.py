"""The name in front of errors and log lines: once, of the node whose code refuses."""

import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest
from surf.nodes import SurfExtension
from surf.nodes.host.node import NodeLog, names_errors, reporting_as, running_node


class Interrupt(Exception):
    """What the host raises when its user stops a run."""


class Detailed(ValueError):
    """An error whose text is not its first argument."""

    def __str__(self):
        return f"{self.args[1]} at {self.args[0]}"


def node_of(call, name="This Node"):
    class Node:
        @classmethod
        def define_schema(cls):
            return SimpleNamespace(display_name=name)

        @classmethod
        @names_errors
        def execute(cls, *args, **kwargs):
            return call(*args, **kwargs)

    return Node


def refuse(error):
    raise error


def test_every_node_names_its_errors():
    for node in asyncio.run(SurfExtension().get_node_list()):
        assert node.execute.__func__.__code__ is node_of(None).execute.__func__.__code__, node


def test_execute_takes_and_gives_what_it_did():
    node = node_of(lambda *args, **kwargs: (args, kwargs, running_node()))
    assert node.execute(1, b=2) == ((1,), {"b": 2}, "This Node")
    assert running_node() == ""


def test_an_error_stays_the_same_object_with_its_traceback():
    error = ValueError("width 1270 is odd")
    with pytest.raises(ValueError, match="^This Node: width") as caught:
        node_of(refuse).execute(error)
    assert caught.value is error
    assert str(error) == "This Node: width 1270 is odd"
    assert type(error) is ValueError
    assert caught.traceback[-1].name == "refuse"
    assert running_node() == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("out"), Interrupt("stop"), KeyboardInterrupt(), Detailed(3, "bad")]
)
def test_other_errors_pass_untouched(error):
    text = str(error)
    with pytest.raises(type(error)) as caught:
        node_of(refuse).execute(error)
    assert caught.value is error
    assert str(error) == text


def test_what_a_node_left_behind_fails_under_its_own_name():
    def build():
        name = running_node()

        def closure():
            with reporting_as(name):
                refuse(ValueError("bad"))

        return closure

    closure = node_of(build, "Inner").execute()
    for call in (closure, lambda: node_of(closure, "Outer").execute()):
        with pytest.raises(ValueError, match=r"^Inner: bad$"):
            call()


def test_without_a_name_the_block_runs_as_it_is():
    def call():
        with reporting_as(""):
            assert running_node() == "This Node"
            refuse(ValueError("bad"))

    with pytest.raises(ValueError, match=r"^bad$"), reporting_as(""):
        refuse(ValueError("bad"))
    with pytest.raises(ValueError, match=r"^This Node: bad$"):
        node_of(call).execute()


def test_log_lines_carry_the_name_of_their_thread(caplog):
    log = NodeLog("surf.test")

    def call():
        log.info("%d tiles", 2)
        other = threading.Thread(target=log.info, args=("elsewhere",))
        other.start()
        other.join()

    with caplog.at_level(logging.INFO, logger="surf.test"):
        node_of(call).execute()
    assert [record.getMessage() for record in caplog.records] == [
        "This Node: 2 tiles", "SURF: elsewhere"
    ]  # fmt: skip
