"""What other nodes made for one grid is found before a run on another."""

import logging
from functools import partial

import host_stub
import pytest
import torch
from surf.nodes.host.bound_patches import check_bound
from surf.nodes.preview import SurfReshiftKSampler
from surf.tests.frozen_nodes import INPUTS
from surf.tests.nodes.test_refine import AveragingVae, WanPatcher, latent, prompt, run

GRID, OTHER = (24, 40), (12, 24)
TOKENS = 6 * 12


class Speakers:
    """As InfiniteTalk's: a mask with a value for each token of a frame."""

    def __init__(self, masks):
        self.masks = masks

    def __call__(self, kwargs):
        return kwargs["x"]

    def method(self, kwargs):
        return kwargs["x"]


class Motion:
    """A wrapper round the run that pastes frames."""

    def __init__(self, frames):
        self.frames = frames

    def __call__(self, executor, *args, **kwargs):
        return executor(*args, **kwargs)


def in_closure(held):
    return lambda kwargs: (kwargs, held)[0]


MASK = torch.ones(2, TOKENS, dtype=torch.bool)
HOLDERS = {
    "object": Speakers(MASK),
    "method": Speakers(MASK).method,
    "closure": in_closure(MASK),
    "nested": in_closure([in_closure(MASK)]),
    "partial": partial(lambda held, kwargs: kwargs, MASK),
    "all frames": in_closure(torch.ones(1, 3 * TOKENS, dtype=torch.int64)),
}


def patched(patch=None, wrapper=None, model=None):
    model = model or host_stub.Patcher()
    if patch is not None:
        model.model_options["transformer_options"] = {"patches": {"attn1_patch": [patch]}}
    if wrapper is not None:
        model.add_wrapper_with_key("outer_sample", "talk", wrapper)
    return model


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_mask_of_another_grids_tokens_is_refused(holder):
    model = patched(HOLDERS[holder])
    with pytest.raises(ValueError, match="12 x 24 latent cells.*24 x 40; make it for that size"):
        check_bound(model, (1, 16, 3, *GRID), {OTHER})
    check_bound(model, (1, 16, 3, *OTHER), {OTHER})
    check_bound(model, (1, 16, 3, *GRID), {(10, 10)})


def test_the_switch_refuses_it_before_the_first_evaluation():
    """A mask for the high resolution, in the model that runs after the switch."""
    model = patched(Speakers(torch.ones(2, 8 * 12, dtype=torch.bool)))
    conds = {"positive": prompt(), "negative": prompt()}
    settings = {k: x["default"] for k, x in INPUTS["SurfReshiftKSampler"].items() if "default" in x}
    settings |= {"steps": 4, "switch_step": 2, "model": model, **conds}
    start = {"samples": torch.zeros(1, 16, 3, 16, 24)}
    with pytest.raises(ValueError, match="^Surf Reshift KSampler: .*16 x 24 .* 8 x 12; make it"):
        SurfReshiftKSampler.execute(**settings, latent_image=start)
    assert not model.seen
    SurfReshiftKSampler.execute(**(settings | {"switch_step": 4}), latent_image=start)


def test_frames_that_a_wrapper_pastes_are_refused():
    model = patched(wrapper=Motion(torch.zeros(1, 16, 1, *OTHER)))
    with pytest.raises(ValueError, match=r"test_bound_patches.Motion, .* holds \(1, 16, 1, 12, 24"):
        check_bound(model, (1, 16, 3, *GRID), {OTHER})


@pytest.mark.parametrize(
    "held",
    [torch.zeros(TOKENS, TOKENS), torch.nn.Parameter(torch.zeros(1, TOKENS, 8)),
     torch.zeros(1, 4, TOKENS), torch.zeros(1, 16, 24, 40)],
)  # fmt: skip
def test_weights_and_widths_are_no_maps(held, caplog):
    check_bound(patched(in_closure(held)), (1, 16, 3, *GRID), {OTHER})
    assert not caplog.records


def test_other_maps_of_tokens_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        check_bound(patched(in_closure(torch.zeros(1, TOKENS, 8))), (1, 16, 3, *GRID), {OTHER})
    [said] = [record.getMessage() for record in caplog.records]
    assert "(1, 72, 8) for 12 x 24 latent cells" in said


@pytest.mark.parametrize("made_for", [(4, 6), (8, 12)])
def test_the_refiner_refuses_it_before_the_vae_works(made_for):
    """A mask of the preview's grid, or of the size that the prompt was made for."""
    rows, columns = made_for
    mask = torch.ones(1, rows // 2 * columns // 2, dtype=torch.bool)
    model, vae = patched(Speakers(mask), model=WanPatcher()), AveragingVae()
    preview = latent(surf_made_for=(rows * 8, columns * 8))
    with pytest.raises(ValueError, match="^Surf Refiner: test_bound_patches.Speakers"):
        run(model, preview, prompt(), upsample="pixel", vae=vae, scale=3.0)
    assert not vae.calls
    assert not model.seen
