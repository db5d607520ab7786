"""The host's attention as a Dense: no copies, and heads that SageAttention 1.x can take."""

import logging

import comfy.ldm.modules.attention
import comfy.model_management
import pytest
import torch
from surf.nodes.host.attention import host_attention as module
from surf.nodes.host.attention.host_attention import HostAttention, pad_heads
from torch.nn import functional as F

WIDTHS = [(16, 64), (64, 64), (72, 96), (96, 96), (120, 128), (128, 128), (144, 144)]


def qkv(width, length=5, keys=7, heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(width)
    return [
        torch.randn(3, n, heads, width, generator=generator, dtype=dtype)
        for n in (length, keys, keys)
    ]


def exact(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Sage1:
    """Asserts on the head width and centres the keys in place, as SageAttention 1.0.6 does."""

    def __init__(self):
        self.widths = []

    def __call__(self, func, q, k, v, heads, mask=None, **kwargs):
        width = q.shape[-1] // heads
        assert width in (64, 96, 128), f"headdim should be in [64, 96, 128], got {width}"
        self.widths.append(width)
        k -= k.mean(dim=1, keepdim=True)
        return func(q, k, v, heads, mask=mask, **kwargs)


@pytest.fixture
def sage(monkeypatch):
    """Set the version of the installed SageAttention; None is none."""

    def install(version):
        def look_up(name):
            assert name == "sageattention"
            if version is None:
                raise module.importlib.metadata.PackageNotFoundError
            return version

        module._sage_is_1.cache_clear()
        monkeypatch.setattr(module.importlib.metadata, "version", look_up)

    yield install
    module._sage_is_1.cache_clear()


@pytest.fixture
def widths(monkeypatch):
    """Head widths that reach the host's attention."""
    seen, original = [], comfy.ldm.modules.attention.optimized_attention

    def spied(q, k, v, heads, **kwargs):
        seen.append(q.shape[-1] // heads)
        return original(q, k, v, heads, **kwargs)

    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", spied)
    return seen


def test_attention_is_the_hosts(tolerance):
    q, k, v = qkv(72)
    out = HostAttention()(q, k, v)
    assert out.shape == q.shape
    torch.testing.assert_close(out, exact(q, k, v), atol=tolerance[torch.float32], rtol=0)


def test_slices_of_a_clip_go_in_without_a_copy():
    clip = torch.randn(2, 12, 3, 8)
    seen = []

    def override(func, q, k, v, heads, **kwargs):
        seen.extend(x.data_ptr() for x in (q, k, v))
        return func(q, k, v, heads, **kwargs)

    part = clip[:, 4:10]
    HostAttention({"optimized_attention_override": override})(part, part, part)
    assert seen == [part.data_ptr()] * 3


def test_an_override_sees_the_options_of_its_call():
    options = {
        "optimized_attention_override": lambda f, q, *a, **k: q + k["transformer_options"]["x"]
    }
    attention = HostAttention(options)
    options["x"] = 1.0
    q, k, v = qkv(64)
    assert torch.equal(attention(q, k, v), q + 1)


@pytest.mark.parametrize(("width", "wanted"), WIDTHS)
def test_sage_1_gets_heads_that_it_takes_and_gives_the_same(sage, width, wanted, tolerance):
    sage("1.0.6")
    q, k, v = qkv(width)
    kernel, expected = Sage1(), exact(q, k, v)
    before = [x.clone() for x in (q, k, v)]
    attention = HostAttention({"optimized_attention_override": kernel})
    if wanted > 128:
        with pytest.raises(AssertionError, match="headdim"):
            attention(q, k, v)
        return
    out = attention(q, k, v)
    assert kernel.widths == [wanted]
    torch.testing.assert_close(out, expected, atol=tolerance[torch.float32], rtol=0)
    if wanted != width:
        assert all(torch.equal(x, y) for x, y in zip((q, k, v), before, strict=True))


def test_the_stand_in_refuses_what_is_not_padded(sage):
    sage(None)
    with pytest.raises(AssertionError, match="headdim"):
        HostAttention({"optimized_attention_override": Sage1()})(*qkv(72))


@pytest.mark.parametrize(
    ("version", "flag", "override", "wanted"),
    [
        ("1.0.6", True, False, 96),
        ("1.0.6", False, True, 96),
        ("1.0.6", False, False, 72),
        ("0.9", True, False, 96),
        ("2.2.0", True, True, 72),
        (None, True, True, 72),
    ],
)
def test_heads_are_padded_for_sage_1_only(
    sage, widths, monkeypatch, version, flag, override, wanted
):
    sage(version)
    monkeypatch.setattr(comfy.model_management, "sage_attention_enabled", lambda: flag)
    through = {"optimized_attention_override": lambda f, *a, **k: f(*a, **k)}
    HostAttention(through if override else {})(*qkv(72))
    assert widths[0] == wanted


def test_padding_is_said_once(sage, monkeypatch, caplog):
    sage("1.0.6")
    module._log_padding.cache_clear()
    monkeypatch.setattr(comfy.model_management, "sage_attention_enabled", lambda: True)
    attention = HostAttention()
    with caplog.at_level(logging.INFO, logger=module.__name__):
        for _ in range(3):
            attention(*qkv(72))
    assert [record.message for record in caplog.records if "padded to 96" in record.message] == [
        caplog.records[0].message
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_padded_heads_attend_the_same(dtype, tolerance):
    q, k, v = qkv(72, dtype=dtype)
    wide = exact(*pad_heads(q, k, v, 96))
    torch.testing.assert_close(wide[..., :72], exact(q, k, v), atol=tolerance[dtype], rtol=0)
    assert not wide[..., 72:].any()
