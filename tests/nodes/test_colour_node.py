"""Surf Colour Match: layout in and out, the progress bar, the stop button, its name in errors."""

import comfy.model_management
import host_stub
import pytest
import torch
from surf.nodes.colour import SurfColourMatch
from surf.surf_core import colour
from surf.surf_core.colour import METHODS, match_colour

SETTINGS = {"method": "wavelet", "strength": 1.0}


def images(seed=0, frames=5, rows=24, columns=40):
    shape = (frames, rows, columns, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def run(image, reference, **changes):
    return SurfColourMatch.execute(image, reference, **(SETTINGS | changes)).args[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_node_is_the_match_in_the_hosts_layout(method):
    image, reference = images(), images(1, rows=12, columns=20)
    kept = image.clone(), reference.clone()
    out = run(image, reference, method=method, strength=0.7)
    assert out.shape == image.shape
    assert out.is_contiguous()
    expected = match_colour(
        image.movedim(-1, 1), reference.movedim(-1, 1), method, strength=0.7
    ).movedim(1, -1)
    assert torch.equal(out, expected)
    assert torch.equal(image, kept[0])
    assert torch.equal(reference, kept[1])


def test_progress_runs_to_the_number_of_frames(monkeypatch):
    monkeypatch.setattr(colour, "CHUNK_PIXELS", 2 * 24 * 40)
    run(images(), images(1))
    bar = host_stub.BARS[-1]
    assert (bar.total, bar.shown) == (5, [2, 4, 5])


def test_the_stop_button_stops(monkeypatch):
    def stop():
        raise host_stub.Interrupted

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(host_stub.Interrupted):
        run(images(), images(1))


def test_errors_bear_the_nodes_name():
    for image, reference, changes, said in (
        (images(), images(frames=4), {}, "as many frames"),
        (images()[..., :2], images(), {}, "RGB"),
        (images() * float("nan"), images(), {}, "image must be finite"),
        (images(), images() / 0, {}, "reference must be finite"),
        (images(), images(columns=24), {}, "in the shape of the video"),
        (images(), images(), {"method": "none"}, "method must be one of"),
    ):
        with pytest.raises(ValueError, match=f"^Surf Colour Match: .*{said}"):
            run(image, reference, **changes)
