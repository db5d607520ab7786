"""Prepare a folder: what is to be done, handed to a runner, and recorded video by video.

A runner is a callable `run(job, sources)` that yields an `Item` for each row and for the mark of
each video, in any order: `local.run`, or `cluster.run`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..lock import locked
from .captions import Captions
from .codecs import named, stable_name
from .filters import Scorer, compression_quality
from .manifest import Folder, Part, Row, key_of
from .options import Options, digest, identity
from .sources import Source, content_hashes, find, of_part, root_of
from .stages import Examine, Item, cut, fit, lower
from .storage import clear

Runner = Callable[..., Iterable[Item]]
"""Called with a job and sources, see above."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareJob:
    """Input, output folder, options and models of a preparation."""

    given: Path
    """Folder, video, or list of videos; see `find`."""
    out: Path
    """Folder of shards."""
    options: Options
    """How."""
    codec: Any = "tiny"
    """See `load_codec`."""
    text: Any = "tiny"
    """See `load_text`."""
    scorer: Any = "compression"
    """"compression", "module:function", or a callable; see `Scorer`."""
    device: str = "cpu"
    """Where codec and text encoder work."""
    part: tuple[int, int] = (1, 1)
    """Which share of the videos, of how many; one process for each."""

    @property
    def folder(self) -> Folder:
        return Folder(self.out, "{}-{}".format(*self.part))

    def identity(self) -> dict:
        """What decides the shards' content."""
        names = {what: stable_name(getattr(self, what)) for what in ("codec", "text", "scorer")}
        return identity(self.options, **names)

    def digest(self) -> str:
        return digest(self.identity())

    def load_scorer(self) -> Scorer:
        if self.scorer == "compression":
            return compression_quality
        return named(self.scorer, "scorer") if isinstance(self.scorer, str) else self.scorer


@dataclass(kw_only=True, slots=True)
class Report:
    """Counts of a run, for its last lines."""

    rows: list[Row]
    """The whole manifest."""
    videos: int
    """Videos of this part."""
    prepared: int = 0
    """Of these, finished by this run."""
    clips: int = 0
    """Clips examined by this run."""
    seconds: float = 0.0
    """That it took."""
    broken_captions: list[Path] = field(default_factory=list)
    """Side files that are none."""

    def reasons(self) -> Counter:
        """How many rows of the manifest there are by reason."""
        return Counter(reason for row in self.rows for reason in row.reasons)

    def lines(self) -> list[str]:
        """What a person wants to know at the end."""
        accepted = [row for row in self.rows if row.accepted]
        reasons = ", ".join(f"{word} {count}" for word, count in self.reasons().most_common())
        rejected = len(self.rows) - len(accepted)
        rate = self.clips / self.seconds if self.seconds else 0.0
        captioned = sum(bool(row.caption) for row in accepted)
        return [
            f"{self.videos} videos, {self.prepared} of them prepared now: {self.clips} clips in "
            f"{self.seconds:.1f} s, {rate:.2f} clips/s",
            f"manifest: {len(accepted)} clips accepted, {rejected} rows rejected"
            + (f" ({reasons})" if reasons else ""),
            f"captions: {captioned} with, {len(accepted) - captioned} without, "
            f"{len(self.broken_captions)} side files unusable",
        ]


def ready(job: PrepareJob, source: Source, examine: Examine | None = None) -> Iterator[Item]:
    """The stages that need no GPU: from a video to clips of its buckets and their degraded twins.

    Args:
        examine: None makes one.
    """
    examine = examine or Examine(job.options, job.load_scorer())
    for item in cut(source, job.options, job.digest()):
        yield lower(fit(examine(item), job.options), job.options)


def _identified(sources: list[Source], parts: list[Part], threads: int) -> list[Source]:
    """Sources with the hash of their bytes; a file with the size and time it had is not reread."""
    known = {(part.source, part.size, part.changed): part.content for part in parts}
    contents = [known.get((one.name, one.size, one.changed), "") for one in sources]
    unknown = [i for i, content in enumerate(contents) if not content]
    hashes = content_hashes([sources[i].path for i in unknown], threads)
    for i, content in zip(unknown, hashes, strict=True):
        contents[i] = content
    return [replace(one, content=content) for one, content in zip(sources, contents, strict=True)]


def _alone(kind: str, source: Source, digest: str, first: str = "") -> Part:
    """The part of a file that gives no clips: unread, or a duplicate of a first one."""
    log.warning("%s: %s %s", source.name, kind, first)
    word = {"unread": "unreadable", "duplicate": "duplicate"}[kind]
    row = Row(
        key=key_of(f"{source.content}/{source.name}", -1, digest),
        source=source.name,
        content=source.content,
        reasons=(word,),
    )
    return Part(kind=kind, **_file(source), rows=(row,))


def _file(source: Source) -> dict:
    names = ("size", "changed", "content", "caption")
    return {"source": source.name} | {name: getattr(source, name) for name in names}


def plan(job: PrepareJob, threads: int = 1) -> tuple[list[Source], list[Source], Captions]:
    """(videos of this part, those still to do, captions), and the folder's parts brought up to it.

    Files that cannot be read, and copies of a file under another name, get their part here. A part
    is dropped if its file has other bytes now; files that are gone keep theirs.
    """
    folder, everything = job.folder, find(job.given)
    captions = Captions(root_of(job.given))
    parts = folder.parts()
    mine = _identified(of_part(everything, *job.part), parts, threads)
    mine = [replace(one, caption=captions.of(one.path)) for one in mine]
    now = {one.name: one for one in mine}
    sizes = {one.name: one.size for one in everything}
    for part in parts:
        there = now.get(part.source)
        content = there.content if there else part.content
        if content != part.content or sizes.get(part.source, part.size) != part.size:
            folder.drop(part)
    done = {part.content: part for part in folder.parts() if part.kind == "clips"}
    first: dict[str, Source] = {}
    known: dict[str, Part] = {}
    for one in mine:
        if not one.content:
            folder.save(_alone("unread", one, job.digest()))
        elif one.content in first:
            folder.save(_alone("duplicate", one, job.digest(), first[one.content].name))
        else:
            first[one.content] = one
            before = done.get(one.content)
            if before and (before.source, before.caption) == (one.name, one.caption):
                known[one.content] = before
    with ThreadPoolExecutor(threads) as pool:
        whole = dict(zip(known, pool.map(folder.complete, known.values()), strict=True))
    todo = [one for content, one in first.items() if not whole.get(content)]
    return mine, todo, captions


def collect(
    folder: Folder, todo: list[Source], items: Iterable[Item]
) -> Iterator[tuple[Source | None, Row | None]]:
    """Gather rows by video, and record each video when its mark and all its rows are there.

    Yields:
        (None, row) for a row, (source, None) for a finished video.
    """
    sources = {one.content: one for one in todo}
    rows: dict[str, dict[int, Row]] = {one.content: {} for one in todo}
    counts: dict[str, int] = {}
    for item in items:
        if item.content not in rows:  # A cluster may do again what it lost sight of.
            continue
        if item.row is None:
            counts[item.content] = item.count
        else:
            rows[item.content][item.row.index] = item.row
            yield None, item.row
        of_video = rows[item.content]
        if counts.get(item.content) == len(of_video):
            ordered = tuple(sorted(of_video.values(), key=lambda row: row.index))
            source = sources[item.content]
            folder.save(Part(kind="clips", **_file(source), rows=ordered))
            del rows[item.content]
            yield source, None
    if rows:
        raise RuntimeError(
            f"expected every video to end, got none for {len(rows)} of them; the runner lost "
            "items: run the same command again."
        )


def prepare(
    job: PrepareJob,
    run: Callable[[PrepareJob, list[Source]], Iterable[Item]],
    progress: Callable[[int, int, int], None] | None = None,
    threads: int = 1,
) -> Report:
    """Prepare the videos of a job that are not prepared yet, then write the manifest.

    Args:
        job: what to prepare.
        run: the runner.
        progress: called with (videos finished, videos to do, clips) after every row and video.
        threads: that read files to hash them: new videos, and all clips that are there already.

    Raises:
        ValueError: no videos, a folder that was prepared with other options, or another process
            that prepares the same part of it.
        OSError: the disk is full; everything recorded so far counts.
    """
    lock = job.folder.root / "tmp" / f"{job.folder.scratch.name}.lock"
    part, parts = job.part
    with locked(lock, f"part {part} of {parts} of the folder {job.folder.root}"):
        return _prepare(job, run, progress, threads)


def _prepare(
    job: PrepareJob,
    run: Callable[[PrepareJob, list[Source]], Iterable[Item]],
    progress: Callable[[int, int, int], None] | None,
    threads: int,
) -> Report:
    began, folder = time.monotonic(), job.folder
    folder.claim(job.identity())
    if left := clear(folder.scratch):
        log.info("deleted %d unfinished files of a run that was killed", left)
    mine, todo, captions = plan(job, threads)
    report = Report(rows=[], videos=len(mine))
    for source, row in collect(folder, todo, run(job, todo)) if todo else ():
        report.prepared += source is not None
        report.clips += row is not None and row.index >= 0
        if progress:
            progress(report.prepared, len(todo), report.clips)
    report.rows = folder.assemble()
    report.seconds, report.broken_captions = time.monotonic() - began, captions.broken
    return report
