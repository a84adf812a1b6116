# SPDX-License-Identifier: Apache-2.0
"""Claims of models/elic.py: each step sees the steps before it and no other, forward says what the bytes will
be, a process with nothing but the package decodes them, and the multiplications are those that it states."""

from __future__ import annotations

import copy
import pickle
import re

import compressai.zoo
import pytest
import torch
from compressai.latent_codecs import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    HyperpriorLatentCodec,
)
from compressai.registry import MODELS
from compressai.zoo.image import model_architectures
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compressai_sga.coding import CODERS, set_coder
from compressai_sga.errors import SgaError, ShapeError
from compressai_sga.models import elic
from compressai_sga.models.elic import _RENAMED, SpaceChannelContext
from compressai_sga.models.gains import fold
from tests.small_models import once

GROUPS = [4, 4, 16]


@once
def build(N: int = 16, M: int = 24, groups: list[int] | None = GROUPS) -> SpaceChannelContext:
    """Random weights; latents and predicted scales of a few steps."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = SpaceChannelContext(N, M, groups)
        for codec in model.latent_codec.latent_codec["y"].latent_codec.values():
            codec.context_prediction.weight.data *= 4
            last = codec.entropy_parameters[-1]
            last.bias.data[: last.out_channels // 2] += 2
        model.g_s[-1].bias.data.fill_(0.5)
        with torch.no_grad():
            model.g_a[-1].weight.mul_(3 / model.g_a(image()).std())
        model.update(update_quantiles=True)
    return model.eval()


def image(height: int = 64, width: int = 128, batch: int = 1, seed: int = 1) -> Tensor:
    coarse = torch.rand(batch, 3, height // 6, width // 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def white(y: Tensor) -> Tensor:
    """Where a checkerboard begins: i + j is even."""
    rows, columns = (torch.arange(size) for size in y.shape[2:])
    return ((rows[:, None] + columns) % 2 == 0).expand_as(y)


def steps(y: Tensor, groups: list[int] = GROUPS) -> list[Tensor]:
    """What each step codes, masks of y's shape, in the order of coding."""
    masks, start = [], 0
    for size in groups:
        group = torch.zeros_like(y, dtype=torch.bool)
        group[:, start : start + size] = True
        masks += [group & white(y), group & ~white(y)]
        start += size
    return masks


# --- Steps ---------------------------------------------------------------------------------------


def test_it_is_made_of_stock_parts():
    net = SpaceChannelContext()
    assert (net.N, net.M, net.groups) == (64, 192, [16, 16, 32, 128])
    assert type(net.latent_codec) is HyperpriorLatentCodec
    groups = net.latent_codec["y"]
    assert type(groups) is ChannelGroupsLatentCodec and groups.groups == net.groups
    for codec in groups.latent_codec.values():
        assert isinstance(codec, CheckerboardLatentCodec)
        assert type(codec).compress is CheckerboardLatentCodec.compress
    assert len(steps(torch.zeros(1, 192, 4, 4), net.groups)) == 8  # "in eight parallel steps"


@torch.no_grad()
def test_a_step_depends_on_the_steps_before_it_alone():
    """Another y in one step: all strings before stay, its own and every one after it are others.

    And so do the likelihoods of forward, in which a step after it stands for its own string.
    """
    model = build()
    codec, y = model.latent_codec.latent_codec["y"], model.g_a(image())
    params = torch.randn(1, 32, *y.shape[2:], generator=torch.Generator().manual_seed(0))
    strings, p = codec.compress(y, params)["strings"], codec(y, params)["likelihoods"]["y"]
    masks = steps(y)
    assert len(strings) == len(masks) == 6
    for s, mask in enumerate(masks):
        other = torch.where(mask, y + 3, y)
        moved, q = codec.compress(other, params)["strings"], codec(other, params)["likelihoods"]["y"]
        for t, coded in enumerate(masks):
            assert (moved[t] == strings[t]) is (t < s), (s, t)
            assert torch.equal(q[coded], p[coded]) is (t < s), (s, t)


@torch.no_grad()
def test_white_squares_see_no_network_of_their_own():
    """The zeros that they get instead are stock's, without its run of the network."""
    codec = build().latent_codec["y"].latent_codec["y1"]
    y = torch.randn(2, 4, 4, 6)
    zeros = codec._y_ctx_zero(y)
    assert torch.equal(zeros, CheckerboardLatentCodec._y_ctx_zero(codec, y))
    codec.context_prediction.register_forward_hook(lambda *_: pytest.fail("it ran"))
    codec._y_ctx_zero(y)


# --- Bytes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> SpaceChannelContext:
    """Just enough for scales that fit the latents."""
    model = build().train()
    optimizer = torch.optim.Adam((p for n, p in model.named_parameters() if "quantiles" not in n), lr=3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(50):
            x = image(64, 64, batch=4, seed=100 + step)
            out = model(x)
            bits = sum(-p.log2().sum() for p in out["likelihoods"].values())
            loss = bits / (4 * 64**2) + 0.05 * 255**2 * (out["x_hat"] - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.update(force=True, update_quantiles=True)
    return model.eval()


@torch.no_grad()
def test_forward_says_what_the_bytes_are(trained):
    """Bits within 1 %, of stock's coder and ours; the image is the same but for the clamp."""
    model, x = copy.deepcopy(trained), image(384, 512)  # large: each string has an end
    out = model(x)
    bits = sum(float(-p.log2().sum()) for p in out["likelihoods"].values())
    for coder in ("ans", *CODERS):
        coded = set_coder(model, coder).compress(x)
        assert len(coded["strings"]) == 7
        assert 8 * sum(len(s[0]) for s in coded["strings"]) == pytest.approx(bits, rel=0.01), coder
        decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
        assert (decoded - out["x_hat"].clamp(0, 1)).abs().max() < 1e-5 < 0.1 < decoded.std()


@torch.no_grad()
def test_images_of_a_batch_are_coded_apart():
    model, x = build(), image(batch=2)
    both, alone = model.compress(x), model.compress(x[1:])
    assert [s[1] for s in both["strings"]] == [s[0] for s in alone["strings"]]


DECODER = """
import pickle, sys, torch
import compressai_sga
from compressai.registry import MODELS
torch.set_num_threads(1)
images = []
for coder, state, strings, shape in pickle.load(open(sys.argv[1], "rb")):
    model = MODELS["elic2022-gdn"].from_state_dict(state).eval()
    with torch.no_grad():
        images.append(compressai_sga.coding.set_coder(model, coder).decompress(strings, shape)["x_hat"])
torch.save(images, sys.argv[2])
"""


@torch.no_grad()
def test_a_fresh_process_decodes(tmp_path, python):
    """From the numbers and the strings; a folded model of another rate too."""
    x, jobs, expected = image(), [], []
    for gain, coder in ((1.0, "ans"), (1.0, "constriction-exact"), (0.6, "constriction-ans"), (1.7, "ans")):
        model = set_coder(fold(build(), gain), coder)
        coded = model.compress(x)
        jobs.append((coder, model.state_dict(), coded["strings"], coded["shape"]))
        expected.append(model.decompress(coded["strings"], coded["shape"])["x_hat"])
        assert (expected[-1] - model(x)["x_hat"].clamp(0, 1)).abs().max() < 1e-5
    sizes = [sum(len(s[0]) for s in strings) for _, _, strings, _ in jobs]
    assert sizes[2] < 0.9 * sizes[0] < sizes[0] < 0.95 * sizes[3]
    (tmp_path / "jobs.pkl").write_bytes(pickle.dumps(jobs))
    python("-c", DECODER, tmp_path / "jobs.pkl", tmp_path / "images.pt", check=True)
    for got, wanted in zip(torch.load(tmp_path / "images.pt"), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-5


# --- A module like others --------------------------------------------------------------------------


def test_state_dicts_of_both_versions_of_compressai_load():
    """Whose hyperprior has other names in 1.2.8 than since."""
    model = build()
    here = model.state_dict()
    since = "latent_codec.h_a.0.weight" in here
    renamed = {}
    for key, tensor in here.items():
        for names in _RENAMED:
            key = key.replace(*(names[::-1] if since else names))
        renamed[key] = tensor
    assert len(set(renamed) - set(here)) > 15
    again = SpaceChannelContext.from_state_dict(renamed)
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, here[key]), key
    with pytest.raises(RuntimeError, match="latent_codec.other"):
        again.load_state_dict({**renamed, "latent_codec.other": torch.zeros(1)})


@pytest.mark.parametrize("groups", [None, [70], [1] * 12 + [58], [16, 16, 32, 6]])
def test_from_state_dict_finds_widths_and_groups(groups):
    """Also of more than ten groups, whose names do not sort as their numbers do."""
    model = SpaceChannelContext(8, 70, groups)
    if groups is not None and len(groups) > 10:
        groups = groups[:3] + [2] + groups[4:-1] + [57]
        model = SpaceChannelContext(8, 70, groups)
    again = SpaceChannelContext.from_state_dict(model.state_dict())
    assert (again.N, again.M, again.groups) == (8, 70, groups or [16, 16, 32, 6])
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_tables_are_made_once_and_kept():
    model = build()
    assert not model.update() and model.update(force=True)
    again = SpaceChannelContext.from_state_dict(model.state_dict())
    with torch.no_grad():
        assert again.eval().compress(image())["strings"] == model.compress(image())["strings"]


def test_copies_pickles_and_devices_take_everything_along():
    model, x = build(), image()
    with torch.no_grad():
        strings = model.compress(x)["strings"]
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other.compress(x)["strings"] == strings
    codec = copy.deepcopy(model).to("meta").latent_codec["y"]
    y, params = torch.zeros(1, 24, 4, 8, device="meta"), torch.zeros(1, 32, 4, 8, device="meta")
    assert codec(y, params)["likelihoods"]["y"].device.type == "meta"


def test_gradients_reach_every_parameter():
    model = build().train()
    out = model(image())
    loss = sum(-p.log().mean() for p in out["likelihoods"].values()) + out["x_hat"].square().mean()
    loss.backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(name.endswith("quantiles") for name in unused)


def test_names():
    assert MODELS["elic2022-gdn"] is model_architectures["elic2022-gdn"] is SpaceChannelContext
    assert elic.ARCHITECTURES == {"elic2022-gdn": SpaceChannelContext}
    make = compressai.zoo.image_models["elic2022-gdn"]
    assert make is compressai.zoo.models["elic2022-gdn"] and make(quality=3, N=8, M=70).M == 70
    with pytest.raises(SgaError, match="no published weights for elic2022-gdn.*-a elic2022-gdn -p FILE"):
        make(quality=3, pretrained=True)


@pytest.mark.parametrize(
    ("M", "groups", "sentence"),
    [
        (24, [4, 4], r"groups \[4, 4\] have 8 channels and M is 24; they must be positive and sum to M"),
        (24, [4, 24, -4], "they must be positive"),
        (0, [], "they must be positive"),
        (64, None, r"groups \[16, 16, 32, 0\] have 64 channels.*M above 64 where none are given"),
    ],
)
def test_groups_that_do_not_fit(M, groups, sentence):
    with pytest.raises(ValueError, match=sentence):
        SpaceChannelContext(8, M, groups)


@pytest.mark.parametrize("size", [(64, 80), (96, 64), (63, 64)])
def test_other_sides_are_refused(size):
    model = build()
    assert model.downsampling_factor == 64
    for use in (model, model.compress):
        with pytest.raises(ShapeError, match=rf"{size[1]}x{size[0]} px; both sides must be multiples of 64"):
            use(torch.zeros(1, 3, *size))


# --- Multiplications -------------------------------------------------------------------------------


def counted(call, *args) -> float:
    """Multiplications a pixel of an image of 64x64, as PyTorch dispatches them."""
    with FlopCounterMode(display=False) as counter:
        call(*args)
    return counter.get_total_flops() / 2 / 64**2


@torch.no_grad()
def test_multiplications_are_those_of_a_hand():
    """Of the docstring: 20.1k, 19.5k, 7.0k; 25.4k of ELIC's, which are 28 %.

    In decoding, stock runs a group's checkerboard for white squares too, and what joins for each square once.
    """
    N, M, groups = 64, 192, [16, 16, 32, 128]
    before = [16, 32, 64]  # channels that a group sees
    gdn = sum(N * N / 4**i for i in (1, 2, 3))
    g_a = gdn + 25 * (3 * N / 4 + N * N / 16 + N * N / 64 + N * M / 256)
    h_a = (9 * M * N + 25 * N * N / 4 + 25 * N * N / 16) / 256
    h_s = (25 * N * N / 16 + 25 * N * 2 * N / 4 + 9 * (2 * N) ** 2) / 256
    channels = sum(25 * n * 96 + 9 * 96 * 96 for n in before)
    squares = 2 * sum(25 * n * 96 for n in groups)
    joining = sum(((96 + 2 * N + 96 * (k > 0)) * 224 + 224 * 2 * n) for k, n in enumerate(groups))
    contexts = (channels + squares + joining) / 256
    decoder, encoder = g_a + h_s + contexts, g_a + h_a + h_s + contexts

    model, x = SpaceChannelContext().eval(), image(64, 64)
    model.update()
    coded = model.compress(x)
    assert counted(model.compress, x) == pytest.approx(encoder)
    assert counted(model.decompress, coded["strings"], coded["shape"]) == pytest.approx(decoder)

    theirs = MODELS["elic2022-official"](N, M, groups).eval()
    theirs.update()
    channels = sum(25 * (n * 224 + 224 * 128 + 128 * 2 * own) for n, own in zip(before, groups[1:]))
    squares = 2 * sum(25 * n * 2 * n for n in groups)
    widths = [(2 * n * (2 if k else 1) + 2 * N, 2 * n) for k, n in enumerate(groups)]
    joining = 0
    for first, last in widths:  # three layers, in between on the straight line, at least 2 N wide
        a, b = (max(2 * N, int(first + (last - first) * t / 3)) for t in (1, 2))
        joining += first * a + a * b + b * last
    of_elic = (channels + squares + joining) / 256
    codec = theirs.latent_codec
    coded = codec.compress(theirs.g_a(x))
    hyper = (25 * N * N / 16 + 25 * N * 96 / 4 + 9 * 96 * 2 * N) / 256
    assert counted(codec.decompress, coded["strings"], coded["shape"]) == pytest.approx(of_elic + hyper)

    text = re.sub(r"\s+", " ", elic.__doc__)
    for said in (
        f"{encoder / 1000:.1f}k to compress, {decoder / 1000:.1f}k to decompress, of which "
        f"{contexts / 1000:.1f}k in the nets that see contexts",
        f"take {of_elic / 1000:.1f}k there: ours are {contexts / of_elic:.0%}".replace("%", " %"),
    ):
        assert said in text
