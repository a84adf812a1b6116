# SPDX-License-Identifier: Apache-2.0
"""DiffC as a CompressAI model: strings, rates, batches, sizes, state dicts, errors."""

import math

import pytest
import torch

from compressai_sga.errors import BitstreamError, SgaError, ShapeError, UnsupportedModelError
from compressai_sga.models.diffc import QUALITY_BPP, DiffC, DiffCAncestral, DiffCFlow
from compressai_sga.models.diffc.codec import encode_image
from compressai_sga.models.diffc.network import SCALE
from compressai_sga.models.diffc.process import reconstruct
from tests.models.diffc.diffc_parts import WINDOW, costs, images, random_denoiser, random_model


def bpp(out: dict) -> float:
    return 8 * len(out["strings"][0][0]) / math.prod(out["shape"])


def test_round_trip_and_layout():
    model, x = random_model(), images(2, seed=4)
    out = model.compress(x)
    assert len(out["strings"]) == 1 and len(out["strings"][0]) == 2 and out["shape"] == (WINDOW, WINDOW)
    x_hat = model.decompress(**out)["x_hat"]
    assert x_hat.shape == x.shape and 0 <= float(x_hat.min()) and float(x_hat.max()) <= 1
    assert torch.equal(x_hat, model.decompress(**out)["x_hat"])
    model.check(**out)
    # The random network knows nothing, but what was sent is in the image.
    assert float((x_hat[0] - x[0]).square().mean()) < float((x_hat[0] - x[1]).square().mean())


def test_the_image_is_where_the_flow_leads_what_was_sent():
    model, x = random_model(), images(seed=4)
    coder = model.coder()
    code = encode_image((x[0] - 0.5) / SCALE, coder, target_bits=0.5 * WINDOW**2)
    steps = math.ceil(4 * (9.5 - code.log_snr) / 17.5)
    x_hat = reconstruct(coder.denoiser, code.z[None], code.log_snr, steps=steps, highest=9.5)
    expected = (x_hat * SCALE + 0.5).float().clamp(0, 1)
    assert torch.equal(model.decompress([[code.data]], (WINDOW, WINDOW))["x_hat"], expected)


def test_an_image_alone_is_what_it_is_in_a_batch():
    model, x = random_model(), images(3, seed=5)
    out = model.compress(x)
    x_hat = model.decompress(**out)["x_hat"]
    alone = model.compress(x[1:2])
    assert alone["strings"][0][0] == out["strings"][0][1]
    assert torch.equal(model.decompress(**alone)["x_hat"][0], x_hat[1])


def test_both_reconstructions_share_the_bytes():
    x = images(seed=6)
    ancestral, flow = random_model(DiffCAncestral), random_model(DiffCFlow)
    out = ancestral.compress(x)
    assert out == flow.compress(x)
    drawn, led = ancestral.decompress(**out)["x_hat"], flow.decompress(**out)["x_hat"]
    assert not torch.equal(drawn, led)
    assert torch.equal(drawn, ancestral.decompress(**out)["x_hat"])


def test_rates():
    x = images(1, 24, 24, seed=7)
    for target in (0.4, 1.0):
        assert bpp(random_model(bpp=target).compress(x)) == pytest.approx(target, rel=0.2)
    assert bpp(random_model(bits=300, bpp=None).compress(x)) == pytest.approx(300 / 576, rel=0.2)
    by_quality = random_model(bpp=None, quality=3).compress(x)
    assert by_quality == random_model(bpp=QUALITY_BPP[2]).compress(x)
    lengths = [len(random_model(bpp=None, step=n).compress(x)["strings"][0][0]) for n in (1, 3, 5)]
    assert lengths == sorted(set(lengths))
    assert len(QUALITY_BPP) == 8 and list(QUALITY_BPP) == sorted(QUALITY_BPP)


def test_prefixes():
    model, x = random_model(bpp=1.0), images(seed=8)
    out = model.compress(x)
    whole = model.decompress(**out)["x_hat"]
    size = len(out["strings"][0][0])
    assert torch.equal(model.decompress(**out, max_bytes=size + 5)["x_hat"], whole)
    part = model.decompress(**out, max_bytes=size // 2)["x_hat"]
    cut = [[out["strings"][0][0][: size // 2]]]
    assert torch.equal(model.decompress(cut, out["shape"], max_bytes=size)["x_hat"], part)
    assert float((whole - x).square().mean()) < float((part - x).square().mean())
    with pytest.raises(BitstreamError, match="max_bytes"):
        model.decompress(cut, out["shape"])


@pytest.mark.parametrize("size", [(17, 29), (12, 40), (4, 4)], ids=str)
def test_sizes(size):
    model, x = random_model(), images(1, *size)
    out = model.compress(x)
    assert model.decompress(**out)["x_hat"].shape == x.shape and model.downsampling_factor == 1


def test_forward_counts_the_divergence_of_an_ideal_channel():
    model, x = random_model(bpp=0.8), images(2, 24, 24, seed=7)
    out = model(x)
    assert out["x_hat"].shape == out["likelihoods"]["z"].shape == x.shape
    bits = -out["likelihoods"]["z"].log2().flatten(1).sum(1)
    assert bits.tolist() == pytest.approx([0.8 * 576] * 2, rel=0.15)
    torch.testing.assert_close(model(x)["x_hat"], out["x_hat"])


def test_state_dict_goes_round_in_half_precision():
    model, x = random_model(), images(seed=4)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    loaded = DiffCFlow.from_state_dict(state, size=6, steps=4, bpp=0.5)
    again = DiffCAncestral.from_state_dict(loaded.state_dict(), size=6, steps=4, bpp=0.5)
    assert loaded.compress(x) == again.compress(x)
    assert next(loaded.parameters()).dtype == torch.float32
    other = random_model()
    other.load_state_dict(loaded.state_dict())
    assert other.compress(x) == loaded.compress(x)
    assert model.update() is not True  # there are no tables


def test_other_models_are_refused():
    out = random_model().compress(images(seed=4))
    with pytest.raises(BitstreamError, match="another model"):
        DiffCFlow(random_denoiser(seed=3), costs=costs().clone()).decompress(**out)


def test_a_fresh_process_with_other_threads_gets_the_same(tmp_path, python):
    model, x = random_model(), images(1, 40, 24, seed=4)
    out = model.compress(x)
    torch.save((model.state_dict(), out["strings"], tuple(out["shape"])), tmp_path / "stream")
    script = (
        "import torch, sys\n"
        "from compressai_sga.models.diffc import DiffCFlow\n"
        "state, strings, shape = torch.load(sys.argv[1])\n"
        "model = DiffCFlow.from_state_dict(state, steps=4)\n"
        "torch.save(model.decompress(strings, shape)['x_hat'], sys.argv[2])\n"
    )
    python("-c", script, tmp_path / "stream", tmp_path / "x_hat", check=True, OMP_NUM_THREADS="2")
    assert torch.equal(torch.load(tmp_path / "x_hat"), model.decompress(**out)["x_hat"])


def test_a_model_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4,
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        )  # fmt: skip
    unet.save_pretrained(tmp_path)
    diffusers.DDPMScheduler(clip_sample=True).save_pretrained(tmp_path)
    knobs = {"bpp": 0.5, "size": 6, "steps": 3}
    model = DiffCFlow.from_diffusers(tmp_path, images(4, seed=9), **knobs)
    x = images(1, 20, 16, seed=4)
    out = model.compress(x)
    x_hat = model.decompress(**out)["x_hat"]
    again = DiffCFlow.from_state_dict(model.state_dict(), **knobs)
    assert again.compress(x) == out and torch.equal(again.decompress(**out)["x_hat"], x_hat)


def test_a_bar_counts_steps(capsys):
    random_model(progress=True).compress(images(seed=4))
    assert "diffc compress" in capsys.readouterr().err
    random_model(progress=False).compress(images(seed=4))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.compress(images(1, 3, 20)), ShapeError, "pad"),
        (lambda m: m.compress(images()[0]), ShapeError, "B, 3, H, W"),
        (lambda m: m.decompress([[b"abc"]], (3, 20)), ShapeError, "pad"),
        (lambda m: m.decompress([], (16, 16)), BitstreamError, "one string"),
        (lambda m: m.decompress([[b"a"], [b"a"]], (16, 16)), BitstreamError, "one string"),
        (lambda m: m.decompress([[b""]], (16, 16)), BitstreamError, "header"),
        (lambda m: m.decompress([[b"a"]], (16, 16), max_bytes=0), ValueError, "at least 1"),
        (lambda m: DiffC(random_denoiser()).compress(images()), SgaError, "measure_costs"),
        (lambda m: DiffC(random_denoiser(), quality=9), ValueError, "1 to 8"),
        (lambda m: DiffC(random_denoiser(), bpp=0.0), ValueError, "positive"),
        (lambda m: DiffC(random_denoiser(), steps=0), ValueError, "at least 1"),
        (lambda m: DiffC(random_denoiser(), seed=-1), ValueError, "seed"),
        (lambda m: DiffC(random_denoiser(), steps_limit=256), ValueError, "1 to 255"),
        (lambda m: DiffC(random_denoiser(), channel="mrc"), ValueError, "orc"),
        (lambda m: DiffC(torch.nn.Identity()), UnsupportedModelError, "PixelDenoiser"),
        (lambda m: DiffC.from_state_dict({"a": torch.ones(1)}), ValueError, "measure_costs"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(random_model())
