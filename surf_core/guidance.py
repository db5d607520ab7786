"""Guidance at little more than half its price: the difference that a prompt makes is held.

Guidance runs a model twice, with the prompt and without. The difference of the two velocities
changes slowly from one evaluation to the next, so the run without the prompt can be left out on
most of them.
"""

from math import ceil

import torch
from torch import Tensor

from .checks import check_range

HOLD_EVERY = 3
"""Evaluations that one difference serves, where nothing else is asked for."""


class HeldDifference:
    """What a prompt changes, over the evaluations of one run at one size.

    A run without the prompt is due at the first of every so many evaluations. From the second one
    on, the difference goes on along the line through the last two, as far again as they lie apart.

    Args:
        every: evaluations that one such run serves, from 1, which is plain guidance.

    Raises:
        ValueError: every < 1.

    Source: ours; FasterCache (Lv et al.) holds the difference too, by frequencies.
    """

    def __init__(self, every: int):
        check_range(every, "every", 1, 10000, "use 1 for plain guidance, or 3")
        self.every = every
        self.evaluations = self.guided = 0
        self._since = 0
        self._known: list[tuple[Tensor, Tensor]] = []

    def due(self, z: Tensor) -> bool:
        """Whether the evaluation of z that begins must run without the prompt, too; counts it.

        A latent of another size than the differences begins anew.
        """
        if not self._known or self._known[-1][1].shape != z.shape:
            self._since, self._known = 0, []
        due = self._since % self.every == 0
        self._since += 1
        self.evaluations += 1
        self.guided += due
        return due

    def learn(self, level: Tensor, difference: Tensor) -> None:
        """Keep the difference of an evaluation that was due.

        Args:
            level: sigma or t, of no dims or broadcastable to the difference.
            difference: velocity with the prompt less that without, shaped like z; not changed.
        """
        self._known = [*self._known[-1:], (level, difference)]

    def at(self, level: Tensor) -> Tensor:
        """The difference at a level between two that are due; reads nothing back from a device."""
        last, difference = self._known[-1]
        if len(self._known) == 1:
            return difference
        before, earlier = self._known[0]
        share = torch.nan_to_num((level - last) / (last - before), 0, 0, 0).clamp(-1, 1)
        return difference + share * (difference - earlier)


def held_forwards(steps: int, every: int) -> int:
    """Count the runs of the model in `steps` guided evaluations with a held difference."""
    return steps + ceil(steps / every)
