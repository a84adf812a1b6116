# SPDX-License-Identifier: Apache-2.0
"""Integer probabilities of a latent, given the location and scale that the entropy net predicts.

P(k) = F(k + 1/2) - F(k - 1/2), F the Laplace distribution with location m and scale b (C3, Kim et al.
2024, eq. 3), in units of 2^-24, for a fixed set of (m, b):
    b = 2^(i/8 - 5), i = 0 ... 100: 1/32 to 181. A scale off by a factor 1 + e costs e^2 / 2 nats:
        3e-4 nats on average.
    m in steps of 1/64, from b = 1/2 on in steps that double with b and reach 1 at b = 16: the error is
        uniform within +-step/2 and costs step^2 / (24 b^2) nats, 2e-4 or less for b >= 1/4.
So a row stands for (scale, fraction of m); the integer part of m shifts it. A row ends 12 b + 1 from its
location. Latents beyond are coded by the escape, the row's last value, followed in the stream by a side
(`coin_row`), a class c of probability 2^-(c+1) (`escape_row`), and c plain bits (`coin_row`). In addition to
their own probability, the values of a row share 2^-15 evenly, at least 2^-24 each, so that no value costs
more than 24 bits and, in a narrow row, more than 18.

In:  nothing: there is one set of rows, made in some 20 ms on first use (`rows`).
Out: cumulative counts as the C++ decoder reads them, and `constriction` models with exactly the same
     counts for Python. They are made with +, -, *, / and powers of two only, which IEEE 754 rounds in one
     way, and without libm. A checksum detects a machine that differs.
Fails with RuntimeError on such a machine.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import constriction
import numpy as np

__all__ = [
    "ESCAPE_CLASSES",
    "LOCATION_BITS",
    "MAX_LATENT",
    "PRECISION",
    "SCALES",
    "SCALES_PER_OCTAVE",
    "SCALE_ZERO",
    "Rows",
    "rows",
]

PRECISION = 24  # bits of a probability: what constriction's default coders use
TOTAL = 1 << PRECISION
LOCATION_BITS = 6  # the entropy net gives locations in units of 2^-6
SCALES_PER_OCTAVE = 8
SCALE_ZERO = 40  # index of the scale 1
SCALES = 101
MAX_LATENT = 32767  # larger latents, and locations, are refused
ESCAPE_CLASSES = 18  # distances beyond a row are below 2^18
_FLOOR = 512  # units of 2^-24 that the values of a row share evenly
_TABLE_CRC32 = 0x07130199

# 2^(j/8), correctly rounded.
_ROOTS = (
    1.0,
    1.0905077326652577,
    1.189207115002721,
    1.2968395546510096,
    1.4142135623730951,
    1.5422108254079407,
    1.681792830507429,
    1.8340080864093424,
)


@dataclass(frozen=True)
class Rows:
    """All rows, one after another.

    Attributes:
        cdf: (entries,) uint32; row r has counts[r] + 1 entries from start[r]: 0, rising, 2^24.
        start: (rows,) int32.
        counts: (rows,) int32, number of values, the escape included, which is the last one.
        first: (rows,) int32, latent minus location's integer part that value 0 stands for.
        base: (SCALES,) int32, the row of fraction 0 of each scale.
        fraction_bits: (SCALES,) int32, log2 of the number of fractions.
        bits: (entries,) float64, code length of the value whose entry it is.
        escape_row: the row of an escape's class, 18 values.
        coin_row: two equal values.
    """

    cdf: np.ndarray
    start: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    base: np.ndarray
    fraction_bits: np.ndarray
    bits: np.ndarray
    escape_row: int
    coin_row: int

    def locate(self, location: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of each latent, and the latent that value 0 of the row stands for.

        Args:
            location: (n,) integers in units of 2^-6.
            scale: (n,) integers in [0, SCALES).
        """
        fraction_bits = self.fraction_bits[scale]
        dropped = LOCATION_BITS - fraction_bits
        rounded = (location + ((1 << dropped) >> 1)) >> dropped
        whole = rounded >> fraction_bits
        row = self.base[scale] + (rounded - (whole << fraction_bits))
        return row, whole + self.first[row]

    @functools.cached_property
    def models(self) -> list[object]:
        """For each row, a model of `constriction` with the row's counts.

        `Categorical(perfect=False)` gives value i the left end floor(scale * (p_0 + ... + p_(i-1))) + i,
        scale = (2^24 - values) / sum(p): with p = count - 1 the factor is 1 and the counts come out.
        """
        family = constriction.stream.model.Categorical
        return [
            family(np.diff(self.cdf[a : a + n + 1].astype(np.float64)) - 1.0, perfect=False)
            for a, n in zip(self.start.tolist(), self.counts.tolist())
        ]


@functools.cache
def rows() -> Rows:
    """The one set of rows.

    Raises:
        RuntimeError: this machine's arithmetic is not IEEE 754.
    """
    octave, root = np.divmod(np.arange(SCALES) - SCALE_ZERO, SCALES_PER_OCTAVE)
    scales = np.ldexp(np.array(_ROOTS)[root], octave)
    fraction_bits = np.clip(4 - octave, 0, LOCATION_BITS).astype(np.int32)
    pieces, firsts = [], []
    for scale, bits in zip(scales.tolist(), fraction_bits.tolist()):
        fractions = np.arange(1 << bits) / (1 << bits)
        half = int(np.ceil(12 * scale)) + 1
        lattice = np.arange(-half, half + 3)  # values -half ... half + 1
        pieces.append(_counts(lattice - 0.5 - fractions[:, None], scale))
        firsts.append(np.full(len(fractions), -half))
    classes = TOTAL - (TOTAL >> np.arange(ESCAPE_CLASSES + 1))
    classes[-1] = TOTAL
    pieces += [classes[None], np.array([[0, TOTAL // 2, TOTAL]])]
    firsts.append(np.zeros(2))
    sizes = np.concatenate([np.full(len(piece), piece.shape[1]) for piece in pieces])
    cdf = np.concatenate([piece.ravel() for piece in pieces]).astype(np.uint32)
    crc32 = zlib.crc32(cdf.astype("<u4").tobytes())
    if crc32 != _TABLE_CRC32:
        raise RuntimeError(
            f"the table of latent probabilities has crc32 {crc32:#x}, not {_TABLE_CRC32:#x}: this "
            "machine's arithmetic is not IEEE 754, and what it writes others cannot decode"
        )
    heights = np.diff(cdf.astype(np.int64), append=0)
    bits = np.where(heights > 0, PRECISION - np.log2(np.maximum(heights, 1)), np.inf)
    start = np.cumsum(sizes) - sizes
    base = np.cumsum(1 << fraction_bits) - (1 << fraction_bits)
    made = Rows(
        cdf=cdf,
        start=start.astype(np.int32),
        counts=(sizes - 1).astype(np.int32),
        first=np.concatenate(firsts).astype(np.int32),
        base=base.astype(np.int32),
        fraction_bits=fraction_bits,
        bits=bits,
        escape_row=len(sizes) - 2,
        coin_row=len(sizes) - 1,
    )
    for name in ("cdf", "start", "counts", "first", "base", "fraction_bits", "bits"):
        getattr(made, name).setflags(write=False)
    return made


def _counts(edges: np.ndarray, scale: float) -> np.ndarray:
    """Cumulative counts, int64: those of the intervals between the edges, then the escape's.

    Args:
        edges: (rows, values + 1) float64, rising, relative to the location.
        scale: of the Laplace distribution.
    """
    tail = 0.5 * _exp(np.abs(edges) / scale)
    below = np.where(edges < 0, tail, 1.0 - tail)
    below -= below[:, :1].copy()
    values = edges.shape[1]  # with the escape
    floor = max(1, _FLOOR // values)
    cumulative = np.floor(below * (TOTAL - values * floor) + 0.5).astype(np.int64)
    cumulative += floor * np.arange(values)
    return np.concatenate([cumulative, np.full((len(edges), 1), TOTAL)], axis=1)


def _exp(x: np.ndarray) -> np.ndarray:
    """exp(-x) for x >= 0, to 1e-15: 2^-n exp(-r), r in [0, log 2), by Taylor's series."""
    n = np.floor(x * 1.4426950408889634)
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10  # log 2 in two parts
    series = np.ones_like(r)
    for k in range(18, 0, -1):
        series = 1.0 - series * r / k
    return np.ldexp(series, -np.minimum(n, 1000.0).astype(np.int64))
