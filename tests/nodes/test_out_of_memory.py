"""Memory that ran out is known by every backend's own words, and only by those."""

import sys

import pytest
import torch
from surf.nodes.host.refine.tiling import with_tiles
from surf.nodes.host.vae import decode_latent, is_out_of_memory, out_of_memory, upsample_latent
from surf.tests.nodes.vaes import Vae

NOT_ENOUGH = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.cuda.OutOfMemoryError("Allocation on device "),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("XPU out of memory. Tried to allocate 4.66 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, max allowed: 6.80 GB)."),
    RuntimeError("Invalid buffer size: 19.45 GB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("miopenStatusAllocFailed"),
    RuntimeError("Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("UR backend returns:40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
    RuntimeError(
        "Could not allocate tensor with 377487360 bytes. There is not enough GPU video memory "
        "available!"
    ),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000 bytes."),
    MemoryError(),
    MemoryError("VBAR allocation failed"),
    RuntimeError("Fault failed: 2"),
    RuntimeError("VRAM grow failed: 1048576 bytes"),
    RuntimeError("VRAM reservation failed"),
    RuntimeError("HostBuffer allocation failed"),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x4 and 3x4)"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
    RuntimeError("Native API returns: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    RuntimeError("Fault failed: 3"),
    ValueError("out of memory is not what a ValueError means"),
]


def name(error):
    return str(error)[:40] or type(error).__name__


@pytest.mark.parametrize("error", NOT_ENOUGH, ids=name)
def test_every_backend_is_known(error):
    assert is_out_of_memory(error)


def test_the_cpu_allocator_really_says_so():
    with pytest.raises(out_of_memory.MEMORY_ERRORS) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("error", OTHERS, ids=name)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("text", out_of_memory.TEXTS)
def test_every_text_has_a_test_and_a_source(text):
    matching = [error for error in NOT_ENOUGH if text in str(error).lower()]
    assert matching
    assert any(mark in out_of_memory.TEXTS[text] for mark in "./")


def failing(error, limit, function):
    """A function of a tensor that fails above so many cells, and the sizes that it was given."""
    sizes = []

    def call(x, *args, **kwargs):
        sizes.append(x.shape[-1] * x.shape[-2])
        if sizes[-1] > limit:
            raise error
        return function(x, *args, **kwargs)

    return call, sizes


@pytest.mark.parametrize("error", NOT_ENOUGH[-12:], ids=name)
def test_tiles_decode_and_upsample_all_get_smaller(error):
    import host_stub

    samples = torch.rand(1, 16, 2, 60, 100, generator=torch.Generator().manual_seed(0))
    vae = Vae()
    vae.decode, decoded = failing(error, 3000, vae.decode)
    frames = decode_latent(vae, {"samples": samples}, 0, 0, 0)
    expected = decode_latent(Vae(), {"samples": samples}, 0, 0, 0)
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-6)
    assert decoded[0] == 6000 > 3000 > max(decoded[1:])

    vae = Vae()
    real = vae.encode
    encoded = []

    def encode(frames):
        encoded.append(frames.shape[1] * frames.shape[2])
        if encoded[-1] > 300 * 300:
            raise error
        return real(frames)

    vae.encode = encode
    up = upsample_latent(samples[..., :30, :40], (60, 80), "pixel", vae)
    expected = upsample_latent(samples[..., :30, :40], (60, 80), "pixel", Vae())
    torch.testing.assert_close(up, expected, rtol=0, atol=1e-5)
    assert encoded[0] == 480 * 640 > 300 * 300 > max(encoded[-3:])

    clone = with_tiles(host_stub.Patcher(), samples, 0)
    model, seen = failing(error, 5000, lambda x, t, **c: x.cos())
    args = {"input": samples, "timestep": torch.ones(1), "c": {}}
    out = clone.model_options["model_function_wrapper"](model, args)
    torch.testing.assert_close(out, samples.cos())
    assert seen[0] == 6000 > 5000 > max(seen[1:])


def test_the_hosts_own_tiles_are_no_fallback_of_encode():
    class SelfTilingVae(Vae):
        def encode(self, frames):
            if frames.shape[1] * frames.shape[2] > 300 * 300:
                return self.encode_tiled_3d(frames)
            return super().encode(frames)

        def encode_tiled_3d(self, frames):
            raise AssertionError("the host took its own tiles")

    samples = torch.rand(1, 16, 2, 30, 40)
    assert upsample_latent(samples, (60, 80), "pixel", SelfTilingVae()).shape == (1, 16, 2, 60, 80)


def test_the_host_is_asked_first(monkeypatch):
    """It clears the error that a failed CUDA call leaves behind."""
    asked, module = [], sys.modules["comfy.model_management"]
    monkeypatch.setattr(module, "is_oom", lambda error: asked.append(error) or True, raising=False)
    error = RuntimeError("in words of its own")
    assert is_out_of_memory(error)
    assert asked == [error]
