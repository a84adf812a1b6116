# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/{macs,config}.py: the count is that of a hand and of the paper, and below 3000."""

from __future__ import annotations

import pytest

from compressai_sga.models.c3.config import (
    CONTEXTS,
    KNOWN,
    PRESETS,
    QUALITIES,
    Architecture,
    adaptive,
    layout,
    lmbda_of,
)
from compressai_sga.models.c3.macs import macs_per_pixel


def test_papers_counts():
    """C3's own counter says 1056 + 48 + 666 for Kodak and 1899 + 48 + 978 for CLIC."""
    found = macs_per_pixel(PRESETS["c3-paper"].architecture)
    assert (round(found.entropy), found.upsampling, found.synthesis) == (1056, 48, 666)
    assert round(found.total) == 1770
    assert round(macs_per_pixel(PRESETS["c3-paper-clic"].architecture).total) == 2925


def test_count_by_hand():
    """Two grids, the first of 4 x 6 latents and the second of 2 x 3, 12 taps, nets 12-5-2 and 2-4-3."""
    a = Architecture(
        grids=2, context=1, entropy_hidden=(5,), entropy_skip=True, synthesis_hidden=(4,), refinements=1
    )
    found = macs_per_pixel(a, (4, 6))
    assert found.entropy == (12 * 5 + 5 * 2 + 12 * 2) * (24 + 6) / 24
    assert found.upsampling == 8  # the first grid has the image's size
    assert found.synthesis == 2 * 4 + 4 * 3 + 3 * 3 * 9


def test_count_of_learned_upsampling_by_hand():
    """Four taps for a row's value at the old width, then four for a value; what is cut does not count."""
    a = Architecture(grids=2, upsampling="learned", synthesis_hidden=(4,), synthesis_skip=True, refinements=0)
    found = macs_per_pixel(a, (5, 7))  # from 3 x 4 latents over 5 x 4 to 5 x 7
    assert found.upsampling == pytest.approx(4 * (5 * 4 + 5 * 7) / 35)
    assert found.synthesis == 2 * 4 + 4 * 3 + 2 * 3
    # 1 x 2 latents to 2 x 3, of which one plane more comes, and both to 4 x 6.
    a = Architecture(grids=2, first=1, upsampling="learned")
    once, twice = 4 * (2 * 2 + 2 * 3), 4 * (4 * 3 + 4 * 6)
    assert macs_per_pixel(a, (4, 6)).upsampling == pytest.approx((once + 2 * twice) / 24)
    assert macs_per_pixel(a).upsampling == pytest.approx(4 * 1.5 * (2 + 1 / 4))
    assert macs_per_pixel(Architecture(grids=1, upsampling="learned"), (5, 7)).upsampling == 0


def test_our_count_by_hand():
    """18 inputs, 7 grids: the entropy net's 4/3 latents a pixel, 6 planes doubled to the image's size, ..."""
    found = macs_per_pixel(PRESETS["c3"].architecture)
    latents = sum(4.0**-i for i in range(7))
    assert found.entropy == (18 * 16 + 16 * 16 + 16 * 2 + 18 * 2) * latents
    assert found.upsampling == pytest.approx(4 * 1.5 * sum((6 - i) * 4.0**-i for i in range(6)))
    assert found.synthesis == 7 * 40 + 40 * 3 + 7 * 3 + 2 * 3 * 3 * 9
    assert round(found.total) == 1444 == round(macs_per_pixel(PRESETS["c3-fast"].architecture).total)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_and_their_variants_stay_below_3000(name):
    variants = adaptive(PRESETS[name]) if name.startswith("c3-paper") else ()
    for preset in (PRESETS[name], *variants):
        for size in (None, (512, 768), (1365, 2048)):
            assert macs_per_pixel(preset.architecture, size).total < 3000


def test_adaptive_choice_is_the_papers():
    assert len(adaptive(PRESETS["c3-paper"])) == 12
    assert len(adaptive(PRESETS["c3-paper-clic"])) == 6
    with pytest.raises(ValueError, match="no adaptive choice"):
        adaptive(PRESETS["c3"])
    totals = [macs_per_pixel(p.architecture).total for p in adaptive(PRESETS["c3-paper"])]
    # C3's own counter says 578, with one grid of the seven not upsampled although all are smaller.
    assert round(min(totals)) == 578 + 8 and round(max(totals)) == 2626


def test_parameters_are_the_papers():
    """The paper counts 1541 for Kodak."""
    import math

    assert sum(math.prod(spec.shape) for spec in layout(KNOWN[0])) == 1541


def test_qualities_rise():
    values = [lmbda_of(q) for q in QUALITIES]
    assert list(QUALITIES) == list(range(1, 9)) and values == sorted(values, reverse=True)
    assert values[0] == 2e-2 and values[-1] == 1e-4
    with pytest.raises(ValueError, match="quality is 9"):
        lmbda_of(9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"grids": 0},
        {"first": 16},
        {"context": len(CONTEXTS)},
        {"entropy_hidden": ()},
        {"refinements": 16},
        {"synthesis_hidden": (129,)},
        {"entropy_activation": "tanh"},
        {"upsampling": "nearest"},
    ],
)
def test_architectures_that_no_bitstream_holds_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Architecture(**wrong)
