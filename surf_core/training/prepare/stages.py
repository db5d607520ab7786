"""The stages from a video to a shard, as plain callables: any runner can put them in a row.

source -> `cut` -> `Examine` -> `fit` -> `lower` -> `Encode` -> `Embed` -> `Write`

An `Item` goes through all of them. A rejected one has no tensors, and passes as it is; so does the
mark that ends a video.

Dims: T frames, H, W pixels of the clip, h, w of the degraded clip.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ...degrade import Degradation, degrade, draw
from ...resample import resize
from . import buckets
from .clips import Clip, clips
from .codecs import LatentCodec
from .decode import Rejected
from .filters import Scorer, examine
from .manifest import Folder, Row, as_numbers, key_of
from .options import Options
from .sources import Source
from .texts import Text

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A clip between stages, or the mark at the end of a video."""

    content: str
    """Hash of the video."""
    row: Row | None = None
    """The row of the manifest so far; None for the mark."""
    count: int = 0
    """Of the mark: rows of the video."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """frames [T, H, W, 3] and low [T, h, w, 3], uint8; then hr, lr, start, text."""

    def waiting(self) -> bool:
        """Whether it is to be processed: neither the mark nor rejected."""
        return self.row is not None and self.row.accepted

    @property
    def clip(self) -> Row:
        """The row of an item that is not the mark."""
        assert self.row is not None
        return self.row

    def rejected(self, reasons: tuple[str, ...], **numbers: Any) -> "Item":
        """Copy without tensors, with the reasons against it."""
        return replace(self, row=self._updated(numbers, reasons=reasons), tensors={})

    def noted(
        self, tensors: dict[str, Tensor], numbers: dict | None = None, **values: Any
    ) -> "Item":
        """Copy with these tensors, and more numbers and values in its row."""
        return replace(self, row=self._updated(numbers or {}, **values), tensors=tensors)

    def _updated(self, numbers: dict, **values: Any) -> Row:
        together = as_numbers(json.loads(self.clip.numbers) | numbers)
        return replace(self.clip, numbers=together, **values)


def pack(item: Item) -> bytes:
    """Make bytes of an item, to send it to another process."""
    row = asdict(item.row) if item.row else None
    note = json.dumps({"content": item.content, "row": row, "count": item.count})
    tensors = {name: tensor.contiguous() for name, tensor in item.tensors.items()}
    return save(tensors, {"item": note})


def unpack(data: bytes) -> Item:
    """The item that `pack` made bytes of."""
    record = json.loads(_metadata(data)["item"])
    row = Row.from_json(json.dumps(record["row"])) if record["row"] else None
    return Item(**{**record, "row": row}, tensors=load(data))


def _metadata(data: bytes) -> dict[str, str]:
    header = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + header])["__metadata__"]


def cut(source: Source, options: Options, digest: str) -> Iterator[Item]:
    """Decode a video into clips, one at a time; what is wrong with it is a row of its own.

    Yields:
        Items with frames; perhaps one with index -1 and its reason; then the mark.
    """
    count = 0
    for index, piece in _pieces(source, options):
        row = Row(
            key=key_of(source.content, index, digest),
            source=source.name,
            content=source.content,
            index=index,
            caption=source.caption,
        )
        item = Item(content=source.content, row=row)
        if isinstance(piece, Rejected):
            log.warning("%s: %s %s", source.name, piece.reason, piece.numbers)
            yield item.rejected((piece.reason,), **piece.numbers)
        else:
            frames, rows, columns, _ = piece.frames.shape
            yield item.noted(
                {"frames": piece.frames}, scene=piece.scene, start=piece.start,
                frames=frames, rows=rows, columns=columns,
            )  # fmt: skip
        count += 1
    yield Item(content=source.content, count=count)


def _pieces(source: Source, options: Options) -> Iterator[tuple[int, Clip | Rejected]]:
    """Yield (index, clip or rejection); running out of memory rejects the rest of the video."""
    try:
        for piece in clips(source.path, options.lengths, options.fps):
            yield (piece.index if isinstance(piece, Clip) else -1), piece
    except MemoryError:
        yield -1, Rejected(reason="memory")


class Examine:
    """Reject a clip that fails the quality filters; holds the scorer, which may be large."""

    def __init__(self, options: Options, scorer: Scorer):
        self.options, self.scorer = options, scorer

    def __call__(self, item: Item) -> Item:
        if not item.waiting():
            return item
        verdict = examine(item.tensors["frames"], self.options.limits, self.scorer)
        numbers = verdict.numbers | {"scorer": verdict.scorer}
        if verdict.reasons:
            return item.rejected(verdict.reasons, **numbers)
        return item.noted(item.tensors, numbers)


def _choose(size: tuple[int, int], options: Options) -> tuple[str, buckets.CropPlan | Rejected]:
    """(resolution, plan) of the first resolution that a source fills."""
    for name in options.resolutions:
        plan = buckets.choose(size, (name,))
        if not isinstance(plan, Rejected) or plan.reason != "small":
            break
    return name, plan


def fit(item: Item, options: Options) -> Item:
    """Crop and shrink a clip to its bucket, or reject it."""
    if not item.waiting():
        return item
    row = item.clip
    name, plan = _choose((row.rows, row.columns), options)
    if isinstance(plan, Rejected):
        return item.rejected((plan.reason,), **plan.numbers)
    frames = buckets.apply(plan, item.tensors["frames"])
    numbers = {"lost": plan.lost, "resolution": name}
    return item.noted({"frames": frames}, numbers, bucket=f"{plan.bucket.name}x{row.frames}")


def lower(item: Item, options: Options) -> Item:
    """Degrade a clip by a record drawn from the options' seed and the clip's key."""
    if not item.waiting():
        return item
    frames = item.tensors["frames"]
    name = json.loads(item.clip.numbers)["resolution"]
    low = options.low_size(name, (frames.shape[1], frames.shape[2]))
    scale = options.scales[options.resolutions.index(name)]
    record = draw(options.seed, item.clip.key, scale=scale, size=low, mix=options.mix)
    degraded = degrade(frames.movedim(-1, 1).float() / 255, record)
    tensors = {"frames": frames, "low": (degraded * 255).round().byte().movedim(1, -1)}
    return item.noted(tensors, degradation=record.to_json())


class Encode:
    """Make latents of both clips and, if the options say so, of the enlarged degraded clip."""

    def __init__(self, options: Options, codec: LatentCodec, device: str = "cpu"):
        self.options, self.codec, self.device = options, codec, device

    def __call__(self, item: Item) -> Item:
        if not item.waiting():
            return item
        frames, low = item.tensors["frames"], item.tensors["low"]
        tensors = {"hr": self._latent(self._video(frames)), "lr": self._latent(self._video(low))}
        if self.options.start == "pixel":
            size = (frames.shape[1], frames.shape[2])
            enlarged = resize(self._video(low), size, "bicubic").clamp(-1, 1)
            tensors["start"] = self._latent(enlarged)
        return item.noted(tensors)

    def _video(self, frames: Tensor) -> Tensor:
        """[T, H, W, 3] bytes -> [1, 3, T, H, W] in -1..1."""
        return frames.to(self.device).movedim(-1, 0)[None].float() / 127.5 - 1

    @torch.no_grad()
    def _latent(self, video: Tensor) -> Tensor:
        latent = self.codec.encode(video)
        sides = tuple(side / self.codec.cell for side in video.shape[-2:])
        if latent.ndim != 5 or tuple(latent.shape[-2:]) != sides:
            raise ValueError(
                f"expected a latent of {sides} cells from {self.codec.name}, got "
                f"{tuple(latent.shape)}; check the codec's cell of {self.codec.cell} pixels and "
                "that the buckets divide by it."
            )
        return latent[0].to("cpu", DTYPES[self.options.dtype])


class Embed:
    """Add the caption's tokens; a caption with words that the encoder does not know rejects."""

    def __init__(self, options: Options, text: Text | None):
        self.options, self.text = options, text
        # The clips of a video follow each other, with one caption.
        self._cached = lru_cache(maxsize=8)(text) if text else None

    def __call__(self, item: Item) -> Item:
        if not item.waiting() or self._cached is None:
            return item
        try:
            tokens = self._cached(item.clip.caption)
        except ValueError as error:
            log.warning("%s: caption: %s", item.clip.source, error)
            return item.rejected(("caption",))
        if tokens.ndim != 2 or not 1 <= len(tokens) <= self.options.text_length:
            raise ValueError(
                f"expected 1 to {self.options.text_length} tokens [L, D] of a caption, got "
                f"{tuple(tokens.shape)}; set text_length to what the model attends to."
            )
        tokens = tokens.to("cpu", DTYPES[self.options.dtype])
        return item.noted(item.tensors | {"text": tokens})


class Write:
    """Put a clip's shard into the folder, whole or not at all; only its row goes on.

    A clip with NaN or infinity, of a codec in half precision for one, is rejected.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, folder: Folder):
        self.folder = folder

    def __call__(self, item: Item) -> Item:
        if not item.waiting():
            return item
        tensors = {name: tensor.contiguous() for name, tensor in item.tensors.items()}
        if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            log.warning("%s: NaN or infinity in %s", item.clip.source, ", ".join(bad))
            return item.rejected(("not_finite",))
        # One entry: safetensors writes several in an order of its own, and bytes must repeat.
        data = save(tensors, {"clip": item.clip.to_json()})
        self.folder.write(self.folder.shard(item.clip.key), data)
        return replace(item, row=replace(item.clip, checksum=checksum_of(data)), tensors={})


def checksum_of(data: bytes) -> str:
    """What `content_hash` says of a file of these bytes."""
    return blake2b(data, digest_size=16).hexdigest()


def read_shard(folder: Folder, row: Row) -> tuple[dict[str, Tensor], Row]:
    """The tensors of a clip, and the row that lies with them.

    Raises:
        FileNotFoundError: there is no such shard.
        ValueError: it has other bytes than it was written with.
    """
    path = folder.shard(row.key)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the shard {path}, got no such file; run "
            "surf_core.training.prepare again as before, it makes what is missing."
        )
    data = path.read_bytes()
    checksum = checksum_of(data)
    if checksum != row.checksum:
        raise ValueError(
            f"expected the shard {path} as it was written, got other bytes; run "
            "surf_core.training.prepare again as before, it makes damaged shards anew."
        )
    note = json.loads(_metadata(data)["clip"])
    return load(data), Row(**{**note, "reasons": tuple(note["reasons"]), "checksum": checksum})


def replay(row: Row) -> Degradation:
    """What was done to a clip, to do it again."""
    return Degradation.from_json(row.degradation)
