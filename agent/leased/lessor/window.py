# SPDX-License-Identifier: Apache-2.0
"""A window: how much somebody has used lately, in capacity x ns.

Rule: the last `STEPS` steps of time count, what is older does not; where there is a half-life, what
is older counts less. The sums are exact; time that the host was down did not pass. What counts of
the steps that are over is worked out once a step, so that asking is cheap.

Is not sealed: a restart begins with empty windows, which favours nobody.
"""

from __future__ import annotations

from leased.lessor.fairness import decay_weights

STEPS = 32


class Window:
    """What one tenant has used, step by step. `_over` is what counts of the steps before `_step`,
    with the weights it was worked out for.
    """

    __slots__ = ("_held", "_over", "_since_ns", "_step", "_steps", "_weights")

    def __init__(self, held: int, now_ns: int) -> None:
        self._held = held
        self._since_ns = now_ns
        self._steps: dict[int, int] = {}
        self._step = -1
        self._over = 0
        self._weights: tuple[int, ...] = ()

    def hold(self, held: int, now_ns: int, step_ns: int) -> None:
        """From `now_ns` on, it has `held`."""
        self._pass(now_ns, step_ns)
        self._held = held

    def used(self, now_ns: int, step_ns: int, weights: tuple[int, ...]) -> int:
        """What counts of what it has used."""
        self._pass(now_ns, step_ns)
        current = now_ns // step_ns
        if current != self._step or weights is not self._weights:
            self._step, self._weights = current, weights
            self._over = sum(
                amount * weights[current - step]
                for step, amount in self._steps.items()
                if 0 < current - step < len(weights)
            )
        return self._over + self._steps.get(current, 0) * weights[0]

    def _pass(self, now_ns: int, step_ns: int) -> None:
        since_ns = self._since_ns
        if now_ns == since_ns:
            return
        self._since_ns = now_ns
        if now_ns < since_ns:  # another boot's clock
            shift = now_ns // step_ns - since_ns // step_ns
            self._steps = {step + shift: amount for step, amount in self._steps.items()}
            self._step = -1
            return
        if not self._held:
            return
        last = now_ns // step_ns
        if since_ns // step_ns == last:
            self._steps[last] = self._steps.get(last, 0) + self._held * (now_ns - since_ns)
            return
        first = max(since_ns // step_ns, last - STEPS)
        for step in range(first, last + 1):
            begin, end = max(since_ns, step * step_ns), min(now_ns, (step + 1) * step_ns)
            if end > begin:
                self._steps[step] = self._steps.get(step, 0) + self._held * (end - begin)
        if len(self._steps) > 2 * STEPS:
            oldest = last - STEPS
            self._steps = {step: n for step, n in self._steps.items() if step > oldest}


def weights_of(window_ns: int, half_life_ns: int) -> tuple[int, tuple[int, ...]]:
    """The length of a step, and what a step of each age counts."""
    step_ns = max(1, window_ns // STEPS)
    return step_ns, decay_weights(STEPS, step_ns, half_life_ns)
