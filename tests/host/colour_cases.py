"""Surf Colour Match inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/colour_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import checkpoints
import inside
import torch
from inside import noise

RESULTS = inside.enter()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
from surf.nodes.colour import SurfColourMatch  # noqa: E402
from surf.surf_core import colour  # noqa: E402


def frames(rows, columns, seed):
    """A video as VAEDecode hands it on: [F, height, width, 3]."""
    vae = comfy.sd.VAE(sd=checkpoints.wan_vae())
    decoded = vae.decode(noise(1, 16, 3, rows, columns, seed=seed))
    return decoded.reshape(-1, *decoded.shape[-3:])


def run(image, reference, method):
    return SurfColourMatch.execute(image, reference, method, 1.0).result[0]


def case_decoded_frames_get_the_previews_colours():
    image, preview = frames(8, 12, 1), frames(4, 6, 2)
    assert image.shape == (9, 64, 96, 3), image.shape
    for method in colour.METHODS:
        kept = image.clone(), preview.clone()
        out = run(image, preview, method)
        assert out.shape == image.shape
        assert out.device == image.device
        expected = colour.match_colour(image.movedim(-1, 1), preview.movedim(-1, 1), method)
        torch.testing.assert_close(out, expected.movedim(1, -1), rtol=0, atol=1e-5)
        far, near = ((x.mean((1, 2)) - preview.mean((1, 2))).abs().mean() for x in (image, out))
        assert near < far, (method, far, near)
        assert torch.equal(image, kept[0])
        assert torch.equal(preview, kept[1])


def case_frames_that_match_come_back_bit_for_bit():
    image = frames(8, 12, 1)
    for method in colour.METHODS:
        assert torch.equal(run(image, image, method), image)


def case_the_stop_button_stops_and_the_bar_reaches_its_end():
    image, bars = frames(4, 6, 1), []

    class ColourBar(comfy.utils.ProgressBar):
        def update_absolute(self, value, *args, **kwargs):
            bars.append((value, self.total))
            super().update_absolute(value, *args, **kwargs)

    original, comfy.utils.ProgressBar = comfy.utils.ProgressBar, ColourBar
    try:
        run(image, image, "lab")
    finally:
        comfy.utils.ProgressBar = original
    assert bars[-1] == (9, 9), bars
    comfy.model_management.interrupt_current_processing(True)
    try:
        run(image, image, "lab")
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("the interrupt was swallowed")
    finally:
        comfy.model_management.interrupt_current_processing(False)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
