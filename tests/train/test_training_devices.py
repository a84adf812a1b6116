# SPDX-License-Identifier: Apache-2.0
"""Claims of the recipe on a pretend GPU: training runs there and waits for it at most twice a step."""

from __future__ import annotations

import json

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck

from tests.pretend_cuda import REASON, PretendCuda

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def costs(gpu: PretendCuda, run) -> tuple[int, int]:
    """(waits, launches) of the second 4 steps, as many as from one average to the next; saves the run."""
    for _ in range(2):
        gpu.reset()
        for _ in range(4):
            run.train_step()
    found = gpu.count("waits"), gpu.count("kernels")
    run.save()
    return found


@pytest.mark.parametrize(
    ("arch", "M", "launches"), [("mbt2018-mean", "24", 1600), ("elic2022-gdn", "72", 3600)]
)
def test_training_on_a_gpu(arch, M, launches, photos, tmp_path, monkeypatch):
    import held_out
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "FINE", {"size": 128, "count": 1})
    monkeypatch.setattr(held_out, "CHECK_PX", 64)
    monkeypatch.setattr(held_out, "CHECK_CROPS", 1)
    # Thousands of launches for each check; the rest of the check is as always.
    monkeypatch.setattr(EntropyBottleneck, "_update_quantiles", lambda *_, **__: None)
    argv = ["--arch", arch, "-N", "16", "-M", M, "--data", str(photos), "--out", str(tmp_path / arch)]
    argv += ["--device", "cuda", "--lmbda", "0.01", "--max-steps"]
    with PretendCuda() as gpu:
        found = costs(gpu, train.Run(train.parse_args([*argv, "12"]), argv))
        assert found[0] <= 4 * 2, gpu.report()
        assert found[1] <= 4 * launches
        if arch != "mbt2018-mean":
            return
        train.main([*argv, "9"])  # on from the checkpoint, to the end
    record = json.loads((tmp_path / arch / "run.json").read_text())
    assert record["step"] == 9 and record["machine"] == "pretend"
    weights = torch.load(tmp_path / arch / "model.pth", weights_only=True)
    assert all(value.device.type == "cpu" for value in weights.values())


def test_bottlenecks_have_the_numbers_of_stock():
    from waits import keep_axes_on_cpu

    ours, stock = EntropyBottleneck(3), EntropyBottleneck(3)
    ours.load_state_dict(stock.state_dict())
    keep_axes_on_cpu(ours)
    x = 5 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        found = []
        for bottleneck in (ours, stock):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                found.append(bottleneck(x, training=training))
        assert all(torch.equal(*pair) for pair in zip(*found))


@pytest.mark.parametrize("model", ["hfd", "diffc"])
def test_denoisers_on_a_gpu(model, photos, tmp_path, monkeypatch):
    import denoiser

    monkeypatch.setattr(denoiser, "PAIR_SIZE", 64)
    monkeypatch.setattr(denoiser, "CHECK_COUNT", 4)
    argv = ["--model", model, "--size", "16", "--batch", "4", "--widths", "8", "16", "--device", "cuda"]
    argv += ["--pairs", "4", "--qualities", "1", "2", "--data", str(photos), "--out", str(tmp_path / model)]
    with PretendCuda() as gpu:
        waits, launches = costs(gpu, denoiser.Run(denoiser.parse_args([*argv, "--max-steps", "12"]), argv))
        assert waits <= 4 * 2, gpu.report()
        assert launches <= 4 * 2200
        denoiser.main([*argv, "--max-steps", "9"])
    assert json.loads((tmp_path / model / "run.json").read_text())["step"] == 9
