"""The fake host of the fast tests takes what this host takes: names, parameters, constants.

Everything in `host_stub.contents` is compared. Started in the host's folder by test_inside.py.
"""

import importlib
import inspect
import sys

import contract
import inprocess
import inside
import torch

RESULTS = inside.enter()

import comfy.model_base  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.samplers  # noqa: E402
from comfy_api.latest import io  # noqa: E402

HOST = inprocess.Host()
STUB = contract.load("host_stub.py", "host_stub")
CONTENTS = contract.contents(STUB)
API = sys.modules["host_stub_api"]
FROZEN = contract.load("frozen_nodes.py", "frozen_nodes")
NEWER = {
    "comfy.sample.fix_empty_latent_channels": {
        "downscale_ratio_spacial",
        "downscale_ratio_temporal",
    },
}
"""Parameters that the oldest hosts lack and the pack passes only where they are known."""
OTHER_NAMES = {"comfy.ldm.modules.attention.optimized_attention": {"q", "k", "v"}}
"""Parameters that hosts call differently and everybody passes by position."""
BUILT_IN = {"__init__", "__call__"}


def members():
    """Go through (dotted name, fake, real); what the host lacks is a fault of the stub."""
    for module, names in CONTENTS.items():
        real = importlib.import_module(module)
        for name, fake in names.items():
            if module != "comfy_api.latest":
                assert hasattr(real, name), f"{module}.{name} is no name of the host"
                yield f"{module}.{name}", fake, getattr(real, name)


def functions():
    """Go through (dotted name, fake, real) of functions and of what classes define."""
    for name, fake, real in members():
        if not inspect.isclass(fake):
            if inspect.isfunction(fake):
                yield name, fake, real
            continue
        for method, made in vars(fake).items():
            made = getattr(made, "__func__", made)
            own = method in BUILT_IN or not method.startswith("_")
            # What a test sets up a fake model with is the fake's own.
            own = own and (name, method) != ("comfy.model_patcher.ModelPatcher", "__init__")
            if inspect.isfunction(made) and own:
                assert hasattr(real, method), f"{name}.{method} is no method of the host"
                whole = getattr(real, method)
                yield f"{name}.{method}", made, getattr(whole, "__func__", whole)


def parameters(function):
    return {
        name: item
        for name, item in inspect.signature(function).parameters.items()
        if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    }


def parameter_faults(name, fake, real):
    """Calls that one of the two takes and the other does not."""
    ours, theirs = parameters(fake), parameters(real)
    skipped = NEWER.get(name, set()) | OTHER_NAMES.get(name, set())
    for place, (key, item) in enumerate(ours.items()):
        known = theirs.get(key)
        if key in skipped:
            continue
        if known is None:
            yield f"{name}: the host has no parameter {key}: {list(theirs)}"
        elif list(theirs)[place] != key:
            yield f"{name}: the host has {list(theirs)[place]} in the place of {key}"
        elif (item.default is item.empty) != (known.default is known.empty):
            yield f"{name}: only one of the two has a default for {key}"
    for key, item in theirs.items():
        if key not in ours and item.default is item.empty and name not in OTHER_NAMES:
            yield f"{name}: the host wants {key}, too"


def case_every_function_takes_what_the_hosts_takes():
    compared = list(functions())
    assert len(compared) > 60, len(compared)
    faults = [fault for each in compared for fault in parameter_faults(*each)]
    assert not faults, "\n".join(faults)


def case_a_planted_difference_is_seen():
    def real(a, b, c=1, *, d):
        pass

    def swapped(b, a, c=1, *, d):
        pass

    def short(a, c=1):
        pass

    def loose(a, b=2, c=1, *, d, e=0):
        pass

    assert not list(parameter_faults("x", real, real))
    assert len(list(parameter_faults("x", swapped, real))) == 2
    assert len(list(parameter_faults("x", short, real))) == 3
    assert len(list(parameter_faults("x", loose, real))) == 2


def case_constants_are_the_hosts():
    stub = CONTENTS["comfy.patcher_extension"]["WrappersMP"]
    names = [name for name in vars(stub) if name.isupper()]
    assert len(names) >= 3
    for name in names:
        assert getattr(stub, name) == getattr(comfy.patcher_extension.WrappersMP, name), name
    for kind in ("SAMPLERS", "SCHEDULERS"):
        unknown = set(getattr(STUB.KSampler, kind)) - set(getattr(comfy.samplers.KSampler, kind))
        assert not unknown, unknown
    for item in CONTENTS["comfy.model_base"]["ModelType"]:
        assert comfy.model_base.ModelType[item.name].value == item.value
    assert comfy.model_management.OOM_EXCEPTION is torch.OutOfMemoryError
    for kind in STUB.FORMATS.values():
        real = getattr(importlib.import_module("comfy.latent_formats"), kind.__name__)()
        for name in ("latent_channels", "latent_dimensions"):
            assert getattr(kind, name) == getattr(real, name), (kind, name)
        for name in ("spacial_downscale_ratio", "temporal_downscale_ratio"):
            assert getattr(kind, name) == getattr(real, name, getattr(kind, name)), (kind, name)


def case_node_types_are_the_hosts():
    known = set()
    for name in API.types():
        real = getattr(io, name)
        assert getattr(API.io, name).Input("x").get_io_type() == real.io_type, name
        known |= set(parameters(real.Input.__init__))
        assert set(parameters(API.Output.__init__)) <= set(parameters(real.Output.__init__))
    assert set(parameters(API.Input.__init__)) - known <= {"advanced"}
    assert set(parameters(API.Schema.__init__)) <= set(parameters(io.Schema.__init__))
    assert set(parameters(API.NodeOutput.__init__)) <= set(parameters(io.NodeOutput.__init__))
    assert API.io.Custom("ANY").Input("x").get_io_type() == io.Custom("ANY").Input("x").io_type


def case_every_input_is_frozen_here_too():
    """What the stub shows of a schema, the host shows; old ones hold `advanced` elsewhere."""
    for node_id, inputs in FROZEN.INPUTS.items():
        schema = HOST.nodes[node_id].GET_SCHEMA()
        assert [item.id for item in schema.inputs] == list(inputs), node_id
        for item in schema.inputs:
            frozen = dict(inputs[item.id])
            said = FROZEN.describe(item, frozen)
            if "advanced" in frozen and "advanced" not in said:
                said["advanced"] = (item.extra_dict or {}).get("advanced")
            assert said == frozen, (node_id, item.id, said)
        outputs = {item.display_name: item.io_type for item in schema.outputs}
        assert outputs == FROZEN.OUTPUTS[node_id], node_id


if __name__ == "__main__":
    inside.report(RESULTS, globals())
