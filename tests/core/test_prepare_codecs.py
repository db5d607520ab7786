"""Codecs and text encoders: the embedded ones, Wan's through stand-ins, and any other object."""

import sys
from types import SimpleNamespace

import pytest
import torch
from surf.surf_core.training.prepare.codecs import WanCodec, load_codec, named, stable_name
from surf.surf_core.training.prepare.options import tiny
from surf.surf_core.training.prepare.stages import Embed, Encode, Item, Row
from surf.surf_core.training.prepare.texts import Umt5Text, load_text
from surf.surf_core.training.tiny.prompt import encode_prompt

CHANNELS = 16


class DiffusersVae(torch.nn.Module):
    """The methods and the config of diffusers' AutoencoderKLWan, without its layers.

    A latent cell is the mean of 8x8 pixels; latent frame 0 is frame 0, then every fourth.
    """

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.config = SimpleNamespace(
            latents_mean=[0.1 * i - 0.5 for i in range(CHANNELS)],
            latents_std=[1 + 0.2 * i for i in range(CHANNELS)],
            scale_factor_spatial=8,
        )

    @classmethod
    def from_pretrained(cls, folder, torch_dtype, local_files_only):
        assert local_files_only
        assert (folder / "config.json").exists()
        return cls(torch_dtype)

    def encode(self, video):
        assert video.dtype == self.weight.dtype
        small = video[:, :, ::4].unflatten(3, (-1, 8)).unflatten(5, (-1, 8)).mean((4, 6))
        mean = small.repeat(1, 6, 1, 1, 1)[:, :CHANNELS] * self.weight
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: mean))

    def decode(self, latent):
        big = latent[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
        return SimpleNamespace(sample=big.repeat_interleave(4, 2)[:, :, 3:])


def video(frames=5, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, frames, size, size, generator=generator) * 2 - 1


def item(size=64, **values):
    frames = torch.randint(0, 256, (5, size, size, 3), generator=torch.Generator().manual_seed(0))
    low = frames[:, : size // 4, : size // 4]
    row = Row(key="k", source="s", content="c", index=0, **values)
    return Item(content="c", row=row, tensors={"frames": frames.byte(), "low": low.byte()})


def test_the_embedded_codec_round_trips_smooth_pixels():
    codec = load_codec("tiny")
    smooth = torch.nn.functional.interpolate(video(5, 4)[0].movedim(1, 0), size=64, mode="bicubic")
    smooth = smooth.movedim(0, 1)[None]
    latent = codec.encode(smooth)
    assert latent.shape == (1, 16, 5, 16, 16)
    assert (codec.cell, codec.name) == (4, "tiny")
    assert (codec.decode(latent) - smooth).abs().mean() < 0.02


def test_wans_latents_are_normalised_by_its_own_numbers_and_back():
    vae = DiffusersVae()
    codec = WanCodec(vae)
    raw = vae.encode(video()).latent_dist.mode()
    latent = codec.encode(video())
    assert latent.shape == (1, 16, 2, 8, 8)
    for channel in (0, 7, 15):
        expected = (raw[:, channel] - (0.1 * channel - 0.5)) / (1 + 0.2 * channel)
        assert torch.allclose(latent[:, channel], expected, atol=1e-6)
    assert torch.allclose(codec.decode(latent), vae.decode(raw).sample, atol=1e-5)


def test_wans_vae_in_half_precision_gives_full_precision_latents():
    codec = WanCodec(DiffusersVae(torch.bfloat16))
    latent = codec.encode(video())
    assert latent.dtype == codec.decode(latent).dtype == torch.float32
    assert torch.allclose(latent, WanCodec(DiffusersVae()).encode(video()), atol=2e-2)


def test_wan_is_loaded_through_diffusers_from_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(AutoencoderKLWan=DiffusersVae))
    folder = tmp_path / "Wan2.1-Diffusers"
    with pytest.raises(ValueError, match="download the model first"):
        load_codec(f"wan:{folder}")
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text("{}")
    codec = load_codec(f"wan:{folder}")
    assert (codec.name, codec.cell) == ("wan:Wan2.1-Diffusers", 8)
    assert codec.encode(video()).shape == (1, 16, 2, 8, 8)
    assert not codec.vae.weight.requires_grad


@pytest.mark.parametrize(("load", "spec"), [(load_codec, "wan:x"), (load_text, "umt5:x")])
def test_a_missing_extra_says_how_to_install_it(monkeypatch, load, spec):
    for name in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "surf-video\[wan\]"'):
        load(spec)


@pytest.mark.slow
def test_a_real_wan_vae_fits():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).eval()
    codec = WanCodec(vae)
    latent = codec.encode(video(9, 32))
    assert latent.shape == (1, 16, 3, 4, 4)
    assert codec.decode(latent).shape == (1, 3, 9, 32, 32)


@pytest.mark.slow
def test_a_real_umt5_fits():
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    encoder = transformers.UMT5EncoderModel(config).eval()
    text = Umt5Text(Tokenizer(), encoder)
    assert text("one two three").shape == (4, 16)


class Tokenizer:
    """A token a word, and one for the end."""

    def __call__(self, texts, max_length, truncation, return_tensors):
        assert truncation
        assert return_tensors == "pt"
        ids = [5 + len(word) for word in texts[0].split()][: max_length - 1] + [1]
        tokens = torch.tensor([ids])
        return SimpleNamespace(input_ids=tokens, attention_mask=torch.ones_like(tokens))


class TokenEncoder(torch.nn.Module):
    """A token's number, 8 times."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))

    @classmethod
    def from_pretrained(cls, folder, torch_dtype, local_files_only):
        assert local_files_only
        return cls()

    def forward(self, ids, attention_mask):
        hidden = ids[..., None] * attention_mask[..., None] * self.weight
        return SimpleNamespace(last_hidden_state=hidden)


def test_umt5_gives_the_tokens_of_the_caption_and_no_filling(tmp_path, monkeypatch):
    auto = SimpleNamespace(from_pretrained=lambda folder, local_files_only: Tokenizer())
    fake = SimpleNamespace(AutoTokenizer=auto, UMT5EncoderModel=TokenEncoder)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    with pytest.raises(ValueError, match="tokenizer/ and text_encoder/"):
        load_text(f"umt5:{tmp_path}")
    for name in ("tokenizer", "text_encoder"):
        (tmp_path / name).mkdir()
    text = load_text(f"umt5:{tmp_path}")
    assert text.name == f"umt5:{tmp_path.name}"
    tokens = text("a red circle")
    assert (tokens.shape, tokens.dtype) == ((4, 8), torch.float32)
    assert tokens[:, 0].tolist() == [6, 8, 11, 1]
    assert text("word " * 600).shape == (512, 8)
    assert text("").shape == (1, 8)


def test_the_embedded_text_is_the_embedded_models():
    assert torch.equal(load_text("tiny")("red circle"), encode_prompt("red circle")[0])
    assert load_text("none") is None


def test_models_are_named_without_the_machines_paths():
    assert (
        stable_name("wan:/data/models/Wan2.1/") == stable_name("wan:other/Wan2.1") == "wan:Wan2.1"
    )
    assert stable_name("mine.vae:make") == "mine.vae:make"
    assert stable_name(load_codec("tiny")) == "tiny"
    assert stable_name(named) == "named"


def test_any_object_is_a_codec_if_it_has_what_one_needs():
    vae = SimpleNamespace(name="mine", cell=8, encode=len, decode=len)
    assert load_codec(vae) is vae
    with pytest.raises(ValueError, match="without cell, decode"):
        load_codec(SimpleNamespace(name="mine", encode=len))
    with pytest.raises(ValueError, match="has a name"):
        load_text(7)
    assert named("math:floor", "scorer")(1.5) == 1
    for wrong in ("nowhere.at.all:x", "math:nothing", "math", ":x", ""):
        with pytest.raises(ValueError, match=r"package\.module:attribute"):
            load_codec(wrong)


def test_a_codec_of_another_cell_than_it_says_is_refused():
    wrong = WanCodec(DiffusersVae())
    wrong.cell = 16
    with pytest.raises(ValueError, match="check the codec's cell of 16"):
        Encode(tiny(), wrong)(item())


def test_the_start_is_the_degraded_clip_enlarged_in_pixels():
    whole = item()
    flat = {name: torch.full_like(x, 60) for name, x in whole.tensors.items()}
    made = Encode(tiny(), load_codec("tiny"))(whole.noted(flat)).tensors
    assert sorted(made) == ["hr", "lr", "start"]
    assert torch.allclose(made["start"].float(), made["hr"].float(), atol=2e-3)


def test_a_caption_is_embedded_once_and_bounded():
    calls = []

    def long(caption):
        calls.append(caption)
        return torch.zeros(len(caption), 4)

    embed = Embed(tiny(), long)
    assert embed(item(caption="abc")).tensors["text"].shape == (3, 4)
    assert embed(item(caption="abc")).tensors["text"].dtype == torch.float16
    assert calls == ["abc"]
    with pytest.raises(ValueError, match="expected 1 to 3 tokens"):
        embed(item(caption="abcd"))
