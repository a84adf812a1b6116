# SPDX-License-Identifier: Apache-2.0
"""Start from a trained neighbour: another quality, or an architecture with the same transforms.

In:  a stock CompressAI model and the state dict of a trained one. The model is changed in place.
Out: every tensor with the same name and shape in both models is copied. The entropy bottleneck is copied
     only if it models the same variable in both: z if both have a hyper-analysis h_a, y if neither has.
     A new bottleneck over y must be fitted to the latents (`fit_prior_of_y`) before training. Otherwise its
     rate is very high at first, and its gradients destroy the transforms.
Fails with ``ValueError`` if no tensor fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["fit_prior_of_y", "take_from_neighbour"]


def take_from_neighbour(model: nn.Module, theirs: dict[str, Tensor]) -> list[str]:
    """Copy the tensors that fit from `theirs` into `model`; returns their names."""
    ours = model.state_dict()
    same_prior = _has_hyperprior(ours) == _has_hyperprior(theirs)
    fits = {
        name: tensor
        for name, tensor in theirs.items()
        if name in ours
        and tensor.shape == ours[name].shape
        and (same_prior or not name.startswith("entropy_bottleneck."))
    }
    if not fits:
        raise ValueError(
            "no tensor of the neighbour has the name and shape of one of this model's; name a "
            "model.pth of the same N and of an architecture with the same transforms"
        )
    model.load_state_dict(ours | fits)
    return list(fits)


def _has_hyperprior(state: dict[str, Tensor]) -> bool:
    return any(name.startswith("h_a.") for name in state)


def fit_prior_of_y(model: nn.Module, images: Tensor, steps: int = 300) -> None:
    """Fit the bottleneck of a model without hyperprior to the latents that it has now.

    Args:
        model: with `g_a` and `entropy_bottleneck`; only the latter is changed.
        images: shape (batch, 3, H, W) in [0, 1].
        steps: of Adam.
    """
    prior = model.entropy_bottleneck
    with torch.no_grad():
        y = model.g_a(images)
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        _, likelihoods = prior(y, training=True)
        (-likelihoods.log2().mean()).backward()
        optimizer.step()
