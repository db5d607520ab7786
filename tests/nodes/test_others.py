"""What other nodes have put on a model is found, named and logged in one line."""

import logging
from functools import partial

import host_stub
from surf.nodes.host import others
from surf.nodes.host.skip.gather import make_wrapper


class CallableCache:
    def __call__(self, *args):
        return args


def kernel(func, *args, **kwargs):
    return func(*args, **kwargs)


def attend_more(kwargs):
    return kwargs


def patched():
    """A MODEL with something of another node of each kind, and a wrapper of ours."""
    model = host_stub.Patcher()
    model.model_options = {
        "transformer_options": {
            others.OVERRIDE: partial(kernel, None),
            "patches": {"attn1_patch": [attend_more], "attn2_patch": []},
            "patches_replace": {"dit": {("double_block", n): CallableCache() for n in range(3)}},
            "wrappers": {"apply_model": {"tea": [kernel]}},
        },
        "model_function_wrapper": kernel,
    }
    blocks = {f"diffusion_model.blocks.{n}.forward": kernel for n in range(3)}
    model.object_patches = {"model_sampling": kernel, **blocks}
    model.add_wrapper_with_key("diffusion_model", "easycache", kernel)
    model.add_wrapper_with_key("diffusion_model", "surf_skip", make_wrapper())
    return model


def test_what_other_nodes_put_on_a_model_is_named_and_ours_is_not():
    found = list(others.patches_on(patched()))
    assert sorted(set(found)) == [
        (others.ATTENTION, "test_others.kernel"),
        (others.BLOCK, "test_others.CallableCache"),
        (others.FUNCTION, "test_others.kernel"),
        (others.OBJECT, "diffusion_model.blocks.forward of test_others.kernel"),
        (others.PATCH, "attn1_patch of test_others.attend_more"),
        (others.WRAPPER, "easycache"),
        (others.WRAPPER, "tea"),
    ]
    assert not list(others.patches_on(host_stub.Patcher()))


def test_one_line_tells_what_goes_with_it(caplog):
    with caplog.at_level(logging.INFO):
        others.log_patches(
            patched(), "tiles", {others.BLOCK: "runs in each", others.WRAPPER: "is off"}
        )
        others.log_patches(host_stub.Patcher(), "tiles", {others.BLOCK: "runs in each"})
    [said] = [record.getMessage() for record in caplog.records]
    assert said.endswith(
        "tiles with what other nodes put on this model: easycache (is off), tea (is off), "
        "test_others.CallableCache (runs in each)."
    )
