"""Surf VAE Decode inside a real host, in its process: run by test_inside.py, all cases at once.

    cd $COMFYUI_PATH && python tests/host/decode_cases.py RESULTS.json

Every function `case_*` asserts.
"""

import logging

import checkpoints
import inside
import torch
from inprocess import refused
from inside import noise

RESULTS = inside.enter()

import comfy.model_management as management  # noqa: E402
import comfy.nested_tensor  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
from surf.nodes.decode import SurfVAEDecode  # noqa: E402
from surf.nodes.host.vae import decode, memory  # noqa: E402

import nodes  # noqa: E402


class Lines(logging.Handler):
    """What the pack logs."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.said = []
        for name in (decode.__name__, memory.__name__):
            logging.getLogger(name).addHandler(self)
            logging.getLogger(name).setLevel(logging.INFO)

    def emit(self, record):
        self.said.append(record.getMessage())


LINES = Lines()


def wan():
    return comfy.sd.VAE(sd=checkpoints.wan_vae())


def wan22():
    """The VAE of Wan 2.2 5B, whose width the host fixes, without weights: for its estimate."""
    import comfy.ldm.wan.vae2_2

    with torch.device("meta"):
        module = comfy.ldm.wan.vae2_2.WanVAE(
            dim=160, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], dropout=0.0,
        )  # fmt: skip
        return comfy.sd.VAE(sd=module.state_dict())


def ours(vae, samples, width=0, height=0, piece=0):
    LINES.said.clear()
    return SurfVAEDecode.execute({"samples": samples}, vae, width, height, piece).result[0]


def stock(vae, samples):
    return nodes.VAEDecode().decode(vae, {"samples": samples})[0]


class Full:
    """A network that is out of memory above so many cells, and what it was asked."""

    def __init__(self, vae, cells):
        self.vae, self.cells, self.real = vae, cells, vae.first_stage_model.decode
        self.sizes = []

    def __enter__(self):
        self.vae.first_stage_model.decode = self.decode
        return self

    def __exit__(self, *error):
        del self.vae.first_stage_model.decode

    def decode(self, z, *args, **kwargs):
        self.sizes.append(tuple(z.shape[-2:]))
        if z.shape[-1] * z.shape[-2] > self.cells:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (pretended).")
        return self.real(z, *args, **kwargs)


def case_one_piece_is_the_hosts_vae_decode_bit_for_bit():
    vae = wan()
    for samples in (noise(1, 16, 3, 9, 12), noise(2, 16, 1, 6, 8), noise(1, 16, 2, 5, 7).half()):
        kept = samples.clone()
        got, expected = ours(vae, samples), stock(vae, samples)
        assert got.dtype == expected.dtype
        assert got.device == expected.device
        assert torch.equal(got, expected), got.shape
        assert torch.equal(samples, kept)
        assert 0 <= got.min() <= got.max() <= 1
    assert "in one piece" in LINES.said[0], LINES.said


def case_frames_are_cropped_from_the_top_left():
    vae, samples = wan(), noise(1, 16, 2, 9, 12)
    assert torch.equal(ours(vae, samples, 90, 65), stock(vae, samples)[:, :65, :90])


def case_pieces_are_close_to_the_whole_and_have_no_seam():
    """Without attention, which sees the whole picture and knows nothing with random weights."""
    state = checkpoints.wan_vae()
    for name in ("weight", "bias"):
        state[f"decoder.middle.1.proj.{name}"].zero_()
    vae, samples = comfy.sd.VAE(sd=state), noise(1, 16, 3, 24, 40)
    whole, pieces = stock(vae, samples), ours(vae, samples, piece=160)
    assert "6 pieces of 152 x 128" in LINES.said[0], LINES.said
    assert pieces.shape == whole.shape == (9, 192, 320, 3)
    assert 0 <= pieces.min() <= pieces.max() <= 1
    apart = (pieces - whole).abs()
    assert apart.mean() < 0.06 * whole.std(), (apart.mean(), whole.std())
    far_from_borders = apart[:, :32, :48]
    assert far_from_borders.max() < 0.01, far_from_borders.max()
    halves = torch.cat([stock(vae, samples[..., :20]), stock(vae, samples[..., 20:])], 2)
    blended, hard = ((each - whole).diff(dim=2).abs().mean((0, 1, 3)) for each in (pieces, halves))
    assert hard.argmax() == 159, "the measure sees a seam where there is one"
    assert blended.max() < hard.max() / 5, (blended.max(), hard.max())
    assert blended.max() < 0.3 * whole.diff(dim=2).abs().mean()


def case_full_memory_takes_our_pieces_not_the_hosts_tiles():
    vae, samples = wan(), noise(1, 16, 2, 40, 40)
    before, tiled = dict(vars(vae)), comfy.sd.VAE.decode_tiled_3d

    def refuse(*args, **kwargs):
        raise AssertionError("the host's tiles")

    comfy.sd.VAE.decode_tiled_3d = refuse
    try:
        with Full(vae, 30 * 30) as full:
            got = ours(vae, samples)
    finally:
        comfy.sd.VAE.decode_tiled_3d = tiled
    assert full.sizes[0] == (40, 40)
    assert set(full.sizes[1:]) == {(19, 19)}, full.sizes
    assert got.shape == (5, 320, 320, 3)
    assert any("out of memory with 320 x 320 pixels at a time" in line for line in LINES.said)
    assert dict(vars(vae)) == before
    with Full(vae, 0) as full:
        try:
            ours(vae, samples)
        except torch.cuda.OutOfMemoryError as error:
            said = str(error)
        assert "Surf VAE Decode: out of memory" in said, said
    assert torch.equal(ours(vae, samples), stock(vae, samples)), "the VAE is whole again"


def case_the_stop_button_stops_and_the_bar_reaches_its_end():
    vae, samples, bars = wan(), noise(1, 16, 1, 24, 40), []

    class Bar(comfy.utils.ProgressBar):
        def update_absolute(self, value, *args, **kwargs):
            bars.append((value, self.total))
            super().update_absolute(value, *args, **kwargs)

    original, comfy.utils.ProgressBar = comfy.utils.ProgressBar, Bar
    try:
        ours(vae, samples, piece=160)
    finally:
        comfy.utils.ProgressBar = original
    assert bars[-1] == (6, 6), bars
    management.interrupt_current_processing(True)
    try:
        ours(vae, samples)
    except management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("the interrupt was swallowed")
    finally:
        management.interrupt_current_processing(False)


def case_the_pieces_of_1080p_follow_the_hosts_estimate():
    """81 frames through Wan 2.1's VAE and Wan 2.2 5B's, in bf16: how many pixels at a time."""
    chosen = {}
    real = management.get_total_memory, management.get_free_memory
    management.get_free_memory = lambda *args, **kwargs: 2**40
    try:
        for name, vae, shape in (
            ("wan", wan(), (1, 16, 21, 136, 240)), ("wan22", wan22(), (1, 48, 21, 68, 120)),
        ):  # fmt: skip
            vae.vae_dtype = torch.bfloat16
            decoding = decode.Decoding(vae, torch.zeros(shape, device="meta"))
            for card in (12, 16, 24, 48, 80):
                management.get_total_memory = lambda device, card=card: card * 2**30
                limit = memory.choose_piece(vae, decoding.size, decoding.cell, decoding.needed)
                piece = memory.real_piece(decoding.size, limit, decoding.cell)
                chosen[name, card] = piece
                assert decoding.needed(piece) <= 0.8 * card * 2**30
                assert decoding.at_a_time(piece) == 21, "time is not cut"
    finally:
        management.get_total_memory, management.get_free_memory = real
    expected = {
        12: (576, 992), 16: (1088, 688), 24: (1088, 992), 48: (1088, 1920), 80: (1088, 1920),
    }  # fmt: skip
    for name in ("wan", "wan22"):
        assert {card: piece for (vae, card), piece in chosen.items() if vae == name} == expected


def case_sound_and_nested_latents_are_refused():
    vae, samples = wan(), noise(1, 16, 2, 6, 8)
    nested = comfy.nested_tensor.NestedTensor([samples, noise(1, 8, 16)])
    for latent, words in (
        ({"samples": nested}, "nested"), ({"samples": samples, "type": "audio"}, "sound"),
        ({"samples": samples[:, :4]}, "channels"), ({"samples": samples[:, :, 0]}, "video latent"),
    ):  # fmt: skip
        refused(lambda latent=latent: SurfVAEDecode.execute(latent, vae, 0, 0, 0), words)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
