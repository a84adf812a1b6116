# SPDX-License-Identifier: Apache-2.0
"""Claims of coding/autoregressive.py: fronts see what pixels see, both sides compute the same bits."""

from __future__ import annotations

import pytest
import torch
from compressai.entropy_models import GaussianConditional
from compressai.latent_codecs import RasterScanLatentCodec
from compressai.layers import CheckerboardMaskedConv2d, MaskedConv2d
from compressai.models import JointAutoregressiveHierarchicalPriors
from compressai.models.base import get_scale_table
from compressai.models.vbr import JointAutoregressiveHierarchicalPriorsVbr
from torch import nn

import compressai_sga
from compressai_sga.coding import CODERS, checksum, set_coder
from compressai_sga.coding.autoregressive import MEANS, _Scan, scan_compress, scan_decompress
from compressai_sga.errors import BitstreamError, ShapeError

CHANNELS = 6


@pytest.fixture(autouse=True)
def enabled():
    compressai_sga.hooks.enable()


def parts(kernel_size: int = 5, name: str = "constriction-ans", gain: float = 3.0) -> tuple:
    """A conditional, the 1x1 network and the masked convolution, with weights that make y matter."""
    torch.manual_seed(kernel_size)
    conditional = GaussianConditional(get_scale_table().tolist(), entropy_coder=name)
    conditional.update()
    network = nn.Sequential(nn.Conv2d(20, 16, 1), nn.LeakyReLU(inplace=True), nn.Conv2d(16, 2 * CHANNELS, 1))
    context = MaskedConv2d(CHANNELS, 12, kernel_size, padding=kernel_size // 2)
    context.weight.data *= gain
    return conditional, network.eval(), context


def latents(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    y = 5 * torch.randn(1, CHANNELS, height, width, generator=generator)
    return y, torch.randn(1, 8, height, width, generator=generator)


def pixel_by_pixel(y, params, conditional, network, context) -> tuple[torch.Tensor, torch.Tensor]:
    """y_hat and the scales in raster order, float64, by whole masked convolutions."""
    network, context = network.double(), context.double()
    y_hat, scales = torch.zeros_like(y.double()), torch.zeros_like(y.double())
    with torch.no_grad():
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                out = network(torch.cat([params.double(), context(y_hat)], 1))[0, :, i, j]
                scales[0, :, i, j], mean = out.chunk(2)
                y_hat[0, :, i, j] = torch.round(y[0, :, i, j].double() - mean) + mean
    network.float(), context.float()
    return y_hat, scales


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (9, 1), (4, 7), (8, 3)])
def test_fronts_are_pixels_in_another_order(kernel_size, height, width):
    y, params = latents(height, width)
    expected, _ = pixel_by_pixel(y, params, *parts(kernel_size))
    string, y_hat = scan_compress(y, params, *parts(kernel_size))
    assert (y_hat - expected).abs().max() < 1e-5
    assert torch.equal(scan_decompress(string, params, *parts(kernel_size)), y_hat)


@pytest.mark.parametrize("name", CODERS)
def test_decoded_bits_are_encoded_bits(name):
    """y_hat in float64, before anything is rounded: not close, equal."""
    y, params = latents(11, 13)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        string, y_hat = scan_compress(y.double(), params.double(), *parts(5, name))
        assert torch.equal(scan_decompress(string, params.double(), *parts(5, name)), y_hat)
    torch.set_num_threads(1)


def test_slopes():
    """A front holds all pixels with equal slope * i + j, slope = k // 2 + 1."""
    for kernel_size, slope in ((1, 1), (3, 2), (5, 3), (7, 4)):
        scan = _Scan(latents(5, 6)[1], CHANNELS, *parts(kernel_size)[1:], None, None)
        assert scan.slope == slope
        fronts = list(scan.fronts())
        assert sorted(torch.cat([f.pixels for f in fronts]).tolist()) == list(range(30))
        for front in fronts:
            rows, columns = front.pixels // 6, front.pixels % 6
            assert len(set((slope * rows + columns).tolist())) == 1
    with pytest.raises(ValueError, match="not causal"):
        context = MaskedConv2d(CHANNELS, 12, 5, padding=2, mask_type="B")
        _Scan(latents(5, 6)[1], CHANNELS, parts()[1], context, None, None)
    with pytest.raises(ValueError, match="not causal"):
        context = CheckerboardMaskedConv2d(CHANNELS, 12, 5, padding=2)
        _Scan(latents(5, 6)[1], CHANNELS, parts()[1], context, None, None)


def test_a_network_that_is_more_than_convolutions():
    """It is called as it is, one pixel an item of the batch; the same for another merge."""

    class Network(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            assert x.shape[2:] == (1, 1)
            return self.inner(x)

    y, params = latents(5, 6)
    conditional, network, context = parts()
    string, y_hat = scan_compress(y, params, conditional, network, context)
    called, again = scan_compress(y, params, conditional, Network(network), context)
    assert called == string and (y_hat - again).abs().max() < 1e-6
    assert torch.equal(scan_decompress(called, params, conditional, Network(network), context), again)

    def merge(a, b):
        return torch.cat([b, a], 1)

    other, theirs = scan_compress(y, params, conditional, network, context, merge=merge)
    assert other != string
    assert torch.equal(scan_decompress(other, params, conditional, network, context, merge=merge), theirs)


@pytest.mark.parametrize("name", CODERS)
def test_damage_is_refused(name):
    y, params = latents(5, 6)
    string, _ = scan_compress(y, params, *parts(5, name))
    cases = [string[:n] for n in range(0, len(string), 31)] + [string + b"\1", b"\xff" * len(string)]
    for bit in range(0, 8 * len(string), 79):
        flipped = bytearray(string)
        flipped[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(flipped))
    for case in cases:
        with pytest.raises(BitstreamError):
            scan_decompress(case, params, *parts(5, name))
    with pytest.raises(BitstreamError):
        scan_decompress(string, params + 0.3, *parts(5, name))
    for nonsense in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(BitstreamError):
            scan_decompress(string, torch.full_like(params, nonsense), *parts(5, name))


def test_an_exhausted_string_ends_the_scan_at_once(monkeypatch):
    y, params = latents(30, 40)
    string, _ = scan_compress(y, params, *parts())
    fronts = []
    put = _Scan.put
    monkeypatch.setattr(_Scan, "put", lambda self, front, y_hat: fronts.append(1) or put(self, front, y_hat))
    with pytest.raises(BitstreamError):
        scan_decompress(string[:9], params, *parts())
    assert len(fronts) < 70  # of 3 * 29 + 40


def test_checksums_agree():
    y, params = latents(5, 6)
    with checksum.record() as encoded:
        string, _ = scan_compress(y, params, *parts())
    with checksum.record() as decoded:
        scan_decompress(string, params, *parts())
    assert (encoded.crc32, encoded.symbols) == (decoded.crc32, decoded.symbols)
    assert encoded.symbols == 30 * CHANNELS and encoded.crc32


# --- Inside the models ---------------------------------------------------------------------------


def model_of(kind: type, name: str) -> nn.Module:
    torch.manual_seed(1)
    model = kind(8, 12).eval()
    for parameter in model.g_a.parameters():
        if parameter.ndim == 4:
            parameter.data.mul_(2.2)
    model.update(force=True)
    return set_coder(model, name)


def image(seed: int = 0, batch: int = 1) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 10, 14, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(64, 128), mode="bicubic").clamp(0, 1)


@torch.no_grad()
def test_the_string_depends_on_its_image_alone():
    """Not on the batch that it was coded in."""
    model, x = model_of(JointAutoregressiveHierarchicalPriors, "constriction-ans"), image(batch=3)
    y, params = 5 * torch.randn(3, 12, 4, 8), torch.randn(3, 24, 4, 8)
    three = (model.gaussian_conditional, model.entropy_parameters, model.context_prediction)
    for i in range(3):
        string, _ = scan_compress(y[i : i + 1], params[i : i + 1], *three)
        again, _ = scan_compress(y[i : i + 1].clone(), params[i : i + 1].clone(), *three)
        assert string == again
    out = model.compress(x)
    decoded = model.decompress(out["strings"], out["shape"])["x_hat"]
    assert len(out["strings"][0]) == 3 and decoded.shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    "offsets, recursive, shift", [(True, True, True), (True, False, True), (False, True, False)]
)
def test_variable_rate(stage, offsets, recursive, shift):
    """All its switches; stock decodes x_hat as ours does."""
    rate = {"stage": stage, "s": 0, "inputscale": torch.tensor(0.7)}
    images = {}
    for name in ("ans", "constriction-ans", "constriction-exact"):
        model = model_of(JointAutoregressiveHierarchicalPriorsVbr, name)
        model.no_quantoffset, model.ste_recursive, model.scl2ctx = not offsets, recursive, shift
        out = model.compress(image(), **rate)
        images[name] = model.decompress(out["strings"], out["shape"], **rate)["x_hat"]
    assert images["ans"].std() > 0.01
    for decoded in images.values():
        assert (decoded - images["ans"]).abs().max() < 1e-5


@torch.no_grad()
def test_compress_leaves_y_hat_as_stock_does():
    stock = model_of(JointAutoregressiveHierarchicalPriors, "ans")
    y, params = 5 * torch.randn(1, 12, 4, 8), torch.randn(1, 24, 4, 8)
    padded = [nn.functional.pad(y, (2, 2, 2, 2)) for _ in range(2)]
    stock._compress_ar(padded[0], params, 4, 8, 5, 2)
    ours = set_coder(stock, "constriction-range")
    string = ours._compress_ar(padded[1], params, 4, 8, 5, 2)
    assert torch.allclose(padded[0], padded[1], atol=1e-5)
    decoded = torch.zeros_like(padded[1])
    assert ours._decompress_ar(string, decoded, params, 4, 8, 5, 2) is None
    assert torch.equal(decoded, padded[1])


@torch.no_grad()
def test_an_image_that_was_not_padded_is_refused():
    model = model_of(JointAutoregressiveHierarchicalPriors, "constriction-ans")
    with pytest.raises(ShapeError, match="downsampling_factor"):
        model.compress(torch.rand(1, 3, 72, 64))


@torch.no_grad()
def test_raster_scan_codec():
    """The latent codec, of two images: stock's own strings of two do not decode."""
    y, params = 5 * torch.randn(2, CHANNELS, 4, 5), torch.randn(2, 8, 4, 5)
    codec = RasterScanLatentCodec(*parts())
    shape = codec.compress(y[:1], params[:1])[
        "shape"
    ]  # with the number of channels in CompressAI after 1.2.8
    for name in CODERS:
        set_coder(codec, name)
        out = codec.compress(y, params)
        assert out["shape"] == shape and shape[-2:] == y.shape[2:]
        assert len(out["strings"]) == 1 and len(out["strings"][0]) == 2
        decoded = codec.decompress(out["strings"], out["shape"], params)
        assert torch.equal(decoded["y_hat"], out["y_hat"])
    with pytest.raises(ShapeError):
        codec.decompress(out["strings"], (*shape[:-2], 5, 5), params)
    set_coder(codec, "ans")
    for i in range(2):
        theirs = codec.compress(y[i : i + 1], params[i : i + 1])
        assert torch.allclose(theirs["y_hat"], out["y_hat"][i : i + 1], atol=1e-5)
        decoded = codec.decompress(theirs["strings"], theirs["shape"], params[i : i + 1])
        assert torch.allclose(decoded["y_hat"], out["y_hat"][i : i + 1], atol=1e-5)


def test_means_are_the_default():
    assert MEANS.scale is None and MEANS.coded_scales(torch.ones(2)).tolist() == [1, 1]
