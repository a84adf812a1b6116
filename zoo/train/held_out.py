# SPDX-License-Identifier: Apache-2.0
"""The scores of a model on held-out photographs, by which averages, scales and recipes are chosen.

In:  a model that is conditioned on the rate (`models.gains`); crops (B, 3, 256, 256) in [0, 1].
Out: for each lmbda bpp + lmbda * distortion, bpp and PSNR, with hard rounding; one score of them all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, pil_to_tensor

from crops import CropSampler, held_out, list_images, read_rgb

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compressai_sga.models import rda  # noqa: E402
from compressai_sga.models.gains import Gained, gain_of  # noqa: E402

__all__ = ["HeldOut", "costs", "update_quantiles"]

CHECK_PX = 256
CHECK_CROPS = 8  # where no photographs are held out


def costs(x: Tensor, out: dict[str, Any], kind: rda.Kind) -> tuple[Tensor, Tensor, Tensor]:
    """(bpp, distortion in the units of `rda.LOSSES`, MSE) of every image, each of shape (B,)."""
    pixels = x.shape[2] * x.shape[3]
    bits = sum(-p.float().log2().flatten(1).sum(1) for p in out["likelihoods"].values())
    x_hat = out["x_hat"].float()
    mse = (x_hat - x).square().flatten(1).mean(1)
    return bits / pixels, 255**2 * mse if kind == "l2" else rda.distortion(x, x_hat, kind), mse


def update_quantiles(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, EntropyBottleneck):
            module._update_quantiles()


class HeldOut:
    """The centres of the held-out photographs, and the scores of a model on them at every rate.

    Args:
        folder: of the photographs; if it has none of `held_out.txt`, crops of the sampler are used.
        sampler: of the training crops.
    """

    def __init__(self, folder: Path, sampler: CropSampler):
        names = held_out()
        paths = [p for p in list_images(folder) if f"{p.parent.name}/{p.name}" in names]
        self.kinds = ["large" if (i := read_rgb(p)).width * i.height > 1e6 else "small" for p in paths]
        if paths:
            crops = [center_crop(pil_to_tensor(read_rgb(p)), CHECK_PX) for p in paths]
            self.crops = torch.stack(crops).float() / 255
        else:
            self.crops = sampler.batch(count=CHECK_CROPS, size=CHECK_PX)

    @torch.no_grad()
    def scores(
        self, model: nn.Module, gained: Gained, lmbdas: Sequence[float], kind: rda.Kind, scale: float = 1.0
    ) -> dict[str, Any]:
        """With hard rounding: `loss`, `bpp`, `psnr_db` by rate; `score`, the geometric mean of the losses.

        All gains are multiplied by `scale`. `score_large` is for photographs above a megapixel, which are not
        scaled here, and `score_small` for the others.
        """
        update_quantiles(model)
        model.eval()
        rows, losses = {"loss": [], "bpp": [], "psnr_db": []}, []
        for lmbda in lmbdas:
            parts = []
            for x in self.crops.split(4):
                x = x.to(next(model.parameters()).device)
                with gained.at(x.new_full((len(x),), scale * gain_of(rda.mse_lmbda(lmbda, kind)))):
                    parts.append(torch.stack(costs(x, model(x), kind)).cpu())
            bpp, distortion, mse = torch.cat(parts, 1)
            losses.append(bpp + lmbda * distortion)
            rows["loss"].append(round(losses[-1].mean().item(), 5))
            rows["bpp"].append(round(bpp.mean().item(), 4))
            rows["psnr_db"].append(round(-10 * math.log10(mse.mean().item()), 3))
        model.train()
        losses = torch.stack(losses)
        rows["score"] = _geometric_mean(losses)
        for which in sorted(set(self.kinds)):
            rows[f"score_{which}"] = _geometric_mean(losses[:, [k == which for k in self.kinds]])
        return rows


def _geometric_mean(losses: Tensor) -> float:
    """Geometric mean over the rates of the means over the images; input (rates, images)."""
    return round(losses.mean(1).log().mean().exp().item(), 5)
