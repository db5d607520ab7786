"""Do the embedded models draw what they are asked for? A large thing, and a swarm of beads.

    python -m benchmarks.quality.prompts --pairs 128 --state runs/prompts

For held-out prompts: the full-resolution baseline, the SURF preview, the preview refined to twice
the baseline's size, and the controls: grey, another seed, the videos of the next prompt, half the
resolution directly, fewer steps at full resolution, among them as many operations as a preview's,
and the clean estimate at the switch averaged down. Read from pixels by `surf_core.tiny.adherence`;
the same reading of painted scenes, and of what the VAE leaves of them, says how far it can be
trusted.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import Page, table
from benchmarks.quality.held_out import (
    LOW,
    REFINE,
    Switched,
    batches,
    painted,
    prompts,
    schedule,
    seeds,
    things,
)
from benchmarks.quality.measures import (
    ASKED,
    RIGHT,
    Rows,
    answers,
    arguments,
    mean_and_error,
    share_and_error,
)
from benchmarks.quality.saved_rows import SavedRows, Values, fingerprint
from surf_core.flow import euler
from surf_core.resample import resize
from surf_core.reshift import inherit_noise
from surf_core.tiny.demo import SMALL, Settings, steps_of_equal_cost
from surf_core.tiny.model import PIXELS, VAE, TinyT2V, to_latent, to_pixels
from surf_core.tiny.refiner import TinyRefiner


def sampled(numbers: list[int], args) -> dict[str, Tensor]:
    """Sample the videos of each stage and of the controls, in 0..1."""
    s, half, asked = Settings(), (LOW, LOW), prompts(numbers)
    made = Switched(TinyT2V(asked, args.weights), numbers)
    small = made.preview(s.switch_step, s.noise_policy, s.sigma_policy)
    refined = TinyRefiner(asked, args.refiner)(
        small, seeds(numbers, REFINE), steps=s.refine_steps, cfg=s.refine_cfg, window=s.window
    )
    large, low = f"{PIXELS} pixels", f"{SMALL} pixels"
    whole = to_pixels(made.baseline)
    latents = {
        f"full resolution, another seed, {large}": euler(made.high, made.other, made.sigmas),
        f"direct, {low}": euler(made.low, inherit_noise(made.noise, half), made.sigmas),
    }
    for fewer in sorted({round(0.3 * s.steps), steps_of_equal_cost(s), round(0.5 * s.steps)}):
        latents[f"{fewer} steps at full resolution, {large}"] = euler(
            made.high, made.noise, schedule(fewer)
        )
    known = resize(made.clean[s.switch_step - 1], half, "area")
    latents |= {
        f"the switch without low steps, {low}": known, f"SURF preview, {low}": small,
        f"SURF refined, {2 * PIXELS} pixels": refined,
    }  # fmt: skip
    return {
        f"full resolution, {large}": whole,
        f"full resolution, the next prompt's video, {large}": whole.roll(1, 0),
        f"grey, {large}": whole.mean(dim=(2, 3, 4), keepdim=True).expand_as(whole),
    } | {name: to_pixels(latent) for name, latent in latents.items()}


def values_of(numbers: list[int], args) -> Values:
    """Read the painted scenes, and what is sampled of their prompts."""
    videos = {}
    for size in (PIXELS, SMALL):
        videos[f"painted, {size} pixels"] = painted(numbers, size)
        copy = to_pixels(to_latent(videos[f"painted, {size} pixels"]))
        videos[f"painted, through the VAE, {size} pixels"] = copy
    videos |= sampled(numbers, args)
    return {name: answers(video, things(numbers)) for name, video in videos.items()}


def laid_out(rows: Rows) -> list[str]:
    """Lay out what is right, in percent."""
    return table(" | ".join(["right, %", *ASKED, "of all things"]), (
        [name, *(share_and_error(rows[name][asked]) for asked in ASKED),
         mean_and_error(rows[name][RIGHT], 1, 100.0)]
        for name in rows.parts
    ))  # fmt: skip


LEGEND = """Share of videos in which it is right, with its standard error. Some full steps are the
paper's rows of 30 and 50 % of all, others cost as much as the preview; `the switch without low
steps` is the clean estimate at the switch, averaged down."""


def main() -> None:
    line = arguments(__doc__, pairs=128)
    line.add_argument("--state", type=Path, help="folder of what is done, to go on from")
    args, s, rows = line.parse_args(), Settings(), Rows()
    saved = SavedRows(args.state, fingerprint(args.weights, args.refiner, VAE, s, ASKED))
    title = "Do the embedded models draw what they are asked for?"
    with torch.inference_mode(), Page(__spec__.name, title, args.out, LEGEND) as page:
        for part in batches(list(range(args.pairs)), args.batch):
            found = saved.batch(part, lambda part=part: values_of(part, args))
            for name, values in found.items():
                rows.add(name, values)
            how = (
                f"{part[-1] + 1} held-out prompts, {s.steps} steps, shift {s.shift}, cfg {s.cfg} / "
                f"{s.cfg_low}, switch at {s.switch_step}; binomial standard errors, over prompts "
                "for all things"
            )
            page.write([*laid_out(rows), "", page.origin(how)])


if __name__ == "__main__":
    main()
