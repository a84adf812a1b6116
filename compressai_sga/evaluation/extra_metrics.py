# SPDX-License-Identifier: Apache-2.0
"""Further metrics of an evaluation: of each image, and of the whole set at its end.

Stock's `compute_metrics` sees every image pair; `take` measures the same pairs, rounded to 8 bits
as stock rounds them. A metric of a whole set needs all reconstructions at the end, also those of an
earlier command that was interrupted. So `pictures` gives them as PNG text for the journal, and `add`
reads that text.

In:  names of `metrics.METRICS` and `metrics.SET_METRICS`. Out: numbers by name.
Fails with `SgaError` naming the package or weight file that a metric lacks.
"""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from ..metrics import METRICS, SET_METRICS, SetMetric

__all__ = ["Measures"]


class Measures:
    """The further metrics of one run (one model over all images).

    Args:
        names: what to measure.
        suffixes: of the keys of the results: "" and, with refinement, "-unrefined".
    """

    def __init__(self, names: Sequence[str], suffixes: Sequence[str] = ("",)) -> None:
        self._names = [name for name in names if name in METRICS]
        self._sets: dict[str, tuple[str, SetMetric]] = {
            name + suffix: (suffix, SET_METRICS[name]())
            for name in names
            if name in SET_METRICS
            for suffix in suffixes
        }
        self._last: Tensor | None = None
        self._values: dict[str, float] = {}
        self._pictures: dict[str, str] = {}

    @staticmethod
    def check(names: Sequence[str]) -> None:
        """Load every metric now, so that a missing package is reported before the work begins."""
        blank = torch.zeros(1, 3, 192, 192)
        for name in names:
            if name in METRICS:
                METRICS[name](blank, blank)
            else:
                SET_METRICS[name]()

    def start(self) -> None:
        """The next image begins."""
        self._last, self._values, self._pictures = None, {}, {}

    def take(self, org: Tensor, rec: Tensor, max_val: int) -> None:
        """Measure one image pair, (1, 3, H, W) in [0, 1], not yet rounded."""
        if self._names or self._sets:
            x, x_hat = ((image.float() * max_val).clamp(0, max_val).round() / max_val for image in (org, rec))
            self._values = {name: METRICS[name](x, x_hat) for name in self._names}
            self._last = x_hat

    def collect(self, suffix: str) -> dict[str, float]:
        """The values of the last pair; its reconstruction is kept under `suffix`."""
        if self._sets and self._last is not None:
            data = io.BytesIO()
            image = (self._last[0] * 255).round().to(torch.uint8).cpu()
            to_pil_image(image).save(data, format="png")
            self._pictures[suffix] = b64encode(data.getvalue()).decode()
        return dict(self._values)

    def pictures(self) -> dict[str, str]:
        """The reconstructions of the current image by suffix; empty without set metrics."""
        return self._pictures

    def add(self, x: Tensor, pictures: dict[str, str]) -> None:
        """Give the set metrics a finished image: the original (1, 3, H, W) and `pictures`."""
        for suffix, metric in self._sets.values():
            with Image.open(io.BytesIO(b64decode(pictures[suffix]))) as image:
                metric.update(x, to_tensor(image)[None])

    def compute(self) -> dict[str, float]:
        """The set metrics over all images that were added."""
        return {name: metric.compute() for name, (_, metric) in self._sets.items()}
