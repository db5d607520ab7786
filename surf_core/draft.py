"""Write and read drafts as .safetensors files: latents in their own dtype, and what made them.

Dims: B batch, C channels, T latent frames, H, W latent cells.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .checks import check_latent
from .digest import digest
from .header import FLOATS, Header, json_object, listed, read_header, short, version_of, write

FORMAT = 1
VERSION_KEY, ABOUT_KEY = "surf.draft.format", "surf.draft.config"
SEAL_KEY = "surf.draft.seal"
"""Digest of the config and the tensors; files of the first versions have none."""
REMEDY = "restore the file from a copy, or make the draft again"
"""What to do about a damaged draft."""
ENDING = ".draft.safetensors"
VIDEO, AUDIO, VIDEO_MASK, AUDIO_MASK = "video", "audio", "video_mask", "audio_mask"
NAMES = (VIDEO, AUDIO, VIDEO_MASK, AUDIO_MASK)
"""Names of tensors; a file has the first at least."""
MOST_MORE = 2**21
"""Characters of other texts in the metadata, such as the graph of the host."""
MOST_ITEMS = 2**16
"""Of a batch; the host draws the noise of all items up to one's number."""
_LARGEST = 2**64 - 1
Plain = int | float | str | bool
"""What the record of a run holds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draft:
    """Latents of a batch, and what belongs to them."""

    tensors: Mapping[str, Tensor]
    """By NAMES: video [B, C, (T,) H, W], audio of four axes, and their noise masks."""
    batch_index: tuple[int, ...] | None = None
    """Number of each item, by which its noise is drawn."""
    made_for: tuple[int, int] | None = None
    """Height and width in pixels of the first steps."""
    record: Mapping[str, Plain] = field(default_factory=dict)
    """Seed and settings of the run."""

    def __post_init__(self) -> None:
        """Refuse tensors and numbers that cannot belong together."""
        self._check_tensors()
        count = len(self.tensors[VIDEO])
        index, size = self.batch_index, self.made_for
        if index is not None and (len(index) != count or not all(map(_is_place, index))):
            raise ValueError(f"batch_index {short(index)} for {count} items")
        if size is not None and (len(size) != 2 or not all(map(_is_number, size)) or 0 in size):
            raise ValueError(f"a size of {short(size)}")
        for name, value in self.record.items():
            if not isinstance(name, str) or not isinstance(value, Plain):
                raise ValueError(f"a record of {short(name)}: {short(value)}")
        seed = self.record.get("seed", 0)
        if not _is_number(seed):
            raise ValueError(f"a seed of {short(seed)}")

    def _check_tensors(self) -> None:
        names = self.tensors.keys()
        if VIDEO not in names or names - set(NAMES):
            raise ValueError(f"tensors {listed(sorted(names), ', ') or 'none'}")
        video, audio = self.tensors[VIDEO], self.tensors.get(AUDIO)
        check_latent(video, VIDEO)
        if audio is not None:
            check_latent(audio, AUDIO)
            if (video.ndim, audio.ndim) != (5, 4) or len(video) != len(audio):
                raise ValueError(f"video {tuple(video.shape)} and audio {tuple(audio.shape)}")
        elif AUDIO_MASK in names:
            raise ValueError("a mask of audio without audio")


def save_draft(path: Path, draft: Draft, more: Mapping[str, str]) -> None:
    """Write a draft, whole or not at all.

    Args:
        more: other texts for the metadata.

    Raises:
        ValueError: NaN or infinity.
    """
    about = {
        "batch_index": draft.batch_index, "made_for": draft.made_for, "record": dict(draft.record),
    }  # fmt: skip
    text = json.dumps(about, sort_keys=True)
    ours = {VERSION_KEY: str(FORMAT), ABOUT_KEY: text, SEAL_KEY: digest([text, draft.tensors])}
    # The parts of a video with sound may share memory, which the format refuses.
    write(path, {name: x.clone() for name, x in draft.tensors.items()}, {**more, **ours})


def load_draft(path: Path) -> Draft:
    """Read a draft that `save_draft` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of ours, a newer format, or damaged.
    """
    header = read_header(path, REMEDY)
    if not {VERSION_KEY, ABOUT_KEY} <= header.metadata.keys():
        raise ValueError(
            f"expected a draft that Surf Save Draft wrote, {short(path)} is not one, its metadata "
            f"has {listed(sorted(header.metadata), ', ') or 'nothing'}; take the loader of its "
            "kind, for a .latent Load Latent."
        )
    version_of(header.metadata[VERSION_KEY], FORMAT, header)
    try:
        draft = _draft(header, json_object(header.metadata[ABOUT_KEY]))
    except ValueError as error:
        raise ValueError(
            f"expected a draft in {short(path)}, got {short(error)}; it is damaged: {REMEDY}."
        ) from error
    _check_seal(header, draft)
    return draft


def _check_seal(header: Header, draft: Draft) -> None:
    """Refuse a file that holds another thing than was saved; one without a seal passes."""
    expected = header.metadata.get(SEAL_KEY)
    found = digest([header.metadata[ABOUT_KEY], draft.tensors])
    if expected not in (None, found):
        raise ValueError(
            f"expected {short(header.path)} as it was saved, with the seal {short(expected)}, got "
            f"other bytes, with {found}; it was damaged since: {REMEDY}."
        )


def _draft(header: Header, about: dict[str, Any]) -> Draft:
    names = header.shapes.keys()
    if names - set(NAMES):
        raise ValueError(f"tensors {listed(sorted(names), ', ')}")
    odd = [f"{name} of dtype {kind}" for name, kind in header.dtypes.items() if kind not in FLOATS]
    if odd:
        raise ValueError(listed(odd))
    if unknown := sorted(about.keys() - {"batch_index", "made_for", "record"}):
        raise ValueError(f"unknown fields {listed(unknown, ', ')}")
    fields = {name: about.get(name) for name in ("batch_index", "made_for")}
    for name, value in fields.items():
        if value is not None and not isinstance(value, list):
            raise ValueError(f"{name} = {short(value)}")
    record = about.get("record")
    if not isinstance(record, dict):
        raise ValueError(f"record = {short(record)}")
    given = {name: None if x is None else tuple(x) for name, x in fields.items()}
    return Draft(tensors=header.tensors(), record=record, **given)


def _is_place(value: Any) -> bool:
    """Say whether the host could draw noise for an item of this number."""
    return _is_number(value) and value < MOST_ITEMS


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
