# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3 on a GPU: what it fits, any machine decodes; a batch is its images; a state goes on."""

import pytest
import torch

from compressai_sga.models.c3 import C3, C3Fast
from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.image_codec import decode_strings
from tests.models.c3.c3_pictures import natural

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("preset", ["c3-fast", "c3-paper"])
def test_strings_of_the_gpu_decode_on_the_cpu(preset):
    x = natural(64, 48, batch=2).cuda()
    model = C3(preset=preset, lmbda=1e-3, steps=60, progress=False)
    for fitted in model.fit(x):
        decoded = decode_strings(fitted.strings, (64, 48))
        assert all((a == b).all() for a, b in zip(decoded.grids, fitted.grids))
        x_hat = C3Fast().decompress([[s] for s in fitted.strings], (64, 48))["x_hat"][0]
        assert x_hat.device.type == "cpu"
        assert float((x_hat - fitted.x_hat.cpu()).abs().max()) <= 1 / 255


def test_the_gpus_fit_is_as_good_as_the_cpus():
    x, costs = natural(64, 64), []
    for device in ("cpu", "cuda"):
        fit = Fit(x.to(device), PRESETS["c3-fast"], 1e-3, steps=200)
        fit.run()
        costs.append(fit.progress().loss)
    assert costs[1] == pytest.approx(costs[0], rel=0.05)


def test_images_of_a_batch_have_their_own_trade_offs():
    x = natural(64, 64).cuda().expand(3, -1, -1, -1).contiguous()
    fit = Fit(x, PRESETS["c3-fast"], torch.tensor([4e-3, 1e-3, 2.5e-4]), steps=150)
    fit.run()
    bits = fit._last[1].tolist()
    assert bits[0] < bits[1] < bits[2]


def test_a_state_goes_on_where_it_was():
    x = natural(32, 32).cuda()
    one, other = (Fit(x, PRESETS["c3-fast"], 1e-3, steps=40) for _ in range(2))
    for _ in range(20):
        one.step()
    other.load_state_dict(one.state_dict())
    for fit in (one, other):
        fit.run()
    torch.testing.assert_close(one.plane, other.plane, atol=1e-3, rtol=0)
