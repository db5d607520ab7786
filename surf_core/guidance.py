"""Guidance at little more than half its price: the difference that a prompt makes is held.

Guidance runs a model twice, with the prompt and without. The difference of the two velocities
changes little from one evaluation to the next, so the second run can be left out on most of them.
"""

from math import ceil

from torch import Tensor

from .checks import check_range

HOLD_EVERY = 3
"""Evaluations that one difference serves, where nothing else is asked for."""


class HeldDifference:
    """What a prompt changes, over the evaluations of one run at one size.

    Args:
        every: an evaluation without the prompt is made for the first of so many, from 1, which
            is plain guidance.

    Raises:
        ValueError: every < 1.

    Source: ours; FasterCache (Lv et al.) holds it too, by frequencies.
    """

    def __init__(self, every: int):
        check_range(every, "every", 1, 10000, "use 1 for plain guidance, or 3")
        self.every = every
        self.evaluations = self.guided = 0
        self.difference: Tensor | None = None
        self._since = 0

    def due(self, z: Tensor) -> bool:
        """Whether the evaluation of z that begins must run without the prompt, too; counts it.

        A latent of another size than the difference begins anew.
        """
        if self.difference is None or self.difference.shape != z.shape:
            self._since = 0
        due = self._since % self.every == 0
        self._since += 1
        self.evaluations += 1
        self.guided += due
        return due


def held_forwards(steps: int, every: int) -> int:
    """Count the runs of the model in `steps` guided evaluations with a held difference."""
    return steps + ceil(steps / every)
