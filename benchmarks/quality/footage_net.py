"""Does a small network on the pixels of real footage rank tokens better than pixel detail does?

    python -m benchmarks.quality.footage_net --clips camera generated
    python -m benchmarks.quality.footage_net --clips generated --save pixels.safetensors
    python -m benchmarks.quality.footage_net --clips camera --network pixels.safetensors

The clips, the oracle and the measures are those of `benchmarks.quality.footage`. Videos are put
into folds by their maker, so that no maker has a video both in training and in the test of a fold,
and no video that looks like a tested one is trained on. Each network starts as pixel detail,
exactly, and is trained to multiply it by what the pixels of the enlarged clip say of what was lost,
each clip enlarged by 4 and by 2, 3 or 6. Its control sees the map of pixel detail alone. With
--save one network is trained on all videos and written, and nothing is tested. With --network that
one is tested, and nothing is trained: give clips that it was not trained on.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from math import nan
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.page import Page, command_line, parser, provenance, table
from benchmarks.quality.footage import (
    CELL,
    CHOSEN_ON,
    TAUS,
    TOKEN,
    clips,
    files,
    kept,
    known,
)
from benchmarks.quality.measures import mean_and_error
from surf_core.checkpoint import read_header
from surf_core.resample import resize
from surf_core.skip import down_up, scores
from surf_core.skip.oracle import UNIT
from surf_core.skip.pixel_net import FLOOR, SIDE, PixelNet, load, save
from surf_core.training.mask import auc

CROP, FRAMES_SEEN = 128, 4
"""Pixels along a side of what a step sees, and frames in a row."""
RATIO, OTHERS = 4, (3, 2, 6)
"""Enlargement of every clip, and those of which each clip gets one besides."""
FOLDS = 4
MAKERS = (
    "google", "grok", "happyhorse", "kling", "luma", "runway", "seedance", "vidu", "ltx",
    "txt_to_image", "bernini", "capybara", "causal", "hunyuan", "humo", "wan",
)  # fmt: skip
"""Words in the names of generated videos; what has none of them is its own source."""
ALIKE = 0.9
"""Correlation of two small pictures from which on they show one thing."""
NETWORKS = ("network", "its control")


@dataclass(frozen=True, kw_only=True)
class EnlargedClip:
    """A clip made small and enlarged again."""

    ratio: int
    large: Tensor
    """[F, 3, H, W] in 0..1."""
    lost: Tensor
    """[F, rows, columns], what that has lost of each token, frame by frame."""
    gains: Tensor
    """The oracle's scores of tokens, flat."""


@dataclass(frozen=True, kw_only=True)
class FootageVideo:
    """The clip of a file, and where it comes from."""

    name: str
    group: str
    maker: str
    clips: tuple[EnlargedClip, EnlargedClip]
    """EnlargedClip RATIO times, and one of OTHERS."""
    small: Tensor
    """Few pixels of it, to compare what it shows."""


def enlarged(clip: Tensor, ratio: int) -> EnlargedClip:
    """Make a clip [1, 3, F, H, W] in 0..1 small, and enlarge it."""
    again = down_up(clip, ratio)
    error = (2 * (clip - again)).square().mean(dim=1)[0]
    return EnlargedClip(
        ratio=ratio, large=again.clamp(0, 1)[0].transpose(0, 1).contiguous(),
        lost=UNIT * F.avg_pool2d(error, TOKEN).sqrt(),
        gains=scores(2 * clip - 1, 2 * again - 1, cell=CELL).flatten(),
    )  # fmt: skip


def video_of(folder: Path, name: str, frames: Tensor, number: int = 0) -> FootageVideo:
    """Take the clip of a file that `benchmarks.quality.footage` takes."""
    (clip,) = clips(frames, 1)
    small = resize(clip[0].transpose(0, 1)[::4], (12, 12), "area").flatten(1)
    return FootageVideo(
        name=name, group=folder.name,
        maker=next((word for word in MAKERS if word in name.lower()), name),
        clips=(enlarged(clip, RATIO), enlarged(clip, OTHERS[number % len(OTHERS)])),
        small=F.normalize(small - small.mean(dim=1, keepdim=True), dim=1),
    )  # fmt: skip


def read_all(folders: list[Path], most: int) -> list[FootageVideo]:
    """Read and enlarge the clips of all files."""
    found: list[FootageVideo] = []
    for folder in folders:
        for name, frames in files(folder, most):
            found.append(video_of(folder, name, frames, len(found)))
    return found


def folds_of(videos: list[FootageVideo]) -> list[list[FootageVideo]]:
    """Divide videos into FOLDS, maker by maker, the makers of most videos first."""
    by_maker = defaultdict(list)
    for video in videos:
        by_maker[video.maker].append(video)
    folds: list[list[FootageVideo]] = [[] for _ in range(FOLDS)]
    for several in sorted(by_maker.values(), key=len, reverse=True):
        min(folds, key=len).extend(several)
    return folds


def unlike(videos: list[FootageVideo], tested: list[FootageVideo]) -> list[FootageVideo]:
    """Keep videos that are made by no maker of, and look like none of those that are tested."""
    makers = {video.maker for video in tested}
    looks = torch.cat([video.small for video in tested])
    return [
        video for video in videos
        if video.maker not in makers and (video.small @ looks.T).max() < ALIKE
    ]  # fmt: skip


def drawn(
    clips_of: list[EnlargedClip], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw crops of a few frames in a row, flipped and dimmed: large, lost."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    found = []
    for _ in range(count):
        clip = clips_of[below(len(clips_of))]
        first = below(len(clip.large) - FRAMES_SEEN + 1)
        top, left = (below((side - CROP) // TOKEN + 1) for side in clip.large.shape[-2:])
        light, turns = 0.4 + 0.6 * torch.rand(1, generator=generator), below(4)
        mirrored, parts = below(2), []
        for of, side in ((clip.large, TOKEN), (clip.lost, 1)):
            crop = of[first : first + FRAMES_SEEN].narrow(-2, top * side, CROP // TOKEN * side)
            crop = crop.narrow(-1, left * side, CROP // TOKEN * side).rot90(turns, (-2, -1))
            parts.append(crop.flip(-1) if mirrored else crop)
        found.append((0.5 + (parts[0] - 0.5) * light, parts[1] * light))
    large, lost = (torch.cat(column) for column in zip(*found, strict=True))
    return large, lost


def train(videos: list[FootageVideo], pixels: bool, seed: int, steps: int, batch: int) -> PixelNet:
    """Train on crops of videos: SmoothL1 of the logarithms, of each frame and of the largest."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = PixelNet(pixels)
    by_ratio: dict[int, list[EnlargedClip]] = {}
    for clip in (clip for video in videos for clip in video.clips):
        if min(clip.large.shape[-2:]) >= CROP:
            by_ratio.setdefault(clip.ratio, []).append(clip)
    ratios = [other for other in OTHERS if other in by_ratio] or [RATIO]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for step in range(steps):
        # As often enlarged by RATIO as by all others.
        ratio = RATIO if step % 2 else ratios[step // 2 % len(ratios)]
        large, lost = drawn(by_ratio[ratio], batch, generator)
        squares = F.avg_pool2d(net(large, ratio), TOKEN // SIDE)[:, 0]
        mine = squares.add(1e-12).sqrt()
        loss = sum(
            F.smooth_l1_loss((one + FLOOR).log(), (other + FLOOR).log())
            for one, other in (
                (mine, lost),
                (mine.unflatten(0, (batch, -1)).amax(1), lost.unflatten(0, (batch, -1)).amax(1)),
            )
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return net.eval()


def tokens(net: PixelNet, clip: EnlargedClip) -> Tensor:
    """Score the tokens of a clip, flat."""
    size = (int(clip.large.shape[-2]), int(clip.large.shape[-1]))
    return net.scores(clip.large.transpose(0, 1)[None], size, clip.ratio, cell=CELL).flatten()


def unseen(path: Path, videos: list[FootageVideo]) -> PixelNet:
    """Read a network of --save, and refuse videos that it was trained on."""
    known = json.loads(read_header(path).metadata["surf.notes"])["videos"]
    again = sorted({video.name for video in videos} & set(known))
    if again:
        raise ValueError(
            f"expected clips that {path.name} was not trained on, got {again[0]} and "
            f"{len(again) - 1} more; give another folder."
        )
    return load(path)


@torch.inference_mode()
def measured(net: PixelNet, video: FootageVideo) -> dict[str, float]:
    """Compare the scores of a network with the oracle's."""
    clip, other = video.clips
    by, gains, by_other = tokens(net, clip), clip.gains, tokens(net, other)
    lost, must_other = gains.square(), other.gains >= TAUS[1]
    mixed_other = 0 < must_other.sum() < len(must_other)
    found = {
        "energy in the better half, %": kept(lost, by),
        "the same, other enlargement, %": kept(other.gains.square(), by_other),
        "AUC, tau 5, other enlargement": auc(by_other, must_other) if mixed_other else nan,
    }
    for tau in TAUS:
        must = gains >= tau
        mixed = 0 < must.sum() < len(must)
        found[f"AUC, tau {tau:g}"] = auc(by, must) if mixed else nan
        count = int(must.sum())
        found[f"energy, tau {tau:g}, %"] = (
            100 * (lost[by.topk(count).indices].sum() / lost[must].sum()).item()
            if mixed else nan
        )  # fmt: skip
    return found


def laid_out(rows: dict[str, dict[str, list[Tensor]]], groups: list[str]) -> list[str]:
    """Lay out means over videos, and paired differences to pixel detail, group by group."""
    lines = []
    for group in sorted(set(groups)):
        inside = torch.tensor([each == group for each in groups])
        if inside.sum() < 2:
            continue
        lines += [f"## {group}: {inside.sum()} files", ""]
        names = list(rows["pixel detail"])
        body = []
        for score, values in rows.items():
            cells = []
            for name in names:
                digits = 4 if name.startswith("AUC") else 2
                mine = torch.stack(values[name])[:, inside]
                plain = torch.stack(rows["pixel detail"][name])[:, inside].mean(dim=0)
                cell = mean_and_error(known(mine.mean(dim=0)), digits)
                if score != "pixel detail":
                    change = mine - plain
                    seeds = change.nanmean(dim=1)
                    cell += (f"; {mean_and_error(known(change.mean(dim=0)), digits)} "
                             f"[{seeds.min():.{digits}f}, {seeds.max():.{digits}f}]")  # fmt: skip
                cells.append(cell)
            body.append([score, *cells])
        lines += [*table(" | ".join(["score", *names]), body), ""]
    return lines


LEGEND = """Means over files +- standard errors; then the paired difference to pixel detail, +- its
standard error over files, and in brackets the mean differences of the seeds that gain least and
most. `energy` is what enlarging loses, summed over the better half of the tokens, in percent of
all; at a tau, over as many tokens as the oracle takes, in percent of what those lose. Clips are
enlarged by 4; the other enlargement is by 2, 3 or 6, one for each file. `network`
sees the enlarged frames, `its control` the map of pixel detail alone. Every file is scored by
networks that saw no file of its maker."""


def main() -> None:
    line = parser(__doc__)
    line.add_argument("--clips", type=Path, nargs="+", required=True, help="folders of videos")
    line.add_argument("--save", type=Path, help="a file for one network of all videos")
    line.add_argument("--network", type=Path, help="a file of --save, tested in place of training")
    line.add_argument("--most", type=int, default=100, help="files of a folder, evenly chosen")
    line.add_argument("--seeds", type=int, default=3, help="networks of a fold")
    line.add_argument("--steps", type=int, default=250, help="of each network")
    line.add_argument("--batch", type=int, default=4, help="crops of a step")
    args = line.parse_args()
    videos = read_all(args.clips, args.most)
    if args.save:
        notes = {"command": command_line(__spec__.name), "origin": provenance(),
                 "videos": sorted(video.name for video in videos)}  # fmt: skip
        net = train(videos, True, 0, args.steps, args.batch)
        save(args.save, net.state_dict(), notes)
        return
    folds = folds_of(videos)
    groups = [
        video.group + (", chosen on" if video.name in CHOSEN_ON else "")
        for fold in folds for video in fold
    ]  # fmt: skip
    rows: dict[str, dict[str, list[Tensor]]] = {}
    title = "Does a small network on pixels rank tokens better than pixel detail?"
    with Page(__spec__.name, title, args.out, LEGEND) as page:
        untrained = PixelNet(pixels=False)
        found = [measured(untrained, video) for fold in folds for video in fold]
        rows["pixel detail"] = {n: [torch.tensor([f[n] for f in found])] for n in found[0]}
        if args.network:
            net = unseen(args.network, videos)
            found = [measured(net, video) for fold in folds for video in fold]
            rows["network"] = {n: [torch.tensor([f[n] for f in found])] for n in found[0]}
            page.write([*laid_out(rows, groups), page.origin("A clip of 13 frames of each file")])
        for seed in range(0 if args.network else args.seeds):
            for score in NETWORKS:
                began, found = time.time(), []
                for number, fold in enumerate(folds):
                    seen = unlike(videos, fold)
                    net = train(seen, score == "network", seed, args.steps, args.batch)
                    found += [measured(net, video) for video in fold]
                    print(score, seed, number, len(seen), round(time.time() - began), flush=True)
                for name in found[0]:
                    values = torch.tensor([each[name] for each in found])
                    rows.setdefault(score, {}).setdefault(name, []).append(values)
                weights = sum(p.numel() for p in net.parameters())
                how = (
                    f"{seed + 1} seed(s), {FOLDS} folds by maker, {args.steps} steps of "
                    f"{args.batch} crops of {CROP} pixels and {FRAMES_SEEN} frames, "
                    f"{weights} weights, a clip of 13 frames of each file"
                )
                page.write([*laid_out(rows, groups), page.origin(how)])


if __name__ == "__main__":
    main()
