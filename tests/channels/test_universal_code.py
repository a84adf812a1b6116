# SPDX-License-Identifier: Apache-2.0
"""Claims of channels/universal_code.py: real bytes of universally quantised numbers, at the differential
entropy of the noisy source, decoded from the bytes and the dither alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from compressai_sga.channels import prng
from compressai_sga.channels.universal_code import UniversalCode
from compressai_sga.channels.universal_quantisation import dequantise, dither, quantise
from compressai_sga.errors import BitstreamError

SOURCES = {"gaussian": stats.norm(0.3, 0.7), "laplace": stats.laplace(-0.2, 0.5)}


def draw(law, n: int = 20_000) -> torch.Tensor:
    return torch.from_numpy(law.ppf(prng.uniform(2, lanes=n).numpy()))


@pytest.mark.parametrize("temperature", [math.inf, 0.2, 0.0])
@pytest.mark.parametrize("step", [0.3, 1.0])
@pytest.mark.parametrize("source", SOURCES)
def test_round_trip_at_the_ideal_length(source, step, temperature):
    law = SOURCES[source]
    y, u = draw(law), dither(1, (20_000,))
    k = quantise(y, u, step, temperature)
    code = UniversalCode(law.cdf, step, temperature)
    data = code.encode(k, u)
    assert torch.equal(code.decode(data, u), k)
    assert 8 * len(data) == pytest.approx(float(code.bits(k, u).sum()), rel=1e-3)


@pytest.mark.parametrize("source", SOURCES)
def test_bytes_are_the_differential_entropy_of_the_noisy_source(source):
    """h(y + D U) - log2 D to 1 %, in bytes that were written."""
    law, step, n = SOURCES[source], 0.5, 100_000
    y, u = draw(law, n), dither(1, (n,))

    def integrand(v: float) -> float:
        p = (law.cdf(v + step / 2) - law.cdf(v - step / 2)) / step
        return -p * math.log2(p) if p > 0 else 0.0

    h_bits, _ = integrate.quad(integrand, -25, 25, limit=500, points=[0])
    data = UniversalCode(law.cdf, step).encode(quantise(y, u, step), u)
    assert 8 * len(data) / n == pytest.approx(h_bits - math.log2(step), rel=0.01)


def test_decodes_in_a_fresh_process(tmp_path, python):
    law = SOURCES["laplace"]
    y, u = draw(law, 500), dither(9, (500,))
    k = quantise(y, u, 0.5)
    (tmp_path / "string").write_bytes(UniversalCode(law.cdf, 0.5).encode(k, u))
    program = (
        "import sys; from scipy import stats; from pathlib import Path;"
        "from compressai_sga.channels.universal_quantisation import dither, dequantise;"
        "from compressai_sga.channels.universal_code import UniversalCode;"
        "u = dither(9, (500,)); code = UniversalCode(stats.laplace(-0.2, 0.5).cdf, 0.5);"
        "print(float(dequantise(code.decode(Path(sys.argv[1]).read_bytes(), u), u, 0.5).sum()))"
    )
    there = python("-c", program, tmp_path / "string")
    assert float(there.stdout) == float(dequantise(k, u, 0.5).sum()), there.stderr


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_numbers(n):
    code = UniversalCode(stats.norm.cdf)
    y, u = draw(stats.norm, n), dither(1, (n,))
    k = quantise(y, u)
    assert torch.equal(code.decode(code.encode(k, u), u), k)


def test_extremes_of_a_given_support():
    code = UniversalCode(stats.norm.cdf, support=(-500, 500))
    k = torch.tensor([-500.0, 0.0, 500.0])
    u = dither(1, (3,))
    assert torch.equal(code.decode(code.encode(k, u), u), k)


def test_default_support_holds_all_but_the_tail():
    low, high = UniversalCode(stats.norm(100, 2).cdf, step=0.5).support
    assert 170 <= low <= 176 and 224 <= high <= 230  # 200 +- 6 * 4


def test_damaged_strings_are_refused():
    code = UniversalCode(stats.norm.cdf, 0.1)
    u = dither(1, (400,))
    data = bytearray(code.encode(quantise(draw(stats.norm, 400), u, 0.1), u))
    generator = np.random.default_rng(0)
    wrong = [bytes(data[:n]) for n in range(0, len(data), 7)] + [bytes(data) + b"\1"]
    for _ in range(100):
        flipped = bytearray(data)
        flipped[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        wrong.append(bytes(flipped))
    for string in wrong:
        with pytest.raises(BitstreamError):
            code.decode(string, u)
    with pytest.raises(BitstreamError):
        code.decode(bytes(data), dither(2, (400,)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: UniversalCode(stats.norm.cdf, step=0), "positive"),
        (lambda: UniversalCode(stats.norm.cdf, step=torch.ones(2)), "positive"),
        (lambda: UniversalCode(stats.norm.cdf, temperature=-1), "temperature"),
        (lambda: UniversalCode(stats.norm.cdf).encode(torch.tensor([0.5]), torch.zeros(1)), "integers"),
        (lambda: UniversalCode(stats.norm.cdf, support=(2, 1)), "support"),
        (lambda: UniversalCode(lambda v: 0.5 + 0 * v), "support"),
        (lambda: UniversalCode(stats.norm.cdf).encode(torch.tensor([99.0]), torch.zeros(1)), "wider"),
        (lambda: UniversalCode(stats.norm.cdf).encode(torch.zeros(2), torch.zeros(1)), "agree"),
        (lambda: UniversalCode(stats.norm.sf, support=(-3, 3)).bits(torch.ones(1), torch.zeros(1)), "falls"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
