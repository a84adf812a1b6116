# SPDX-License-Identifier: Apache-2.0
"""Which models are refined: a structure is added as CONTRIBUTING says, by a class and a row; subclasses and
wrapped models are taken; any other model is refused by what it lacks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import ChannelGroupsLatentCodec, GaussianConditionalLatentCodec
from compressai.models import CompressionModel
from compressai.models.utils import conv, deconv
from compressai.registry import MODELS
from torch import Tensor, nn

from compressai_sga.coding import set_coder
from compressai_sga.copies import copied
from compressai_sga.errors import UnsupportedModelError
from compressai_sga.lmbda import set_trained_lmbda, trained_lmbda
from compressai_sga.refine import ADAPTERS, LatentAdapter, refine, refined
from compressai_sga.refine.codecs import NODES, CodecTreeLatents, checkerboard
from compressai_sga.refine.latents import (
    Coded,
    FactorizedLatents,
    HyperpriorLatents,
    code_bottleneck,
    missing,
)
from compressai_sga.wrappers import unwrapped
from tests.small_models import build, picture

OPTIONS = {"steps": 3, "lmbda": 0.05, "lr": 0.05}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return picture(64, 64)


# --- The recipe --------------------------------------------------------------------------------


class TwoPriors(CompressionModel):
    """Each half of the channels of y under an entropy bottleneck of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.g_a = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8))
        self.g_s = nn.Sequential(deconv(8, 8), nn.ReLU(), deconv(8, 3))
        self.priors = nn.ModuleList(EntropyBottleneck(4) for _ in range(2))

    def compress(self, x: Tensor) -> dict:
        y = self.g_a(x)
        return {
            "strings": [prior.compress(half) for prior, half in zip(self.priors, y.chunk(2, 1))],
            "shape": y.shape[2:],
        }

    def decompress(self, strings, shape) -> dict:
        halves = [prior.decompress(part, shape) for prior, part in zip(self.priors, strings)]
        return {"x_hat": self.g_s(torch.cat(halves, 1)).clamp(0, 1)}


class TwoPriorsLatents(LatentAdapter):
    @staticmethod
    def lacks(model):
        return missing(model, {"g_a": nn.Module, "g_s": nn.Module, "priors": nn.ModuleList})

    @staticmethod
    def find_sources(model):
        return {"y": model.g_a}

    def code(self, latents, rounding):
        halves = zip(latents["y"].chunk(2, 1), self.model.priors)
        coded = [code_bottleneck(half, prior, rounding, "y") for half, prior in halves]
        y_hat, likelihoods = (torch.cat(parts, 1) for parts in zip(*coded))
        return Coded(y_hat, {"y": likelihoods}, {"y": y_hat})


@pytest.fixture
def row() -> Iterator[Callable[[], None]]:
    """Appends the row."""
    yield lambda: ADAPTERS.append(TwoPriorsLatents)
    ADAPTERS.remove(TwoPriorsLatents)


def test_the_recipe_for_a_latent_structure(images, row):
    torch.manual_seed(0)
    model = TwoPriors().eval()
    model.g_a[-1].weight.data.mul_(30)
    model.update()
    with pytest.raises(UnsupportedModelError, match=r"TwoPriors has none .* h_a, h_s, .*ADAPTERS"):
        refine(model, images, **OPTIONS)
    row()
    result = refine(model, images, **OPTIONS)
    assert result.after.loss < result.before.loss
    with torch.no_grad():
        assert torch.equal(model.decompress(result.strings, result.shape)["x_hat"], result.x_hat)


# --- Structure ---------------------------------------------------------------------------------


def test_subclasses_are_of_the_structure_whose_methods_they_inherit(images):
    class OwnContext(ChannelGroupsLatentCodec):
        def _get_ctx_params(self, k, side_params, y_hat_):
            return super()._get_ctx_params(k, side_params, [0.5 * y_hat for y_hat in y_hat_])

    model = build("elic2022-gdn")
    model.latent_codec.latent_codec["y"].__class__ = OwnContext
    result = refine(model, images, **OPTIONS)
    with torch.no_grad():
        x_hat = model.decompress(result.strings, result.shape)["x_hat"].clamp(0, 1)
    assert torch.equal(x_hat, result.x_hat)
    conditional = type("Own", (type(build("mbt2018-mean").gaussian_conditional),), {})
    model = build("mbt2018-mean")
    model.gaussian_conditional.__class__ = conditional
    refine(model, images, **OPTIONS)
    conditional.compress = lambda self, *args, **kwargs: None
    assert HyperpriorLatents.lacks(model) == ["GaussianConditional's own compress, which Own overrides"]


def test_a_node_of_several_methods_is_known_by_them_and_not_where_compress_alone_is_changed():
    class Residual(GaussianConditionalLatentCodec):
        def _split_ctx_params(self, ctx_params): ...
        def _apply_lrp(self, support, y_hat): ...
        def compress(self, y, ctx_params): ...
        def decompress(self, strings, shape, ctx_params): ...

    def code_of(kind):
        return [row.code.__name__ for row in NODES if row.matches(kind)]

    own = type("Own", (Residual,), {"_apply_lrp": lambda self, support, y_hat: y_hat})
    assert code_of(Residual) == code_of(own) == ["code_conditional_with_residual"]
    changed = {"compress": lambda *_: None, "decompress": lambda *_: None}
    assert code_of(type("Own", (Residual,), {"compress": changed["compress"]})) == []
    assert code_of(type("Own", (Residual,), changed)) == []
    assert code_of(type("Own", (GaussianConditionalLatentCodec,), {})) == ["code_conditional"]


def test_checkerboard_has_the_first_places_of_the_codec(images):
    codec = next(m for m in build("elic2022-gdn").modules() if hasattr(m, "anchor_parity"))
    for parity in ("even", "odd"):
        codec.anchor_parity = parity
        y = torch.arange(1.0, 25).view(1, 1, 4, 6)
        anchors = codec.unembed(y)[0]
        assert torch.equal(y[..., checkerboard(y, parity)].view(1, 1, 4, 3), anchors)


# --- Wrapped models ----------------------------------------------------------------------------


@functools.cache
def _expected() -> list[list[bytes]]:
    return refine(build("mbt2018-mean"), picture(64, 64), **OPTIONS).strings


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))],
    ids=["DataParallel", "compile", "both"],
)
def test_wrapped_models_are_refined_as_the_bare_one(wrap, images):
    bare = build("mbt2018-mean")
    model = wrap(bare)
    assert unwrapped(model) is unwrapped(bare) is bare
    assert refine(model, images, **OPTIONS).strings == _expected()
    set_trained_lmbda(model, 0.02)
    assert trained_lmbda(bare) == trained_lmbda(model) == 0.02
    called = model.module if isinstance(model, nn.DataParallel) else model
    with refined(model, **OPTIONS) as results:
        out = called.compress(images)
    assert out["strings"] == results[0].strings == _expected()
    assert "compress" not in vars(bare)
    with torch.no_grad():
        assert called.compress(images)["strings"] != _expected()
        set_coder(model, "constriction-range")
        out = called.compress(images)
        assert torch.equal(**_pair(called.decompress(**out)["x_hat"], bare.decompress(**out)["x_hat"]))
    assert bare.gaussian_conditional.entropy_coder.name == "constriction-range"


def _pair(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"input": a, "other": b}


def test_compiled_parts_are_copied_bare(images):
    model = build("mbt2018-mean")
    model.g_a, model.h_s = torch.compile(model.g_a), torch.compile(model.h_s)
    twin = copied(model)
    assert unwrapped(twin.g_a) is twin.g_a is not unwrapped(model.g_a)
    assert refine(model, images, **OPTIONS).strings == _expected()


def test_a_function_of_a_copy_refers_to_the_copy():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared = model[0]
    model[1].provider = lambda scale=2.0, *, shift=1.0: shared.weight * scale + shift
    model[1].plain = lambda: 5
    twin = copied(model)
    assert torch.equal(twin[1].provider(), model[1].provider())
    model[0].weight.data.zero_()
    assert model[1].provider().eq(1).all() and not twin[1].provider().eq(1).any()
    assert copy.deepcopy(twin)[1].plain() == 5


# --- Foreign models ----------------------------------------------------------------------------


def _points() -> nn.Module:
    model = MODELS["sfu2023-pcc-rec-pointnet"](
        64, {"g_a": [3, 8, 8], "g_s": [8, 8, 192]}, {"g_a": [1, 1]}
    ).eval()
    model.update()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "Linear has no compress and no decompress, so it makes no strings"),
        (nn.Identity, "Identity has no compress and no decompress"),
        (lambda: nn.DataParallel(nn.Conv2d(3, 3, 1)), "Conv2d has no compress"),
        (
            MODELS["ssf2020"],
            r"ScaleSpaceFlow has none .* latent_codec .* for CodecTreeLatents; g_a, g_s, h_a, h_s",
        ),
        (
            _points,
            r"PointNet\w+ fails for images x of shape \(1, 3, 64, 64\) \(.*takes images \(B, 3, H, W\)",
        ),
    ],
    ids=["linear", "identity", "wrapped", "video", "points"],
)
def test_foreign_models_are_refused_by_what_is_missing(make, message, images):
    with pytest.raises(UnsupportedModelError, match=message) as told:
        refine(make(), images, **OPTIONS)
    assert "image" in str(told.value)


def test_a_model_that_ignores_its_transform_is_refused(images):
    """As SAAF does, which runs the layers of g_a one by one."""
    model = build("mbt2018-mean")
    stock = type(model).compress

    def compress(x):
        for layer in model.g_a:
            x = layer(x)
        parts = model.g_a
        model.g_a = nn.Identity()
        try:
            return stock(model, x)
        finally:
            model.g_a = parts

    model.compress = compress
    with pytest.raises(UnsupportedModelError, match="does not call the module .* latent y; add an adapter"):
        refine(model, images, **OPTIONS)


def test_adapters_are_public_and_say_what_a_model_lacks():
    lacking = [adapter.lacks(nn.Linear(2, 2)) for adapter in ADAPTERS]
    assert all(lacking)
    assert lacking[-1] == ["g_a", "g_s", "entropy_bottleneck (EntropyBottleneck)"]
    for name, adapter in (
        ("elic2022-gdn", CodecTreeLatents),
        ("mbt2018", HyperpriorLatents),
        ("bmshj2018-factorized", FactorizedLatents),
    ):
        model = build(name)
        assert [a for a in ADAPTERS if not a.lacks(model)] == [adapter]
