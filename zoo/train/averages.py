# SPDX-License-Identifier: Apache-2.0
"""Moving averages of a model's parameters over several time spans, kept during training.

When the learning rate falls, an average of the weights over the last steps is better than the weights
themselves. The best time span is not known in advance, so several averages are kept and the held-out
photographs decide between them. All averages are updated together every few steps by one operation on lists
of tensors, which costs a hundredth of a step.

In:  a model; `update` after its steps. Out: `swapped`, the model with an average instead of its own weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["DECAYS", "EVERY", "Averages"]

DECAYS = (0.99, 0.998, 0.9995)  # a step: memories of 100, 500 and 2,000 steps
EVERY = 4


class Averages:
    """Exponential moving averages that start as plain ones, so that they forget the first steps.

    Args:
        model: its parameters are averaged, its buffers are not.
        decays: one average for each: the weight of the old average in one step.
    """

    def __init__(self, model: nn.Module, decays: tuple[float, ...] = DECAYS) -> None:
        self.decays = decays
        self.parameters = [p.data for p in model.parameters()]
        self.means = {decay: [p.clone() for p in self.parameters] for decay in decays}
        self.count = 0

    def update(self) -> None:
        """Call after every step; every `EVERY` calls the averages take the parameters."""
        self.count += 1
        if self.count % EVERY == 0:
            for decay, mean in self.means.items():
                weight = max(1 - decay**EVERY, 10 / (10 + self.count / EVERY))
                torch._foreach_lerp_(mean, self.parameters, weight)

    @contextmanager
    def swapped(self, decay: float) -> Iterator[None]:
        """The model with the average of this decay; its own weights are put back at the end of the block.

        Args:
            decay: one of `decays`; 0 leaves the model's own weights.
        """
        if decay == 0:
            yield
            return
        own = [p.clone() for p in self.parameters]
        torch._foreach_copy_(self.parameters, self.means[decay])
        try:
            yield
        finally:
            torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> dict[str, object]:
        return {"means": self.means, "count": self.count}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        for decay, mean in state["means"].items():
            torch._foreach_copy_(self.means[decay], mean)
        self.count = state["count"]
