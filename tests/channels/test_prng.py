# SPDX-License-Identifier: Apache-2.0
"""Claims of channels/prng.py: published Philox vectors, draws that depend on their address alone,
normals that are normal (two-sided tests, false-alarm rate 1e-4 each, fixed seed)."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy import stats

from compressai_sga.channels import prng

ALARM = 1e-4
GOLDEN_WORDS = [391088738, 3888476864, 2151130728]
GOLDEN_NORMALS = [113403640.0, 7979082.0, 45174671.0]
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_published_vectors(counter, key, expected):
    """Known answers of Random123 (kat_vectors, philox4x32 10)."""
    assert tuple(prng.philox4x32(torch.tensor(counter), key).tolist()) == expected


def test_philox_is_that_of_unlimited_integers():
    generator = np.random.default_rng(1)
    counters = generator.integers(0, 2**32, (50, 4))
    key = tuple(generator.integers(0, 2**32, 2).tolist())
    ours = prng.philox4x32(torch.from_numpy(counters), key).tolist()
    assert ours == [plain_philox(c, key) for c in counters.tolist()]


def plain_philox(c: list[int], key: tuple[int, int]) -> list[int]:
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 % 2**32, (p0 >> 32) ^ c[3] ^ k1, p0 % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


@pytest.mark.parametrize("draw", [prng.words, prng.uniform, prng.normal])
def test_a_draw_depends_on_its_address_alone(draw):
    n = torch.arange(300)
    step = torch.tensor([[3], [9]])
    whole = draw(7, lanes=6, candidate=n, step=step, block=2)
    assert whole.shape == (2, 300, 6)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(7, lanes=6, candidate=order, step=step, block=2), whole[:, order])
    assert torch.equal(draw(7, lanes=6, candidate=123, step=9, block=2), whole[1, 123])
    assert torch.equal(draw(7, lanes=3, candidate=n, step=step, block=2), whole[..., :3])


def test_every_part_of_the_address_matters():
    base = {"seed": 1, "step": 1, "block": 1, "candidate": 1, "purpose": "sample"}
    changes = [{}, {"seed": 2}, {"seed": 1 + 2**32}, {"step": 2}, {"block": 2}, {"candidate": 2}]
    changes += [{"purpose": purpose} for purpose in ("dither", "time", "permutation")]
    draws = [tuple(prng.words(lanes=8, **{**base, **change}).tolist()) for change in changes]
    assert len({word for draw in draws for word in draw}) == 8 * len(changes)


def test_golden_draws():
    """What files depend on: these numbers may never change."""
    address = {"step": 3, "block": 5, "candidate": 2**32 - 1, "lanes": 3}
    assert prng.words(2**64 - 1, **address).tolist() == GOLDEN_WORDS
    assert (prng.normal(2**64 - 1, **address) * 2**26).tolist() == GOLDEN_NORMALS


def test_candidate_n_costs_no_more_than_candidate_0():
    def seconds(candidate: int) -> float:
        start = time.perf_counter()
        for _ in range(20):
            prng.normal(1, lanes=8, candidate=candidate)
        return time.perf_counter() - start

    seconds(0)
    ratios = [seconds(2**32 - 1) / seconds(0) for _ in range(9)]
    assert np.median(ratios) < 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms(dtype):
    u = prng.uniform(3, lanes=8, candidate=torch.arange(125_000), dtype=dtype)
    assert u.dtype == dtype and 0 < u.min() and u.max() < 1
    assert stats.kstest(u.double().flatten().numpy(), "uniform").pvalue > ALARM
    corner = u.double()[:, :2].numpy()
    counts = np.histogram2d(*corner.T, bins=50, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > ALARM  # lanes are independent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_million_normals(dtype):
    x = prng.normal(3, lanes=8, candidate=torch.arange(125_000), dtype=dtype).double().numpy()
    flat = x.ravel()
    assert stats.kstest(flat, "norm").pvalue > ALARM
    edges = stats.norm.ppf(np.linspace(0, 1, 1001))
    assert stats.chisquare(np.histogram(flat, edges)[0]).pvalue > ALARM
    tail = np.concatenate([flat[flat > 3], -flat[flat < -3]])
    assert stats.kstest(stats.norm.sf(tail) / stats.norm.sf(3), "uniform").pvalue > ALARM
    assert stats.binomtest(len(tail), flat.size, 2 * stats.norm.sf(3)).pvalue > ALARM
    correlation = np.corrcoef(x.T) - np.eye(8)
    assert np.abs(correlation).max() < stats.norm.isf(ALARM / 56) / np.sqrt(len(x))


def test_normals_are_the_quantiles_of_their_words():
    word = torch.cat([torch.arange(4096), 2**32 - 1 - torch.arange(4096)])
    word = torch.cat([word, 2 ** torch.arange(32), 3 * 2 ** torch.arange(30)])
    ours = prng._to_normal(word).double() / 2**26
    tail = ((word | 1).double() / 2**33).numpy()
    sign = np.where(word.numpy() & 1, -1, 1)
    np.testing.assert_allclose(ours.numpy(), -sign * stats.norm.ppf(tail), rtol=0, atol=3e-6)
    assert ours.abs().max() < 6.34


def test_normals_are_alike_in_a_fresh_process(python):
    code = (
        "import torch; from compressai_sga.channels import prng;"
        "print(int((prng.normal(5, lanes=7, candidate=torch.arange(1000)) * 2**26).sum()))"
    )
    here = int((prng.normal(5, lanes=7, candidate=torch.arange(1000)) * 2**26).sum())
    there = python("-c", code)
    assert there.stdout.strip() == str(here), there.stderr


@pytest.mark.gpu
def test_cuda_draws_the_same():
    n = torch.arange(100_000)
    for draw in (prng.words, prng.uniform, prng.normal):
        assert torch.equal(draw(5, lanes=8, candidate=n.cuda()).cpu(), draw(5, lanes=8, candidate=n))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"seed": -1}, "2\\*\\*64"),
        ({"seed": 2**64}, "2\\*\\*64"),
        ({"lanes": 2**26 + 1}, "blocks"),
        ({"lanes": 2.0}, "an int"),
        ({"step": -1}, "step"),
        ({"candidate": torch.tensor([0, 2**32])}, "candidate"),
        ({"block": torch.tensor(0.5)}, "block"),
        ({"purpose": "fun"}, "dither"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        prng.words(**{"seed": 0, "lanes": 1, **wrong})
    for draw, dtype in ((prng.uniform, torch.int64), (prng.normal, torch.float16)):
        with pytest.raises(ValueError, match="float64"):
            draw(0, lanes=1, dtype=dtype)
