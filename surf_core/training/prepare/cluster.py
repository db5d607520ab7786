"""Run the stages on a cluster, with Ray Data: tasks that decode, actors that hold the models.

Items travel as bytes in a column of their own. Input and output folders must be the same for every
machine, and the package must be installed on each.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from .codecs import load_codec
from .job import PrepareJob
from .sources import Source
from .stages import Embed, Encode, Examine, Item, Write, cut, fit, lower, pack, unpack
from .texts import load_text

log = logging.getLogger(__name__)

_ACTOR_CPUS = 0.2
"""Of each model's process, which mostly waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The number of processes, CPUs and GPUs of each stage."""

    address: str | None = None
    """Of a running cluster; None starts one on this machine."""
    cpus: int | None = None
    """That decode, of the one started here; None is all."""
    scorers: int = 1
    """Processes that examine clips."""
    scorer_gpus: float = 0.0
    """GPUs of each of them."""
    encoders: int = 1
    """Processes that hold the codec."""
    encoder_gpus: float = 0.0
    """GPUs of each of them."""
    texts: int = 1
    """Processes that hold the text encoder."""
    text_gpus: float = 0.0
    """GPUs of each of them."""

    def model_cpus(self) -> float:
        """CPUs that the models' processes hold for good."""
        return _ACTOR_CPUS * (self.scorers + self.encoders + self.texts)

    def lacking(self, free: Mapping[str, float]) -> str:
        """What of the free resources is too little for the first clip to come through; or ""."""
        kinds = ((self.scorers, self.scorer_gpus), (self.encoders, self.encoder_gpus),
                 (self.texts, self.text_gpus))  # fmt: skip
        needed = {"CPU": 1 + self.model_cpus(), "GPU": sum(count * gpus for count, gpus in kinds)}
        return ", ".join(
            f"{count:g} {name}s of which {free.get(name, 0):g} are free"
            for name, count in needed.items()
            if free.get(name, 0) < count
        )


def _modules() -> tuple[Any, Any]:
    """Import ray and pyarrow."""
    try:
        import pyarrow
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "preparing on a cluster needs Ray Data, which is missing; install it with: "
            'pip install "surf-video[cluster]"'
        ) from error
    return ray, pyarrow


def _table(item: bytes) -> Any:
    """Put one item into a table of one row."""
    _, arrow = _modules()
    return arrow.table({"item": arrow.array([item], arrow.large_binary())})


def _items(table: Any) -> Iterator[bytes]:
    for value in table["item"]:
        yield value.as_py()


class _Cut:
    """Cut videos into clips one by one, so that a film is never in memory as a whole."""

    def __init__(self, job: PrepareJob):
        self.job, self.digest = job, job.digest()

    def __call__(self, table: Any) -> Iterator[Any]:
        for record in table.to_pylist():
            path = Path(os.fsdecode(record.pop("path")))
            source = Source(path=path, size=0, changed=0, **record)
            for item in cut(source, self.job.options, self.digest):
                yield _table(pack(item))


class _Each:
    """Apply a stage to the items of a table."""

    def __init__(self, stage: Callable[[Item], Item]):
        self.stage = stage

    def __call__(self, table: Any) -> Iterator[Any]:
        for data in _items(table):
            yield _table(pack(self.stage(unpack(data))))


class _Examine(_Each):
    def __init__(self, job: PrepareJob):
        super().__init__(Examine(job.options, job.load_scorer()))


def _fit_and_lower(item: Item, job: PrepareJob) -> Item:
    return lower(fit(item, job.options), job.options)


class _Lower(_Each):
    def __init__(self, job: PrepareJob):
        super().__init__(partial(_fit_and_lower, job=job))


class _Encode(_Each):
    def __init__(self, job: PrepareJob):
        super().__init__(Encode(job.options, load_codec(job.codec, job.device), job.device))


class _Embed(_Each):
    def __init__(self, job: PrepareJob):
        super().__init__(Embed(job.options, load_text(job.text, job.device)))


class _Write(_Each):
    def __init__(self, job: PrepareJob):
        super().__init__(Write(job.folder))


def run(job: PrepareJob, sources: list[Source], cluster: Cluster | None = None) -> Iterator[Item]:
    """Prepare videos on a cluster; a video is a task, and its clips flow on as they are cut.

    Args:
        job: what to do; its codec, text encoder and scorer are named by text.
        sources: which videos.
        cluster: how many processes, and where.

    Yields:
        Rows and marks, without tensors.

    Raises:
        ImportError: Ray is missing.
        OSError: the disk is full.
        ValueError: this machine has fewer GPUs than are asked for.
    """
    cluster = cluster or Cluster()
    ray, _ = _modules()
    job = replace(job, given=job.given.absolute(), out=job.out.absolute())
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=cluster.address,
            num_cpus=None if cluster.address else _cpus(cluster),
            include_dashboard=None if cluster.address else False,
            log_to_driver=False,
        )
    try:
        _say_what_is_lacking(cluster, ray.available_resources(), started and not cluster.address)
        ray.data.DataContext.get_current().enable_progress_bars = False
        for batch in _flow(ray, job, sources, cluster).iter_batches(
            batch_size=None, batch_format="pyarrow"
        ):
            for data in _items(batch):
                yield unpack(data)
    except ray.exceptions.RayTaskError as error:
        # What went wrong in a task, as it would look without a cluster.
        raise error.cause or error from error
    finally:
        if started:
            ray.shutdown()


def _cpus(cluster: Cluster) -> int:
    """CPUs of a cluster started here: those that decode, and what the models' processes hold."""
    return (cluster.cpus or os.cpu_count() or 1) + ceil(cluster.model_cpus())


def _say_what_is_lacking(cluster: Cluster, free: Mapping[str, float], here: bool) -> None:
    lacking = cluster.lacking(free)
    if lacking and here:
        raise ValueError(
            f"expected {lacking} on this machine; ask for fewer processes or GPUs, or name a "
            "larger cluster with --ray-address."
        )
    if lacking:
        log.warning("waiting for the cluster: preparing needs %s", lacking)


def _flow(ray: Any, job: PrepareJob, sources: list[Source], cluster: Cluster) -> Any:
    """Build the dataset of finished items."""
    records = [
        {"path": os.fsencode(one.path.absolute())}
        | {name: getattr(one, name) for name in ("name", "content", "caption")}
        for one in sources
    ]
    common = {"batch_size": None, "batch_format": "pyarrow"}

    def actors(stage: type, count: int, gpus: float) -> dict:
        return common | {
            "fn": stage,
            "fn_constructor_args": (job,),
            "compute": ray.data.ActorPoolStrategy(size=count),
            "num_cpus": _ACTOR_CPUS,
            "num_gpus": gpus,
        }

    return (
        ray.data.from_items(records, override_num_blocks=len(records))
        .map_batches(_Cut(job).__call__, **common)
        .map_batches(**actors(_Examine, cluster.scorers, cluster.scorer_gpus))
        .map_batches(_Lower(job).__call__, **common)
        .map_batches(**actors(_Encode, cluster.encoders, cluster.encoder_gpus))
        .map_batches(**actors(_Embed, cluster.texts, cluster.text_gpus))
        .map_batches(_Write(job).__call__, **common)
    )
