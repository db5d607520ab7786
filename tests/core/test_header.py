"""Headers and configs of files of ours: typed, bounded by the file, written with equal bytes."""

import json
import os
import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from surf.surf_core import checkpoint, header
from surf.surf_core.refiner import RefinerConfig, SurfRefinerDiT
from surf.surf_core.skip import PredictorConfig, predictor
from surf.surf_core.tiny import vae
from surf.surf_core.tiny.model import REFINER, VAE, WEIGHTS

CONFIG = RefinerConfig(dim=16, heads=2, layers=1, ffn_dim=24, text_dim=8, freq_dim=16)


def refiner_file(path, weights=None, **config):
    """A file whose config says other numbers than its weights have."""
    values = json.loads(header.read_header(WEIGHTS).metadata["surf.config"]) | config
    metadata = {"surf.format": "3", "surf.config": json.dumps(values)}
    save_file(weights or {"a": torch.zeros(10, 5)}, path, metadata)
    return path


@pytest.mark.parametrize("layers", [10**5, 10**6, 10**9, 2**52])
def test_a_config_of_more_blocks_than_keys_is_refused_at_once(layers, tmp_path):
    weights = {f"k{index}": torch.zeros(128, 1000) for index in range(20)}
    path = refiner_file(tmp_path / "a.safetensors", weights, layers=layers)
    began = time.process_time()
    for read in (checkpoint.read_config, checkpoint.report, checkpoint.load):
        with pytest.raises(ValueError, match=f"{layers} blocks where the file has 20 keys"):
            read(path)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("name", ["dim", "ffn_dim", "text_dim", "freq_dim", "latent_channels"])
def test_a_config_of_larger_weights_than_the_file_is_refused(name, tmp_path):
    weights = {f"k{index}": torch.zeros(128, 1000) for index in range(20)}
    path = refiner_file(tmp_path / "a.safetensors", weights, **{name: 2**22})
    with pytest.raises(ValueError, match="where the file has 2560000 numbers in all"):
        checkpoint.report(path)


def test_a_predictor_of_a_million_channels_is_refused_unbuilt(tmp_path):
    path = tmp_path / "a.safetensors"
    values = {"latent_channels": 16, "width": 10**6, "depth": 3, "groups": 8, "patch": [1, 2, 2]}
    metadata = {"surf.skip.format": "1", "surf.skip.config": json.dumps(values)}
    weights = {f"k{index}": torch.zeros(99) for index in range(9)}
    save_file(weights, path, metadata | {"surf.skip.calibration": "1"})
    with pytest.raises(ValueError, match="numbers in all"):
        predictor.load(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"heads": True}, "heads must be a whole number, got True"),
        ({"dim": 128.0}, "dim must be a whole number, got 128.0"),
        ({"sigma_start": True}, "sigma_start must be a finite number"),
        ({"sigma_start": float("inf")}, "sigma_start must be a finite number"),
        ({"sigma_start": 10**400}, "sigma_start must be a finite number"),
        ({"window": 10**400}, "window must be a whole number"),
        ({"patch": [1, 2]}, "patch must be a list of 3"),
        ({"patch": [1, 2, True]}, "patch must be a whole number"),
        ({"patch": None}, "patch must be a list of 3"),
        ({"block": ["wan"]}, "block must be a short word"),
        ({"block": "x" * 10**5}, "block must be a short word"),
        ({"sigma_start_range": "ab"}, "sigma_start_range must be a list of 2"),
        ({"freq_dim": 255}, "freq_dim must be even"),
        ({"colour": 1}, "unknown fields colour"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_of_other_types_are_refused_by_field(changed, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        checkpoint.read_config(refiner_file(tmp_path / "a.safetensors", **changed))
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("text", ["[" * 1100, '{"a":' * 1100, '{"a":' * 17 + "1" + "}" * 17])
def test_deep_json_is_refused(text):
    with pytest.raises(ValueError, match="nested more than 16 deep"):
        header.json_object(text)


def test_brackets_within_words_are_no_levels():
    value = {"a": "[{" * 50, "b": 'say \\"[[[[[[[[[[[[[[[[[[[[" twice'}
    assert header.json_object(json.dumps(value)) == value


def test_a_long_text_is_refused_unread():
    with pytest.raises(ValueError, match="at most 262144 are read"):
        header.json_object(" " * 300_000)


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool])
def test_weights_that_are_no_floats_are_refused_by_name(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    weights = {name: w.to(kind) for name, w in SurfRefinerDiT(CONFIG).state_dict().items()}
    checkpoint.save(path, SurfRefinerDiT(CONFIG).state_dict(), CONFIG, {})
    save_file(weights, path, header.read_header(path).metadata)
    with pytest.raises(ValueError, match="blocks.0.cross_attn.k.bias is of dtype"):
        checkpoint.load(path)
    assert any("is of dtype" in line for line in checkpoint.report(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(dtype, value, tmp_path):
    path = tmp_path / "a.safetensors"
    weights = SurfRefinerDiT(CONFIG).state_dict()
    checkpoint.save(path, weights, CONFIG, {})
    weights["blocks.0.ffn.0.weight"][3, 4] = value
    save_file(
        {name: w.to(dtype) for name, w in weights.items()}, path, header.read_header(path).metadata
    )
    with pytest.raises(ValueError, match="in 1 of .* tensors: blocks.0.ffn.0.weight; the file is"):
        checkpoint.load(path)


def test_a_predictor_that_is_not_finite_is_refused(tmp_path):
    path, config = tmp_path / "a.safetensors", PredictorConfig(width=8, depth=1)
    weights = predictor.MaskPredictor(config).state_dict()
    predictor.save(path, weights, config, 1.0, {})
    weights["head.bias"][0] = float("nan")
    save_file(weights, path, header.read_header(path).metadata)
    with pytest.raises(ValueError, match="tensors: head.bias"):
        predictor.load(path)


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path):
    weights = SurfRefinerDiT(CONFIG).state_dict()
    weights["head.head.bias"][0] = 1e6
    with pytest.raises(ValueError, match=r"head.head.bias"):
        checkpoint.save(tmp_path / "a.safetensors", weights, CONFIG, {})
    assert list(tmp_path.iterdir()) == []


def test_equal_models_give_equal_bytes(tmp_path):
    weights = SurfRefinerDiT(CONFIG).state_dict()
    written = set()
    for index in range(12):
        path = tmp_path / f"{index}.safetensors"
        checkpoint.save(path, weights, CONFIG, {"steps": 3, "name": "\u00e9"})
        written.add(path.read_bytes())
    assert len(written) == 1
    assert checkpoint.read_config(path) == (CONFIG, {"steps": 3, "name": "\u00e9"})
    mask = PredictorConfig(width=8, depth=1, groups=1)
    weights = predictor.MaskPredictor(mask).state_dict()
    written = set()
    for index in range(12):
        predictor.save(tmp_path / f"{index}", weights, mask, 1.0, {"steps": 3})
        written.add((tmp_path / f"{index}").read_bytes())
    assert len(written) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_is_readable_by_whom_the_system_says(tmp_path):
    (tmp_path / "usual").touch()
    header.write(tmp_path / "a", {"x": torch.ones(1)}, {"k": ""})
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        header.read_header(tmp_path)
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no pipes here")
    os.mkfifo(tmp_path / "pipe")
    raised = []

    def read():
        with pytest.raises(ValueError, match="is no file"):
            header.read_header(tmp_path / "pipe")
        raised.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert raised


def test_lists_are_short_whatever_they_list():
    assert header.listed(["a", "b"]) == "a; b"
    assert header.listed([str(index) for index in range(25)]).endswith("; 19; and 5 more")
    assert len(header.listed(["x" * 10**6] * 1000)) < 1400


@pytest.mark.parametrize("path", [WEIGHTS, REFINER, VAE], ids=lambda path: path.name)
def test_the_embedded_files_pass(path):
    (vae.load if path == VAE else checkpoint.load)(path)
