# SPDX-License-Identifier: Apache-2.0
"""A process that has the bytes and the shared settings, nothing else, gets the encoder's samples."""

from __future__ import annotations

import pickle

import torch

from compressai_sga.channels import blocks, reverse
from compressai_sga.channels.distributions import DiagonalGaussian

DECODER = """
import pickle, sys, torch
from compressai_sga.channels import blocks, reverse
from compressai_sga.channels.distributions import DiagonalGaussian

def f64(*values):
    return torch.tensor(values, dtype=torch.float64)

plain, hybrid, many = pickle.load(open(sys.argv[1], "rb"))
proposal = DiagonalGaussian(f64(0.1, 0.2, 0.3), f64(1.0, 1.5, 2.0))
index, _ = reverse.unpack(plain, 50, method="pfr", kl_bits=5.0)
samples = [reverse.decode(index, proposal, seed=2**64 - 1, step=7, block=100)]
known = dict(method="hybrid", cells=torch.tensor([12, 6]))
index, cell = reverse.unpack(hybrid, 60, kl_bits=9.6, **known)
samples.append(reverse.decode(index, DiagonalGaussian(f64(0, 0), f64(40, 20)), seed=7, cell=cell, **known))
plan, index = blocks.unpack_blocks(many, 600)
mean, std = torch.full((2, 300), 0.25), torch.full((2, 300), 1.5)
samples.append(blocks.decode_blocks(index, plan, mean, std, seed=3))
print(b"".join(sample.numpy().tobytes() for sample in samples).hex())
"""


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_fresh_process_decodes_from_bytes_alone(tmp_path, python):
    target = DiagonalGaussian(f64(1.0, -0.5, 0.25).repeat(50, 1), torch.full((50, 3), 0.6))
    proposal = DiagonalGaussian(f64(0.1, 0.2, 0.3), f64(1.0, 1.5, 2.0))
    plain = reverse.encode(target, proposal, seed=2**64 - 1, step=7, block=100, kl_bits=5.0)

    mean = torch.linspace(-50, 50, 120, dtype=torch.float64).reshape(60, 2) * f64(1.0, 0.5)
    bounded = DiagonalGaussian(mean, torch.ones_like(mean)).truncated()
    marginal = DiagonalGaussian(f64(0, 0), f64(40, 20))
    known = dict(method="hybrid", cells=torch.tensor([12, 6]))
    hybrid = reverse.encode(bounded, marginal, seed=7, kl_bits=9.6, **known)

    q_mean = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)) * 0.3
    p_mean, std = torch.full((2, 300), 0.25), torch.full((2, 300), 1.5)
    many = blocks.encode_blocks(q_mean, std, p_mean, std, seed=3, padding_bits=2)

    streams = reverse.pack(plain, kl_bits=5.0), reverse.pack(hybrid, kl_bits=9.6), blocks.pack_blocks(many)
    (tmp_path / "streams").write_bytes(pickle.dumps(streams))
    result = python("-c", DECODER, tmp_path / "streams", check=True)
    samples = plain.sample, hybrid.sample, many.sample
    assert bytes.fromhex(result.stdout) == b"".join(sample.numpy().tobytes() for sample in samples)
