# SPDX-License-Identifier: Apache-2.0
"""How far a model's pass over a large image is, which takes minutes and has no steps that could be counted.

    with shown(net, "compress in.png", (4032, 6016), probe=lambda: net.compress(small)):
        net.compress(x)

The work of a layer is its number of weights, for each position that it is applied to. A pass over the small
image of 64x64 pixels tells the work of a pixel. Layers differ in speed, so the meter is no even clock.

In:  a model, the sides of the padded image in pixels. Out: a `progress.Meter` on stderr, for images of
SMALLEST pixels and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..progress import Meter

__all__ = ["PROBE_PX", "SMALLEST", "is_large", "shown"]

SMALLEST = 2**22
PROBE_PX = 64


def is_large(size: tuple[int, int]) -> bool:
    """Whether a pass over an image of these sides is shown."""
    return math.prod(size) >= SMALLEST


@contextmanager
def shown(net: nn.Module, title: str, size: tuple[int, int], probe: Callable[[], Any]) -> Iterator[None]:
    """A context whose work is shown, if the image is large.

    Args:
        net: the model.
        title: what is done.
        size: padded sides of the image.
        probe: does the same for an image of PROBE_PX x PROBE_PX pixels.
    """
    if not is_large(size):
        yield
        return
    small = 0.0

    def add(work: float) -> None:
        nonlocal small
        small += work

    with _counted(net, add), torch.no_grad():
        probe()
    done = 0.0
    with Meter(title, small * math.prod(size) / PROBE_PX**2, unit=None) as meter:

        def show(work: float) -> None:
            nonlocal done
            done += work
            meter.at(done)

        with _counted(net, show):
            yield


@contextmanager
def _counted(net: nn.Module, add: Callable[[float], None]) -> Iterator[None]:
    """Within, every layer that was applied tells its work."""

    def after(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        places = [t.shape[0] * math.prod(t.shape[2:]) for t in (*inputs, output) if isinstance(t, Tensor)]
        own = "forward" in vars(layer)  # `float64`, where the layers inside are not called
        add(min(places, default=0) * sum(p.numel() for p in layer.parameters(recurse=own)))

    layers = [
        layer
        for layer in net.modules()
        if "forward" in vars(layer) or next(layer.parameters(recurse=False), None) is not None
    ]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
