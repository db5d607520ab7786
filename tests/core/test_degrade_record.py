"""A clip's degradation: one draw, recorded, and the same bits from the record everywhere."""

import dataclasses
import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from math import pi
from pathlib import Path

import pytest
import torch
from surf.surf_core.degrade import (
    Blur,
    Codec,
    Degradation,
    Jpeg,
    Noise,
    Resize,
    Sinc,
    degrade,
    degraded_size,
    draw,
)
from surf.surf_core.degrade.draw import seeded
from surf.surf_core.resample import resize

ROOT = Path(__file__).parents[2]
DRAWN = "0c82ed166e89f75c415c0a27bafca10c3c7dd6bc9dac7234f2fb937de0d8466f"
ONLY = {"weak": (1, 0, 0), "medium": (0, 1, 0), "full": (0, 0, 1)}
EXACT = Resize(factor=1.0, of="low", method="area")
RECORDS = [draw(3, f"clip-{i}", scale=2.0) for i in range(1500)]
PLAIN = Degradation(noise_seed=1, scale=2.0, level="weak", operations=(EXACT,), strength=0.7)


def scene(frames=5, rows=32, columns=48, dtype=torch.float32):
    coarse = torch.rand(frames, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    return resize(coarse, (rows, columns)).to(dtype)


def digest(levels):
    """A hash of records and of degraded clips; the same text runs in another process."""
    clip = torch.linspace(0, 1, 3 * 3 * 32 * 48).reshape(3, 3, 32, 48)
    found = hashlib.sha256()
    for level in levels:
        record = draw(7, "key of " + level, scale=2.0, mix=ONLY[level])
        found.update(record.to_json().encode())
        found.update(degrade(clip, record).numpy().tobytes())
    return found.hexdigest()


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import hashlib, torch
torch.set_num_threads({threads})
from surf_core.degrade import degrade, draw
assert not {{"av", "kornia"}} & set(sys.modules), "importing must stay light"
DRAWN = "0c82ed166e89f75c415c0a27bafca10c3c7dd6bc9dac7234f2fb937de0d8466f"
ONLY = {only!r}
{source}
print(digest(*{arguments!r}))
"""


@pytest.mark.slow
def test_another_process_gives_the_same_bits():
    arguments = (tuple(ONLY),)
    text = SCRIPT.format(
        root=str(ROOT),
        only=ONLY,
        source=inspect.getsource(digest),
        threads=2,
        arguments=arguments,
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(*arguments)
    assert done.stdout.strip() != digest(("weak", "full"))


def test_the_draw_is_a_function_of_seed_key_and_nothing_else():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = draw(0, "a", scale=3.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert draw(0, "a", scale=3.0) == one
    others = [draw(1, "a", scale=3.0), draw(0, "b", scale=3.0), draw(0, "", scale=3.0)]
    assert len({record.to_json() for record in [one, *others]}) == 4


def test_the_draw_is_that_of_earlier_versions_and_other_machines():
    records = [draw(0, "clip", scale=2.0, mix=mix).to_json() for mix in ONLY.values()]
    assert hashlib.sha256("".join(records).encode()).hexdigest() == DRAWN


def test_seed_and_key_do_not_run_into_each_other():
    states = [seeded(*key).get_state() for key in ((1, "23"), (12, "3"), (1, "2", "3"), (1, 23))]
    assert len({bytes(state.numpy()) for state in states}) == 4


@pytest.mark.parametrize("level", ONLY)
def test_a_replay_from_json_gives_the_same_bits(level):
    frames = scene()
    for key in range(4):
        record = draw(5, str(key), scale=2.0, mix=ONLY[level])
        text = record.to_json()
        again = Degradation.from_json(text)
        assert again == record
        assert again.to_json() == text
        out = degrade(frames, record)
        assert torch.equal(degrade(frames, again), out)
        if level != "weak":
            other = dataclasses.replace(record, noise_seed=record.noise_seed ^ 1)
            assert not torch.equal(degrade(frames, other), out)


@pytest.mark.parametrize("level", ONLY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degrade_gives_the_size_and_does_not_mutate_the_clip(level, dtype):
    frames = scene(dtype=dtype)
    before = frames.clone()
    for key in range(3):
        record = draw(8, str(key), scale=2.0, mix=ONLY[level])
        out = degrade(frames, record)
        assert torch.equal(frames, before)
        assert out.shape == (5, 3, 16, 24)
        assert out.dtype == dtype
        assert out.amin() >= 0
        assert out.amax() <= 1
        assert (out * 255 - (out * 255).round()).abs().max() < 1e-4
        assert (out.mean() - frames.mean()).abs() < 0.04


@pytest.mark.parametrize("level", ONLY)
def test_degrade_preserves_the_order_of_time(level):
    bright = (torch.arange(1, 13) / 13)[:, None, None, None].expand(-1, 3, 32, 48)
    for key in range(4):
        out = degrade(bright, draw(2, str(key), scale=2.0, mix=ONLY[level])).mean((1, 2, 3))
        assert (out.diff() > 0).all()
        assert (out - bright.mean((1, 2, 3))).abs().max() < 0.08


def test_without_noise_a_still_clip_stays_still():
    moving = 0
    for record in (draw(4, str(key), scale=2.0, mix=ONLY["full"]) for key in range(8)):
        kept = [step for step in record.operations if not isinstance(step, Noise | Codec)]
        still = scene(1).expand(4, -1, -1, -1)
        out = degrade(still, dataclasses.replace(record, operations=kept))
        assert torch.equal(out, out[:1].expand_as(out))
        noisy = degrade(still, record)
        moving += not torch.equal(noisy, noisy[:1].expand_as(noisy))
    # An encoder of low quality may swallow weak noise.
    assert moving >= 6


def test_harder_levels_lose_more():
    frames = scene()
    target = resize(frames, (16, 24), "area")
    lost = {}
    for level, mix in ONLY.items():
        clips = [degrade(frames, draw(6, str(key), scale=2.0, mix=mix)) for key in range(12)]
        lost[level] = torch.stack([(clip - target).square().mean() for clip in clips]).mean()
    assert lost["weak"] < 0.5 * lost["medium"]
    assert lost["medium"] < lost["full"]


def test_two_noise_steps_draw_differently():
    step = Noise(kind="gaussian", level=20.0, gray=False)
    flat = torch.full((1, 3, 16, 16), 0.5)
    once, twice = (
        degrade(flat, dataclasses.replace(PLAIN, scale=1.0, operations=(step,) * count + (EXACT,)))
        for count in (1, 2)
    )
    # The same values twice would double the deviation.
    assert twice.std() / once.std() == pytest.approx(2**0.5, rel=0.1)


def test_a_given_size_wins_over_the_scale():
    record = draw(0, "a", scale=4.5, size=(10, 18), mix=ONLY["medium"])
    assert degrade(scene(), record).shape[-2:] == (10, 18)
    assert Degradation.from_json(record.to_json()).size == (10, 18)
    assert degraded_size((270, 450), draw(0, "a", scale=4.5)) == (60, 100)


def test_levels_come_in_their_shares():
    shares = Counter(record.level for record in RECORDS)
    for level, share in zip(("weak", "medium", "full"), (0.5, 0.4, 0.1), strict=True):
        assert shares[level] / len(RECORDS) == pytest.approx(share, abs=0.04)


def test_drawn_values_fill_the_ranges_of_real_esrgan():
    full = [draw(9, str(key), scale=2.0, mix=ONLY["full"]) for key in range(1200)]
    steps = [step for record in full for step in record.operations]
    blurs = [step for step in steps if isinstance(step, Blur)]
    isotropic = [step for step in blurs if step.sigma[0] == step.sigma[1]]
    expected = {"gaussian": 0.7, "generalised": 0.15, "plateau": 0.15}
    for shape, share in expected.items():
        found = sum(step.shape == shape for step in blurs) / len(blurs)
        assert found == pytest.approx(share, abs=0.04)
    assert len(isotropic) / len(blurs) == pytest.approx(0.69, abs=0.04)
    assert {step.size for step in blurs} == set(range(7, 22, 2))
    assert {step.angle for step in isotropic} == {0.0}

    def spread(values, low, high):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high

    spread([sigma for step in blurs for sigma in step.sigma], 0.2, 3.0)
    spread([step.beta for step in blurs if step.shape == "generalised"], 0.5, 4.0)
    spread([step.angle for step in blurs if step not in isotropic], -pi, pi)
    spread([step.cutoff for step in steps if isinstance(step, Sinc)], pi / 5, pi)
    spread([s.factor for s in steps if isinstance(s, Resize) and s.of == "high"], 0.15, 1.5)
    spread([s.factor for s in steps if isinstance(s, Resize) and s.of == "low"], 0.3, 1.2)
    spread([s.level for s in steps if isinstance(s, Noise) and s.kind == "gaussian"], 1, 30)
    spread([s.level for s in steps if isinstance(s, Noise) and s.kind == "poisson"], 0.05, 3)
    spread([s.quality for s in steps if isinstance(s, Jpeg)], 30, 95)
    spread([s.quality for s in steps if isinstance(s, Codec) and s.name == "libx264"], 23, 40)
    spread([s.quality for s in steps if isinstance(s, Codec) and s.name == "mpeg4"], 6, 22)
    noises = [step for step in steps if isinstance(step, Noise)]
    assert sum(step.gray for step in noises) / len(noises) == pytest.approx(0.4, abs=0.04)
    ends = Counter(type(record.operations[-1]) for record in full)
    assert ends[Codec] / len(full) == pytest.approx(0.5, abs=0.05)
    assert ends[Sinc] / len(full) == pytest.approx(0.4, abs=0.05)
    spread([record.strength for record in full], 0.6, 0.9)


def test_medium_has_less_noise_and_weak_none():
    medium, weak = (
        [step for record in RECORDS if record.level == level for step in record.operations]
        for level in ("medium", "weak")
    )
    levels = {
        kind: [s.level for s in medium if isinstance(s, Noise) and s.kind == kind]
        for kind in ("gaussian", "poisson")
    }
    assert 9 < max(levels["gaussian"]) <= 10
    assert 1.3 < max(levels["poisson"]) <= 1.5
    assert {type(step) for step in weak} == {Resize}


def test_weak_clips_need_no_video_encoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert degrade(scene(), draw(0, "a", scale=2.0, mix=ONLY["weak"])).shape[0] == 5
    with pytest.raises(ImportError, match="install the package"):
        degrade(scene(), draw(0, "a", scale=2.0, mix=ONLY["full"]))


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (None, "NoneType"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"\(2, 8, 8, 3\)"),
        (torch.zeros(0, 3, 8, 8), r"\(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((2, 3, 8, 8), 1.5), "values from 1.5"),
        (torch.full((2, 3, 8, 8), -0.5), "values from -0.5"),
        (torch.full((2, 3, 8, 8), float("nan")), "nan"),
    ],
)
def test_degrade_rejects_what_is_no_clip(frames, said):
    with pytest.raises(ValueError, match=said):
        degrade(frames, PLAIN)


def test_degrade_rejects_sides_that_do_not_divide():
    with pytest.raises(ValueError, match=r"whole after division by 2.0, got \(9, 8\)"):
        degrade(torch.zeros(1, 3, 9, 8), PLAIN)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1.5},
        {"seed": True},
        {"key": None},
        {"scale": 0.5},
        {"scale": float("nan")},
        {"size": (8,)},
        {"size": (8, 8.5)},
        {"size": (0, 8)},
        {"mix": (1, 1)},
        {"mix": (0, 0, 0)},
        {"mix": (-1, 1, 1)},
    ],
)
def test_draw_rejects_bad_arguments(change):
    arguments = {"seed": 0, "key": "a", "scale": 2.0, **change}
    with pytest.raises(ValueError, match="; "):
        draw(arguments.pop("seed"), arguments.pop("key"), **arguments)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("strength"),
        lambda r: r.update(extra=1),
        lambda r: r.update(strength=1.2),
        lambda r: r.update(strength="0.7"),
        lambda r: r.update(noise_seed=-1),
        lambda r: r.update(noise_seed=0.5),
        lambda r: r.update(level="strong"),
        lambda r: r.update(steps=[]),
        lambda r: r.update(steps=3),
        lambda r: r.update(steps=["resize"]),
        lambda r: r.update(steps=r["steps"] * 2 + [{"op": "sharpen"}]),
        lambda r: r["steps"][0].update(op="stretch"),
        lambda r: r["steps"][0].update(factor=0.5),
        lambda r: r["steps"][0].update(method="nearest"),
        lambda r: r["steps"][0].pop("of"),
        lambda r: r["steps"].insert(0, {"op": "jpeg", "quality": 0}),
        lambda r: r["steps"].insert(0, {"op": "codec", "name": "mpeg4", "quality": 2.5}),
        lambda r: r["steps"].insert(0, {"op": "sinc", "size": 8, "cutoff": 1.0}),
    ],
)
def test_from_json_rejects_a_record_that_is_none(change):
    record = json.loads(PLAIN.to_json())
    assert Degradation.from_json(json.dumps(record)) == PLAIN
    change(record)
    with pytest.raises(ValueError, match=r"degradation|resize|jpeg|codec|sinc"):
        Degradation.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 5000])
def test_from_json_rejects_other_text(text):
    with pytest.raises(ValueError, match="to_json"):
        Degradation.from_json(text)


def test_a_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.strength = 0.8
    assert hash(PLAIN) == hash(Degradation.from_json(PLAIN.to_json()))
