"""Run the stages on this machine: in this process, or with processes that decode beside it."""

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from queue import Empty, Full
from typing import Any

from .codecs import load_codec
from .job import PrepareJob, ready
from .sources import Source
from .stages import Embed, Encode, Examine, Item, Write, pack, unpack
from .texts import load_text

_WAIT = 0.2  # Seconds between looks at whether the other side still lives.
_link: tuple = ()  # In a worker: (queue, stop).


def run(job: PrepareJob, sources: list[Source], workers: int = 0) -> Iterator[Item]:
    """Prepare videos; codec and text encoder work in this process.

    Args:
        job: what to do.
        sources: which videos.
        workers: processes that decode, filter and degrade; 0 does that here too. Each holds about
            two of the longest clips.

    Yields:
        Rows and marks, without tensors.

    Raises:
        BrokenProcessPool: a worker died, often for lack of memory; what is recorded counts.
    """
    encode = Encode(job.options, load_codec(job.codec, job.device), job.device)
    embed = Embed(job.options, load_text(job.text, job.device))
    write = Write(job.folder)
    items = _pooled(job, sources, workers) if workers else _here(job, sources)
    for item in items:
        yield write(embed(encode(item)))


def _here(job: PrepareJob, sources: list[Source]) -> Iterator[Item]:
    examine = Examine(job.options, job.load_scorer())
    for source in sources:
        yield from ready(job, source, examine)


def _pooled(job: PrepareJob, sources: list[Source], workers: int) -> Iterator[Item]:
    """Items from worker processes; the queue holds one for each, so that memory is bounded."""
    with _pool(workers) as (pool, queue):
        futures = [pool.submit(_work, job, source) for source in sources]
        open_ = len(sources)
        while open_:
            try:
                item = unpack(queue.get(timeout=_WAIT))
            except Empty:
                _raise_failures(futures)
                continue
            open_ -= item.row is None
            yield item


def _raise_failures(futures: Iterable[Future]) -> None:
    for future in futures:
        if future.done():
            future.result()


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    # A fork of a process that has used torch's threads can hang, so workers start afresh.
    context = get_context("spawn")
    queue, stop = context.Queue(maxsize=workers), context.Event()
    pool = ProcessPoolExecutor(workers, context, _join, (queue, stop))
    try:
        yield pool, queue
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        queue.close()


def _join(queue: Any, stop: Any) -> None:
    """Set up a worker; it ends when its parent does, however that ended."""
    global _link
    _link = queue, stop
    queue.cancel_join_thread()
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the parent of this process to end, however, and end too; for a thread."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: PrepareJob, source: Source) -> None:
    for item in ready(job, source):
        if not _put(pack(item)):
            return


def _put(data: bytes) -> bool:
    """Hand an item over when there is room; False if nobody wants it any more."""
    queue, stop = _link
    while not stop.is_set():
        try:
            queue.put(data, timeout=_WAIT)
        except Full:
            continue
        return True
    return False
