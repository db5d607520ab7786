"""Save drafts in the host's output folder; load them from there and from its input folder."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import comfy.cli_args
import folder_paths

from ....surf_core.draft import (
    AUDIO,
    AUDIO_MASK,
    ENDING,
    MOST_MORE,
    VIDEO,
    VIDEO_MASK,
    Draft,
    load_draft,
    save_draft,
)
from ....surf_core.header import UNFINISHED, discard, short, was_killed
from ..conditioning import MADE_FOR
from ..disk import writing
from ..draft_record import KEY, record_of
from ..latents import check_companions
from ..nested import Parts, join_mask, split, split_mask
from ..node import NodeLog
from .items import INDEX

log = NodeLog(__name__)

LONGEST = 200
"""Bytes of the beginning of a file's name: with number and ending it stays below 255."""
LEVELS = 5
"""Of folders that are looked through for drafts: prefixes with dates make some."""
OUTPUT = " [output]"
"""As the host writes behind the name of a file that is in its output folder."""


def save(latent: dict, prefix: str, graph: dict[str, Any]) -> tuple[str, str]:
    """Save a LATENT as a new file in the host's output folder.

    Args:
        latent: one draft or several; video with audio, too. Not changed.
        prefix: of the file's name, folders below the output folder in front; as in Save Latent.
        graph: name -> what the host saves of the graph; left out where it is told to save none.

    Returns:
        (name, folder below the output folder).

    Raises:
        ValueError: no usable latent, no name, a folder outside of the output folder, or one that
            takes no file.
    """
    draft, output = _of_latent(latent), folder_paths.get_output_directory()
    # The host takes spaces off the ends of a name that is loaded.
    bare = prefix == prefix.strip()
    if not prefix.isprintable() or not bare or not 0 < len(prefix.encode()) <= LONGEST:
        raise ValueError(
            f"expected filename_prefix of printable characters, no space at its ends, 1 to "
            f"{LONGEST} bytes, got {len(prefix)} characters: {short(repr(prefix))}; write a name "
            "such as drafts/ComfyUI."
        )
    _check_inside(output, os.path.join(output, os.path.normpath(prefix)), prefix)
    with writing("output"):
        folder, name, counter, below, _ = folder_paths.get_save_image_path(prefix, output)
        file = f"{name}_{counter:05}_{ENDING}"
        _clear(Path(folder))
        save_draft(Path(folder, file), draft, _texts(graph))
    log.info("saved as %s", os.path.join(below, file))
    return file, below


def _clear(folder: Path) -> None:
    """Remove what saves of drafts left in a folder when they were killed."""
    ours = re.compile(rf".+_\d{{5,}}_{re.escape(ENDING + UNFINISHED)}")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and was_killed(path):
            discard(path)


def _of_latent(latent: dict) -> Draft:
    parts = split(latent.get("samples"), "draft")
    check_companions(latent, parts.video, "draft")
    masks = split_mask(latent.get("noise_mask"))
    index, made_for = latent.get(INDEX), latent.get(MADE_FOR)
    tensors = {VIDEO: parts.video, AUDIO: parts.audio, VIDEO_MASK: masks[0], AUDIO_MASK: masks[1]}
    try:
        return Draft(
            tensors={name: x for name, x in tensors.items() if x is not None},
            batch_index=None if index is None else tuple(map(int, index)),
            made_for=None if made_for is None else tuple(made_for),
            record=record_of(latent),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected a latent that a draft can be saved of, got {error}; look at the node that "
            "made it."
        ) from error


def graph_of(hidden: Any) -> dict[str, Any]:
    """Return the graph that the host hands a node beside its inputs; {} outside of the host."""
    if hidden is None:
        return {}
    return {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}


def _texts(graph: dict[str, Any]) -> dict[str, str]:
    """Return what of the graph goes into the file: as the host's own nodes save it."""
    if comfy.cli_args.args.disable_metadata:
        return {}
    texts = {name: json.dumps(x) for name, x in graph.items() if x is not None}
    if sum(map(len, texts.values())) > MOST_MORE:
        log.warning("the graph is too large to be saved with the draft; save it by itself.")
        return {}
    return texts


def draft_names() -> list[str]:
    """List the drafts in the host's input and output folders, and in a few levels below them."""
    found = []
    for folder, mark in (
        (folder_paths.get_input_directory(), ""),
        (folder_paths.get_output_directory(), OUTPUT),
    ):
        root = Path(folder)
        paths = sorted(path for n in range(LEVELS) for path in root.glob(f"{'*/' * n}*{ENDING}"))
        found += [f"{path.relative_to(root).as_posix()}{mark}" for path in paths]
    return found


def path_of(name: str) -> Path:
    """Find the file of one of `draft_names()`, or of another name in the input or output folder.

    Raises:
        ValueError: no such file, or one elsewhere.
    """
    plain, folder = folder_paths.annotated_filepath(name)
    plain, folder = plain.strip(), folder or folder_paths.get_input_directory()
    if not plain:
        raise ValueError(
            "expected the name of a draft, got none; save one with Surf Save Draft, press R, and "
            "choose it of the list."
        )
    allowed = (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    path = os.path.join(folder, plain)
    if folder not in allowed:
        raise ValueError(
            f"expected a draft in the input or output folder, got {short(name)}; choose one of "
            "the list."
        )
    if not name.isprintable():
        raise ValueError(f"expected the name of a file, got {short(repr(name))}; choose one.")
    _check_inside(folder, path, name)
    if not os.path.isfile(path):
        raise ValueError(
            f"expected a draft that Surf Save Draft saved, got {short(name)}, which is not there; "
            "choose another, or put it into the input folder."
        )
    return Path(path)


def _check_inside(folder: str, path: str, name: str) -> None:
    """Refuse a path that leaves a folder."""
    root, whole = os.path.abspath(folder), os.path.abspath(path)
    if os.path.splitdrive(root)[0] != os.path.splitdrive(whole)[0] or (
        os.path.commonpath((root, whole)) != root
    ):
        raise ValueError(
            f"expected a name below the input or output folder of ComfyUI, got {short(name)}, "
            "which leaves it; take the parts with .. away."
        )


def load(name: str) -> tuple[dict, str]:
    """Load a draft: its LATENT, and what made it as text.

    Raises:
        ValueError: no such file, no draft, a damaged one, or one of a newer version.
    """
    draft = load_draft(path_of(name))
    tensors = draft.tensors
    parts = Parts(tensors[VIDEO], tensors.get(AUDIO))
    masks = tensors.get(VIDEO_MASK), tensors.get(AUDIO_MASK)
    latent: dict[str, Any] = {"samples": parts.joined()}
    if any(mask is not None for mask in masks):
        plain = masks[1] is None
        latent["noise_mask"] = masks[0] if plain else join_mask(*masks, parts)
    if draft.batch_index is not None:
        latent[INDEX] = list(draft.batch_index)
    if draft.made_for is not None:
        latent[MADE_FOR] = draft.made_for
    if draft.record:
        latent[KEY] = dict(draft.record)
    check_companions(latent, parts.video, "draft")
    return latent, _plan(draft)


def _plan(draft: Draft) -> str:
    """Say what made a draft, a line for each number."""
    lines = {name: tuple(x.shape) for name, x in draft.tensors.items()}
    known = {"batch_index": draft.batch_index, "made_for": draft.made_for, **draft.record}
    lines |= {name: x for name, x in known.items() if x is not None}
    return "\n".join(f"{name}: {x}" for name, x in lines.items())


def fingerprint(name: Any) -> str:
    """Return what changes when a file does, as the host's own loaders do; "" for a link."""
    if not isinstance(name, str):
        return ""
    return hashlib.sha256(path_of(name).read_bytes()).hexdigest()


def check_draft_file(draft: Any) -> None:
    """Refuse a name of no file when the graph is queued."""
    path_of(str(draft))
