# SPDX-License-Identifier: Apache-2.0
"""What sending a sample of N(m, 1) with the proposal N(0, 1) costs, from simulations whose code is not ours.

Their own draws make the last digit uncertain: a few hundred draws at 14 bits. The bias of mrc and orc is that
of self-normalised importance sampling, whose law theirs is: E[sum w z / sum w] - m.
"""

from __future__ import annotations

__all__ = ["LOG2_CANDIDATES", "REFERENCE"]

LOG2_CANDIDATES = {4: 8, 8: 12, 14: 16}  # by the KL in bits
# KL in bits, method: E log2 of the number, its Zipf code in bits, error of the mean.
REFERENCE = {
    (4, "mrc"): (6.57, 9.8, -0.276),
    (4, "pfr"): (3.15, 5.75, -0.20),
    (4, "orc"): (2.92, 5.48, -0.276),
    (8, "mrc"): (10.58, 14.3, -0.385),
    (8, "pfr"): (6.04, 9.29, -0.33),
    (8, "orc"): (5.71, 8.93, -0.385),
    (14, "mrc"): (14.5, 18.6, -0.644),
    (14, "pfr"): (10.16, 13.90, -0.56),
    (14, "orc"): (9.71, 13.42, -0.644),
}
