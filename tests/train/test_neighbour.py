# SPDX-License-Identifier: Apache-2.0
"""Claims of neighbour.py: what fits is taken, a prior only over the same variable."""

from __future__ import annotations

import pytest
import torch
from compressai.models import (
    FactorizedPrior,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
)

PRIOR = "entropy_bottleneck.quantiles"


def test_same_architecture_takes_everything():
    from neighbour import take_from_neighbour

    ours, theirs = MeanScaleHyperprior(16, 24), MeanScaleHyperprior(16, 24)
    taken = take_from_neighbour(ours, theirs.state_dict())
    assert set(taken) == set(ours.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_coding_tables_are_not_taken():
    from neighbour import take_from_neighbour

    ours, theirs = MeanScaleHyperprior(16, 24), MeanScaleHyperprior(16, 24)
    theirs.update()
    take_from_neighbour(ours, theirs.state_dict())
    assert ours.entropy_bottleneck._quantized_cdf.numel() == 0
    assert ours.gaussian_conditional._quantized_cdf.numel() == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "takes_prior"),
    [
        (MeanScaleHyperprior, JointAutoregressiveHierarchicalPriors, True),
        (FactorizedPrior, FactorizedPrior, True),
        (FactorizedPrior, MeanScaleHyperprior, False),  # a prior over y from one over z
        (MeanScaleHyperprior, FactorizedPrior, False),
    ],
)
def test_prior_is_taken_for_the_same_variable_only(ours, theirs, takes_prior):
    from neighbour import take_from_neighbour

    channels = (24, 24)  # as many of y as of z, so that shapes alone would not tell
    model = ours(*channels)
    taken = take_from_neighbour(model, theirs(*channels).state_dict())
    assert (PRIOR in taken) == takes_prior
    assert "g_a.0.weight" in taken


def test_other_widths_are_left_out():
    from neighbour import take_from_neighbour

    taken = take_from_neighbour(MeanScaleHyperprior(16, 36), MeanScaleHyperprior(16, 24).state_dict())
    assert "g_a.4.weight" in taken
    assert "g_a.6.weight" not in taken


def test_nothing_in_common_is_refused():
    from neighbour import take_from_neighbour

    with pytest.raises(ValueError, match="no tensor of the neighbour"):
        take_from_neighbour(FactorizedPrior(16, 24), {"other": torch.zeros(1)})


def test_fitting_the_prior_lowers_the_rate_and_leaves_the_transforms():
    from neighbour import fit_prior_of_y

    torch.manual_seed(0)
    model = FactorizedPrior(16, 24)
    images = torch.rand(2, 3, 64, 64)
    before = {k: v.clone() for k, v in model.g_a.state_dict().items()}

    def rate() -> float:
        with torch.no_grad():
            return float(-model.eval()(images)["likelihoods"]["y"].log2().mean())

    first = rate()
    fit_prior_of_y(model, images, steps=100)
    assert rate() < 0.5 * first
    for name, tensor in model.g_a.state_dict().items():
        assert torch.equal(tensor, before[name])
