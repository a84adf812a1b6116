# SPDX-License-Identifier: Apache-2.0
"""The portable normal quantile: accuracy against SciPy, exact symmetry, golden bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from compressai_sga.channels.quantile import normal_quantile


def test_accuracy():
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tails = torch.logspace(-300, -0.01, 20_000, dtype=torch.float64)
    ends = torch.tensor([2.0**-53, 1 - 2.0**-53, 0.5, 0.075, 0.925, math.exp(-25)], dtype=torch.float64)
    p = torch.cat([uniform, tails, 1 - tails[-900:], ends])
    expected = special.ndtri(p.numpy())
    np.testing.assert_allclose(normal_quantile(p).numpy(), expected, rtol=1e-14, atol=1e-16)


def test_monotone_across_the_joints():
    for joint in (0.075, 0.5, 0.925, math.exp(-25)):
        p = torch.linspace(joint * (1 - 1e-6), joint * (1 + 1e-6), 2001, dtype=torch.float64)
        assert bool((normal_quantile(p).diff() > 0).all())


def test_symmetry_is_exact():
    p = torch.arange(1, 2**12, dtype=torch.float64) / 2**13
    assert torch.equal(normal_quantile(p), -normal_quantile(1 - p))


def test_golden_bits():
    p = torch.tensor([1e-9, 0.01, 0.3, 0.97], dtype=torch.float64)
    assert [value.hex() for value in normal_quantile(p).tolist()] == GOLDEN


GOLDEN = ["-0x1.7fdc11f44b5a7p+2", "-0x1.29c5c4630ff0ep+1", "-0x1.0c7e39582c5fap-1", "0x1.e17bb09d8913ep+0"]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_probabilities_outside(value):
    with pytest.raises(ValueError, match="open interval"):
        normal_quantile(torch.tensor([0.5, value], dtype=torch.float64))
