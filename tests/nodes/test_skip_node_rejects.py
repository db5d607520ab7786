"""What Surf Skip Mask takes for a predictor, and what it refuses."""

import sys

import pytest
import torch
from surf.surf_core import header
from surf.surf_core.skip import MaskPredictor, PredictorConfig
from surf.surf_core.skip import predictor as files
from surf.surf_core.tiny.model import REFINER

from .skip_node import CellVae, latent, run, wan


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The host's folder of diffusion models, with files of several kinds."""
    host = sys.modules["folder_paths"]
    monkeypatch.setattr(host, "get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    for channels in (16, 48):
        config = PredictorConfig(latent_channels=channels, width=8, depth=1)
        model = MaskPredictor(config)
        model.initialise(torch.Generator().manual_seed(0))
        path = tmp_path / f"mask{channels}.safetensors"
        files.save(path, model.state_dict(), config, 1.0, {})
    (tmp_path / "refiner.safetensors").write_bytes(REFINER.read_bytes())
    (tmp_path / "words.safetensors").write_text("no tensors here")
    return tmp_path


def test_a_trained_file_of_the_folder_scores(folder):
    made = run(predictor="mask16.safetensors")[0]
    model = wan().model
    predictor = files.load(folder / "mask16.safetensors")[0]
    expected = predictor.scores(model.process_latent_in(made.upsampled))[0]
    torch.testing.assert_close(made.mask.scores, expected)
    assert made.mask.source == "predictor"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refiner.safetensors", "refiner.safetensors cannot be used .*no mask predictor.* detail"),
        ("words.safetensors", "words.safetensors cannot be used .*not one"),
        ("mask48.safetensors", "16 latent channels, got one for 48 in mask48.safetensors"),
    ],
)
def test_another_file_is_refused_by_name_before_the_vae_works(folder, name, said):
    vae = CellVae()
    with pytest.raises(ValueError, match=f"Surf Skip Mask: .*{said}"):
        run(predictor=name, upsample="pixel", vae=vae)
    assert not vae.calls


def test_a_file_of_another_kind_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(header.Header, "weights", lambda self: pytest.fail("they were read"))
    with pytest.raises(ValueError, match="no mask predictor"):
        run(predictor="refiner.safetensors")


def image(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


BAD = {
    "keep of nothing": ({"keep": 0.0}, "keep must lie within 0.05"),
    "keep above all": ({"keep": 1.5}, "keep must lie within"),
    "keep that is no number": ({"keep": float("nan")}, "keep must lie within"),
    "a negative tau": ({"tau": -1.0}, "tau must lie within 0"),
    "a tau above all pixels": ({"tau": 256.0}, "tau must lie within"),
    "a tau that is no number": ({"tau": float("nan")}, "tau must lie within"),
    "a tau that skips everything": (
        {"choose": "tau", "tau": 255.0}, "got 255.0 where the highest score is .* keep ratio"),
    "an unknown choice": ({"choose": "both"}, "choose must be one of keep ratio, tau"),
    "dilation of the whole picture": ({"dilate": 9}, "dilate must lie within"),
    "a predictor that is gone": ({"predictor": "tiny"}, "got 'tiny', which is not there"),
    "too few channels": ({"preview": latent(1, 4, 3, 4, 6)}, "16 channels"),
    "a latent of the 5B model": ({"preview": latent(1, 48, 3, 4, 6)}, "16 channels"),
    "NaN": ({"preview": {"samples": torch.full((1, 16, 3, 4, 6), float("nan"))}}, "finite"),
    "a VAE that gives NaN": ({"upsample": "pixel", "vae": CellVae(broken=True)}, "finite"),
    "pixels without a VAE": ({"upsample": "pixel"}, "needs a VAE, got none; connect the VAE"),
    "a VAE of another model": ({"upsample": "pixel", "vae": CellVae(48)}, "got one with 48"),
    "a VAE of another model, for the picture": ({"vae": CellVae(48)}, "got one with 48"),
    "an unknown way to upsample": ({"upsample": "lanczos"}, "upsample"),
    "an unknown resolution": ({"resolution": "4K"}, "resolution"),
    "a target below the preview": ({"scale": 0.5}, "scale must lie within 1.0"),
    "a width between multiples": (
        {"resolution": "by size", "width": 100, "height": 64}, "96 or 104"),
    "an image without a VAE": (
        {"upsample": "pixel", "image": image(9, 64, 96, 3)}, "needs a VAE"),
    "an image that would not be encoded": (
        {"image": image(9, 64, 96, 3), "vae": CellVae()},
        "set it to pixel here and in Surf Refiner"),
    "too few frames": (
        {"upsample": "pixel", "vae": CellVae(), "image": image(3, 64, 96, 3)}, "9 frames.* got 3"),
    "another size": (
        {"upsample": "pixel", "vae": CellVae(), "image": image(9, 32, 48, 3)},
        "96 x 64 pixels, got 48 x 32; scale it"),
    "an image with alpha": (
        {"upsample": "pixel", "vae": CellVae(), "image": image(9, 64, 96, 4)},
        "without their alpha"),
    "an image of NaN": (
        {"upsample": "pixel", "vae": CellVae(), "image": image(9, 64, 96, 3) * float("nan")},
        "image must be finite"),
    "an image of 0 to 255": (
        {"upsample": "pixel", "vae": CellVae(), "image": image(9, 64, 96, 3) + 254},
        "values of 0 to 1 as image, got 25"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_node_rejects(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        run(**changes)
    assert str(error.value).startswith("Surf Skip Mask: ")


def test_a_still_model_is_refused(monkeypatch):
    model = wan()
    monkeypatch.setattr(model.model.latent_format, "latent_dimensions", 2, raising=False)
    with pytest.raises(ValueError, match=r"a video latent .*got \(1, 16, 4, 6\)"):
        run(model, latent(1, 16, 4, 6))
    with pytest.raises(ValueError, match=r"expected an image latent .*got a video latent"):
        run(model, latent(1, 16, 3, 4, 6))
