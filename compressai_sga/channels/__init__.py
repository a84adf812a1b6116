# SPDX-License-Identifier: Apache-2.0
"""Channel simulation: sending a sample of a distribution instead of a given number.

prng             randomness that encoder and decoder share, addressed, the same on every device
universal_quantisation
                 universal (dithered) quantisation, soft rounding; `universal_code`: its entropy code
distributions    Gaussian, uniform, truncated, finite and other distributions as targets and proposals
reverse          minimal random coding, Poisson functional representation, ordered random coding, and
                 their hybrid with dither; `bitstream`: to bytes
index_code       the Zipf and Elias-delta codes of the candidates' numbers
blocks           high-dimensional Gaussians in blocks of bounded divergence
circulant        the same with candidates that are cheap to make and to score
trellis          a Gaussian's sample as one long message: fewer bits than blocks
"""

__all__ = [
    "bitstream",
    "blocks",
    "circulant",
    "distributions",
    "index_code",
    "prng",
    "reverse",
    "trellis",
    "universal_code",
    "universal_quantisation",
]
