# SPDX-License-Identifier: Apache-2.0
"""Claims of finish.py and memory.py: each image keeps its own best; memory's limits leave results alone."""

from types import SimpleNamespace

import pytest
import torch

from compressai_sga.models.c3.fit import memory
from compressai_sga.models.c3.fit.stage2 import Stage2


def test_each_image_goes_back_to_its_own_best():
    moving = [torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([10.0, 20.0])]
    finish = Stage2(moving, 2, 0.5)
    finish.keep_best(torch.tensor([3.0, 3.0]))
    for tensor in moving:
        tensor.add_(1.0)
    finish.keep_best(torch.tensor([2.0, 4.0]))
    for tensor in moving:
        tensor.add_(1.0)
    finish.take_best()
    assert moving[0].tolist() == [[2.0, 2.0], [2.0, 2.0]] and moving[1].tolist() == [11.0, 20.0]
    assert finish.loss.tolist() == [2.0, 3.0] and finish.waited.tolist() == [0.0, 1.0]


def test_rates_fall_after_the_patience_and_the_best_returns():
    moving = [torch.zeros(2, 1)]
    finish = Stage2(moving, 2, 1.0)
    for step in range(4):
        finish.keep_best(
            torch.tensor([-float(step), float(step)])
        )  # the first image improves, the second not
        finish.decay(0.5, 3)
        moving[0].add_(1.0)
    assert finish.rate.tolist() == [1.0, 0.5]
    assert moving[0].flatten().tolist() == [4.0, 1.0]  # back to 0 at the last step, then moved once


def test_state_is_restored_exactly():
    moving = [torch.rand(2, 3)]
    finish = Stage2(moving, 2, 1.0)
    finish.keep_best(torch.tensor([1.0, 2.0]))
    other = Stage2([torch.rand(2, 3)], 2, 9.0)
    other.load_state_dict(finish.state_dict())
    assert (
        other.loss.equal(finish.loss)
        and other.rate.equal(finish.rate)
        and other.best[0].equal(finish.best[0])
    )


def test_memory_is_kept_within_and_given_back_after_even_an_error(monkeypatch):
    calls = []
    glibc = SimpleNamespace(
        mallopt=lambda *limit: calls.append(limit), malloc_trim=lambda pad: calls.append("trim")
    )
    monkeypatch.setattr(memory, "_glibc", lambda: glibc)
    with pytest.raises(KeyError), memory.kept():
        assert calls == [(-4, 0), (-1, 2**31 - 1)]  # no mmap, no trimming
        raise KeyError
    assert calls[2:] == [(-4, 65536), (-3, 32 << 20), (-1, 64 << 20), "trim"]


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    assert memory._glibc() is None
