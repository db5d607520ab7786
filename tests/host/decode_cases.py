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
from surf.nodes.host.vae import decoding, is_out_of_memory, memory, upsample_latent  # noqa: E402
from surf.surf_core.tiles import spans  # noqa: E402

import nodes  # noqa: E402


class Lines(logging.Handler):
    """What the pack logs."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.said = []
        for name in (decoding.__name__, memory.__name__):
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


class LimitedMemory:
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
        with LimitedMemory(vae, 30 * 30) as full:
            got = ours(vae, samples)
    finally:
        comfy.sd.VAE.decode_tiled_3d = tiled
    assert full.sizes[0] == (40, 40)
    assert set(full.sizes[1:]) == {(19, 19)}, full.sizes
    assert got.shape == (5, 320, 320, 3)
    assert any("out of memory with 320 x 320 pixels at a time" in line for line in LINES.said)
    assert dict(vars(vae)) == before
    with LimitedMemory(vae, 0) as full:
        try:
            ours(vae, samples)
        except torch.cuda.OutOfMemoryError as error:
            said = str(error)
        assert "Surf VAE Decode: out of memory" in said, said
    assert torch.equal(ours(vae, samples), stock(vae, samples)), "the VAE is whole again"


def case_the_stop_button_stops_and_the_bar_reaches_its_end():
    vae, samples, bars = wan(), noise(1, 16, 1, 24, 40), []

    class DecodeBar(comfy.utils.ProgressBar):
        def update_absolute(self, value, *args, **kwargs):
            bars.append((value, self.total))
            super().update_absolute(value, *args, **kwargs)

    original, comfy.utils.ProgressBar = comfy.utils.ProgressBar, DecodeBar
    try:
        ours(vae, samples, piece=160)
    finally:
        comfy.utils.ProgressBar = original
    assert bars[-1] == (600, 600), bars
    assert len({at for at, _ in bars if at < 100}) > 10, "moves within a call"
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
            whole = decoding.Decoding(vae, torch.zeros(shape, device="meta"))
            for card in (12, 16, 24, 48, 80):
                management.get_total_memory = lambda device, card=card: card * 2**30
                limit = memory.choose_piece(vae, whole.size, whole.cell, whole.needed)
                piece = memory.real_piece(whole.size, limit, whole.cell)
                chosen[name, card] = piece
                assert whole.needed(piece) <= 0.8 * card * 2**30
                assert whole.at_a_time(piece) == 21, "time is not cut"
    finally:
        management.get_total_memory, management.get_free_memory = real
    expected = {
        12: (576, 992), 16: (1088, 688), 24: (1088, 992), 48: (1088, 1920), 80: (1088, 1920),
    }  # fmt: skip
    for name in ("wan", "wan22"):
        assert {card: piece for (vae, card), piece in chosen.items() if vae == name} == expected


class ForgetfulDecoder(torch.nn.Module):
    """A decoder without weights that needs history: what a call begins with is too bright.

    By 0.1, fading within four frames; between latent frames brightness is linear.
    """

    def decode(self, z, **kwargs):
        frames = 1 + 4 * (z.shape[2] - 1)
        place, grey = torch.arange(frames) / 4, z[:, :3]
        grey = grey.repeat_interleave(8, -1).repeat_interleave(8, -2)
        high = (place.long() + 1).clamp_max(z.shape[2] - 1)
        video = grey[:, :, place.long()].lerp(grey[:, :, high], (place % 1).view(-1, 1, 1))
        return video + 0.2 * (1 - torch.arange(frames) / 4).clamp_min(0).view(-1, 1, 1)


def case_brightness_does_not_jump_where_time_is_cut():
    """In the host's own VAE object; its tiles, which overlap by a quarter, are the control."""
    vae = wan()
    vae.first_stage_model = ForgetfulDecoder()
    vae.memory_used_decode = lambda shape, dtype: 10**6 * shape[2] * shape[3] * shape[4]
    samples = torch.linspace(-0.8, 0.8, 41).view(1, 1, -1, 1, 1).expand(1, 16, 41, 20, 20).clone()
    slope = 0.5 * 1.6 / 160

    def jump(frames):
        return (frames.diff(dim=0)[24:].abs().max() / slope).item()

    real = management.get_total_memory
    for count in (8, 16):
        room = decoding.Decoding(vae, samples).needed((160, 160), count) + 1
        management.get_total_memory = lambda device, room=room: room / memory.USABLE_MEMORY
        try:
            frames = ours(vae, samples, piece=160)
        finally:
            management.get_total_memory = real
        assert frames.shape == (161, 160, 160, 3)
        cut = spans(41, count, count // 2)
        said = f"{len(cut)} stretches of {4 * cut[0][1] - 3} of 161 frames"
        assert any(said in line for line in LINES.said), LINES.said
        assert jump(frames) < 1.1, jump(frames)
        tiled = vae.decode_tiled(samples, 20, 20, 8, tile_t=count, overlap_t=count // 4)[0]
        assert jump(tiled) > 1.1, "the measure sees the host's"


def case_a_vae_that_tiles_by_itself_gets_video_after_video():
    vae, samples, seen = wan(), noise(2, 16, 2, 40, 40), []
    expected = stock(vae, samples)
    real = vae.first_stage_model.decode

    def watch(z, *args, **kwargs):
        seen.append(len(z))
        return real(z, *args, **kwargs)

    vae.handles_tiling = True
    vae.first_stage_model.decode = watch
    # As the host's front of such a VAE: on newer hosts it calls the network's own.
    vae.first_stage_model.decode_tiled = lambda z, **kwargs: watch(z)
    if not hasattr(vae, "_decode_tiled_owned"):
        vae.decode_tiled = lambda z, **kwargs: vae.decode(z)
    try:
        torch.testing.assert_close(ours(vae, samples), expected, rtol=0, atol=1e-4)
        assert seen == [1, 1]
        torch.testing.assert_close(ours(vae, samples, piece=160), expected, rtol=0, atol=1e-4)
        assert seen == [1, 1, 1, 1]
    finally:
        del vae.first_stage_model.decode, vae.first_stage_model.decode_tiled


def case_nan_from_a_vae_is_refused_both_ways():
    vae, samples = wan(), noise(1, 16, 2, 5, 7)
    network = vae.first_stage_model
    decode, encode = network.decode, network.encode
    network.decode = lambda z, *args, **kwargs: decode(z, *args, **kwargs) * float("nan")
    refused(lambda: ours(vae, samples), "frames that the VAE decodes must be finite", "--fp32-vae")
    refused(lambda: upsample_latent(samples, (6, 8), "pixel", vae), "the VAE decodes")
    del network.decode
    network.encode = lambda x, *args, **kwargs: encode(x, *args, **kwargs) * float("nan")
    refused(lambda: upsample_latent(samples, (6, 8), "pixel", vae), "latent that the VAE encodes")
    del network.encode


def case_every_memory_error_makes_pieces_of_encode_smaller_too():
    vae, preview = wan(), noise(1, 16, 2, 20, 20)
    expected = upsample_latent(preview, (40, 40), "pixel", vae)
    for error in (
        torch.cuda.OutOfMemoryError("pretended"), RuntimeError("Fault failed: 2"),
        MemoryError("VBAR allocation failed"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ):  # fmt: skip
        assert is_out_of_memory(error)
        sizes, encode = [], vae.first_stage_model.encode

        def full(x, *args, error=error, sizes=sizes, encode=encode, **kwargs):
            sizes.append(tuple(x.shape[-2:]))
            if x.shape[-1] > 200:
                raise error
            return encode(x, *args, **kwargs)

        vae.first_stage_model.encode = full
        LINES.said.clear()
        try:
            got = upsample_latent(preview, (40, 40), "pixel", vae)
        finally:
            del vae.first_stage_model.encode
        assert got.shape == expected.shape
        assert sizes[0] == (320, 320), sizes
        assert max(sizes[1:]) < (200, 200), sizes
        assert any("encoding begins anew" in line for line in LINES.said), LINES.said


def case_the_cpu_allocator_is_known():
    said = None
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        said = error
    assert is_out_of_memory(said)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def case_short_main_memory_empties_the_hosts_caches():
    """Its own functions are called, and free what they can."""
    vae, samples, real, asked = wan(), noise(1, 16, 2, 5, 7), management.get_free_memory, []
    free_memory = management.free_memory

    def watch(needed, device, *args, **kwargs):
        asked.append(str(device))
        return free_memory(needed, device, *args, **kwargs)

    def free(device=None, torch_free_too=False):
        return (10**4, 10**4) if torch_free_too else 10**4

    management.get_free_memory = free
    management.free_memory = watch
    swap = management.psutil.swap_memory
    try:
        management.psutil.swap_memory = lambda: type("Swap", (), {"free": 2**40})
        memory.check_main_memory(10**6, "the frames", "wait")
        assert "cpu" in asked, asked
        assert any("page to disk" in line for line in LINES.said), LINES.said
        management.psutil.swap_memory = lambda: type("Swap", (), {"free": 0})
        refused(lambda: ours(vae, samples), "the frames need", "too little swap space")
    finally:
        management.psutil.swap_memory, management.get_free_memory = swap, real
        management.free_memory = free_memory


def case_of_nested_latents_the_video_is_decoded_as_by_the_host():
    vae, samples = wan(), noise(1, 16, 2, 6, 8)
    nested = {"samples": comfy.nested_tensor.NestedTensor([samples, noise(1, 8, 5, 16)])}
    out = SurfVAEDecode.execute(nested | {"type": "audio"}, vae, 0, 0, 0).args[0]
    assert torch.equal(out, nodes.VAEDecode().decode(vae, nested)[0])


def case_sound_and_nested_latents_of_another_kind_are_refused():
    vae, samples = wan(), noise(1, 16, 2, 6, 8)
    nested = comfy.nested_tensor.NestedTensor([noise(1, 8, 5, 16), samples])
    for latent, words in (
        ({"samples": nested}, "nested"), ({"samples": samples, "type": "audio"}, "sound"),
        ({"samples": samples[:, :4]}, "channels"), ({"samples": samples[:, :, 0]}, "video latent"),
    ):  # fmt: skip
        refused(lambda latent=latent: SurfVAEDecode.execute(latent, vae, 0, 0, 0), words)


if __name__ == "__main__":
    inside.report(RESULTS, dict(globals()))
