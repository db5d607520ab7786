"""The sampler: a function of seed and step, fair to every clip, the same on every machine."""

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from surf.surf_core.training.sampler import BucketSampler

CLIPS = {f"clip{i:03d}": "704x1280" for i in range(50)}
CLIPS |= {f"tall{i:03d}": "1280x704" for i in range(23)}
CLIPS |= {f"even{i:03d}": "960x960" for i in range(12)}
ROOT = Path(__file__).parents[2]
FROZEN = [("c0", "c3", "c1"), ("c2", "c4", "c5")]


def make(batch=6, seed=0, clips=CLIPS):
    return BucketSampler(clips, batch, seed)


def epoch(sampler, number):
    first = number * sampler.steps_per_epoch
    return [sampler.at(first + i) for i in range(sampler.steps_per_epoch)]


@pytest.mark.parametrize("batch", [1, 4, 6, 12])
@pytest.mark.parametrize("seed", [0, 2**64])
def test_every_clip_once_an_epoch_but_for_less_than_a_batch_of_each_bucket(batch, seed):
    sampler = make(batch, seed)
    for number in range(4):
        batches = epoch(sampler, number)
        seen = Counter(key for one in batches for key in one.keys)
        assert set(seen.values()) == {1}
        assert all(len(one.keys) == batch and one.epoch == number for one in batches)
        assert all(CLIPS[key] == one.bucket for one in batches for key in one.keys)
        missed = Counter(CLIPS[key] for key in set(CLIPS) - set(seen))
        assert all(count < batch for count in missed.values())
        out = [k for bucket in set(CLIPS.values()) for k in sampler.left_out(number, bucket)]
        assert set(out) == set(CLIPS) - set(seen)


def test_other_clips_are_left_out_in_the_next_epoch_and_all_in_turn():
    sampler = make()
    for bucket, size in Counter(CLIPS.values()).items():
        left = [sampler.left_out(number, bucket) for number in range(size)]
        rest = size % 6
        assert all(len(set(keys)) == rest for keys in left)
        assert all(set(a) != set(b) for a, b in zip(left, left[1:], strict=False) if rest)
        assert set(Counter(k for keys in left for k in keys).values()) == (
            {rest} if rest else set()
        )


def test_buckets_come_by_their_share_and_mixed():
    sampler = make()
    drawn = [one.bucket for one in epoch(sampler, 0)]
    assert Counter(drawn) == {"704x1280": 8, "1280x704": 3, "960x960": 2}
    assert drawn != sorted(drawn)
    assert drawn != [one.bucket for one in epoch(sampler, 1)]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_a_batch(world):
    sampler = make()
    for step in range(2 * sampler.steps_per_epoch):
        parts = [sampler.at(step, rank, world).keys for rank in range(world)]
        assert len({len(part) for part in parts}) == 1
        joined = [key for part in parts for key in part]
        assert len(set(joined)) == 6
        assert sorted(joined) == sorted(sampler.at(step).keys)


def test_a_step_does_not_depend_on_the_steps_before_it():
    fresh, used = make(), make()
    walked = [used.at(step) for step in range(60)]
    for step in (59, 3, 40, 0, 13):
        assert fresh.at(step) == walked[step] == make().at(step)


def test_order_of_the_manifest_does_not_matter():
    backwards = dict(reversed(CLIPS.items()))
    assert [make(clips=backwards).at(s) for s in range(20)] == [make().at(s) for s in range(20)]


def test_epochs_and_seeds_differ():
    first = [one.keys for one in epoch(make(), 0)]
    assert first != [one.keys for one in epoch(make(), 1)]
    assert first != [one.keys for one in epoch(make(seed=1), 0)]


def test_other_processes_draw_the_same():
    code = (
        "from surf_core.training.sampler import BucketSampler as B\n"
        "clips = {f'c{i}': 'ab'[i % 3 == 0] for i in range(40)}\n"
        "print([B(clips, 4, 7).at(s, 1, 2).keys for s in (0, 5, 99)])"
    )
    clips = {f"c{i}": "ab"[i % 3 == 0] for i in range(40)}
    here = str([make(4, 7, clips).at(step, 1, 2).keys for step in (0, 5, 99)])
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == here


def test_order_is_frozen_across_versions():
    sampler = BucketSampler({f"c{i}": "a" for i in range(6)}, 3, 0)
    assert [sampler.at(step).keys for step in range(2)] == FROZEN


def test_small_buckets_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        sampler = make(clips=CLIPS | {"odd1": "1x1", "odd0": "1x1"})
    assert sampler.unused == ("odd0", "odd1")
    assert "2 clips" in caplog.text
    assert all(one.bucket != "1x1" for one in epoch(sampler, 0))


def test_sampler_rejects_what_cannot_be_shared_or_filled():
    with pytest.raises(ValueError, match="none of that size"):
        make(batch=51)
    with pytest.raises(ValueError, match="none of that size"):
        make(clips={})
    with pytest.raises(ValueError, match="batch=0"):
        make(batch=0)
    for rank, world in ((0, 4), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="world"):
            make().at(0, rank, world)
    with pytest.raises(ValueError, match="step=-1"):
        make().at(-1)
