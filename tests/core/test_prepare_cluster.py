"""What a cluster must have free, and what is said where it has not. A run is in another file."""

import logging

import pytest
from surf.surf_core.training.prepare import cluster as clusters
from surf.surf_core.training.prepare.cluster import Cluster


class Ray:
    """As much of Ray as is asked before the first task, with so much free."""

    def __init__(self, **free):
        self.free, self.begun, self.given = free, False, {}

    def is_initialized(self):
        return False

    def init(self, **given):
        self.given = given

    def available_resources(self):
        return self.free

    def shutdown(self):
        pass

    class data:  # noqa: N801
        class DataContext:
            @staticmethod
            def get_current():
                raise StopIteration

    class exceptions:  # noqa: N801
        RayTaskError = ZeroDivisionError


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Run on a Ray up to where it would make its tasks; that Ray."""
    from . import prepared

    def run(ray, cluster):
        monkeypatch.setattr(clusters, "_modules", lambda: (ray, None))
        with pytest.raises((RuntimeError, StopIteration)):
            list(clusters.run(prepared.job(tmp_path, tmp_path / "out"), [], cluster))
        return ray

    return run


@pytest.mark.parametrize("cpus", [1, 2, 8])
def test_one_started_here_has_room_for_the_models_beside_those_that_decode(begin, cpus):
    ray = begin(Ray(CPU=99.0), Cluster(cpus=cpus))
    assert ray.given["num_cpus"] == cpus + 1
    more = begin(Ray(CPU=99.0), Cluster(cpus=cpus, scorers=4, encoders=2))
    assert more.given["num_cpus"] == cpus + 2


def test_what_is_lacking_here_is_refused(tmp_path, monkeypatch):
    from . import prepared

    monkeypatch.setattr(clusters, "_modules", lambda: (Ray(CPU=2.0), None))
    job = prepared.job(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="expected 1.5 GPUs of which 0 are free on this machine"):
        list(clusters.run(job, [], Cluster(encoder_gpus=1.0, text_gpus=0.5)))


def test_a_cluster_that_is_too_small_or_taken_is_waited_for_aloud(begin, caplog):
    with caplog.at_level(logging.WARNING):
        begin(Ray(CPU=1.0), Cluster(address="auto"))
    assert "waiting for the cluster: preparing needs 1.6 CPUs of which 1 are free" in caplog.text
    caplog.clear()
    begin(Ray(CPU=1.6), Cluster(address="auto"))
    assert caplog.text == ""
