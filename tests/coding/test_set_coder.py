# SPDX-License-Identifier: Apache-2.0
"""Claims of coding/binding.py: a coder bound to one model codes as the process-wide route does, for every
latent structure, without hooks, in several threads at once; CompressAI's classes stay as they are."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import compressai
import pytest
import torch
from compressai.entropy_models import GaussianConditional, GaussianMixtureConditional
from compressai.latent_codecs import RasterScanLatentCodec
from compressai.layers import MaskedConv2d
from compressai.models.base import get_scale_table
from torch import nn

from compressai_sga import files, hooks, zoo
from compressai_sga.coding import CODERS, checksum, set_coder
from compressai_sga.coding.binding import METHODS, stock_class
from compressai_sga.coding.coders import Coder
from compressai_sga.models.hfd import HFD
from compressai_sga.refine import refine
from tests import small_models
from tests.small_models import picture, rate_point

SIZES = {
    "bmshj2018-factorized": (8, 12),
    "bmshj2018-hyperprior": (8, 12),
    "mbt2018-mean": (8, 12),
    "mbt2018": (8, 12),
    "cheng2020-anchor": (8,),
    "bmshj2018-hyperprior-vbr": (8, 12),
    "mbt2018-mean-vbr": (8, 12),
    "mbt2018-vbr": (8, 12),
    "cheng2020-anchor-checkerboard": (8,),
    "elic2022-gdn": (8, 12, [4, 8]),
    "mbt2018-mean-uq": (8, 12),
}
FAST = ("bmshj2018-factorized", "mbt2018-mean", "mbt2018")


@pytest.fixture(autouse=True)
def disabled() -> Iterator[None]:
    """CompressAI is stock, but where a test says otherwise."""
    hooks.disable()
    yield
    assert hooks.enable()
    compressai.set_entropy_coder("ans")


@pytest.fixture
def enabled() -> Iterator[None]:
    assert hooks.enable()
    yield
    compressai.set_entropy_coder("ans")
    hooks.disable()


class OwnConditional(GaussianConditional):
    """A user's class, whose own methods still come first."""

    def build_indexes(self, scales: torch.Tensor) -> torch.Tensor:
        return super().build_indexes(1.5 * scales)


def build(name: str) -> nn.Module:
    return small_models.build(name, SIZES)


@torch.no_grad()
def both_ways(model: nn.Module, x: torch.Tensor, **kwargs: Any) -> tuple[list, torch.Tensor]:
    out = model.compress(x, **kwargs)
    return out["strings"], model.decompress(out["strings"], out["shape"], **kwargs)["x_hat"]


def functions() -> dict[str, Any]:
    """What a process-wide route would change."""
    methods = {
        f"{kind.__name__}.{name}": vars(kind)[name] for kind, named in METHODS.items() for name in named
    }
    proxy = compressai.entropy_models.entropy_models._EntropyCoder
    names = tuple(compressai.available_entropy_coders())
    return {**methods, "proxy": proxy.__init__, "names": names, "default": compressai.get_entropy_coder()}


# --- The bytes are those of the process-wide route, and stock's ----------------------------------


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", SIZES)
def test_bytes_are_those_of_the_process_wide_route(name, coder, monkeypatch):
    x, kwargs = picture(batch=2), rate_point(name)
    hooks.enable()
    compressai.set_entropy_coder(coder)
    strings, x_hat = both_ways(build(name), x, **kwargs)
    compressai.set_entropy_coder("ans")
    hooks.disable()
    before = functions()
    model = set_coder(build(name), coder)
    for method in ("encode_with_indexes", "decode_with_indexes"):  # stock's way, by lists
        monkeypatch.delattr(Coder, method)
    out, image = both_ways(model, x, **kwargs)
    assert out == strings and torch.equal(image, x_hat)
    assert functions() == before
    hooks.enable()  # both at once
    assert both_ways(model, x, **kwargs)[0] == strings


@pytest.mark.parametrize("name", SIZES)
def test_ans_is_stocks(name):
    x, kwargs = picture(), rate_point(name)
    model, stock = build(name), build(name)
    strings, x_hat = both_ways(stock, x, **kwargs)
    classes = [type(module) for module in model.modules()]
    for back in ("ans", None):
        set_coder(model, "constriction-exact")
        assert [stock_class(type(module)) for module in model.modules()] == classes
        assert set_coder(model, back) is model
        assert [type(module) for module in model.modules()] == classes
        out, image = both_ways(model, x, **kwargs)
        assert out == strings and torch.equal(image, x_hat)


@pytest.mark.parametrize("coder", CODERS)
def test_mixture_raster_scan_and_a_users_class(coder, enabled):
    """What no model of CompressAI's registry holds."""
    torch.manual_seed(0)
    y, scales, means = 6 * torch.randn(1, 4, 5, 4), torch.rand(1, 12, 5, 4) + 0.5, torch.randn(1, 12, 5, 4)
    weights = torch.softmax(torch.randn(1, 3, 4, 5, 4), 1).reshape(1, 12, 5, 4)
    network = nn.Sequential(nn.Conv2d(20, 8, 1))
    context = MaskedConv2d(4, 12, 5, padding=2)

    def mixture(conditional: nn.Module) -> Any:
        coded, _ = conditional.compress(y, scales, means, weights)
        return coded[0], conditional.decompress(*coded, scales, means, weights)

    def raster_scan(codec: nn.Module) -> Any:
        out = codec.compress(y, scales[:, :8])
        return out["strings"], codec.decompress(out["strings"], out["shape"], scales[:, :8])["y_hat"]

    def own(conditional: nn.Module) -> Any:
        indexes = conditional.build_indexes(scales)
        strings = conditional.compress(means, indexes)
        return strings, conditional.decompress(strings, indexes)

    def conditional(kind: type, name: str) -> nn.Module:
        made = kind(get_scale_table().tolist(), entropy_coder=name)
        made.update()
        return made

    cases: list[tuple[Callable[[nn.Module], Any], Callable[[str], nn.Module]]] = [
        (mixture, lambda name: GaussianMixtureConditional(K=3, entropy_coder=name)),
        (
            raster_scan,
            lambda name: RasterScanLatentCodec(conditional(GaussianConditional, name), network, context),
        ),
        (own, lambda name: conditional(OwnConditional, name)),
    ]
    for code, make in cases:
        hooks.enable()
        with torch.no_grad():
            expected = code(make(coder).eval())
            hooks.disable()
            strings, decoded = code(set_coder(make("ans").eval(), coder))
        assert strings == expected[0] and torch.equal(decoded, expected[1])


# --- What a bound model survives -----------------------------------------------------------------


def reloaded(model: nn.Module) -> nn.Module:
    state = model.state_dict()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        copy.copy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: pickle.loads(pickle.dumps(model, protocol=0)),
        lambda model: model.double().float(),
        lambda model: model.to("cpu"),
        lambda model: model.update(force=True) and model,
        reloaded,
    ],
)
def test_the_coder_stays(change, name, coder):
    model = set_coder(build(name), coder)
    expected, x_hat = both_ways(model, picture())
    changed = change(model)
    strings, image = both_ways(changed, picture())
    assert strings == expected and torch.equal(image, x_hat)
    assert repr(changed) == repr(build(name))
    assert both_ways(set_coder(changed, "ans"), picture())[0] == both_ways(build(name), picture())[0]


def test_another_process_decodes(python, tmp_path):
    """With CompressAI left alone: a pickled model, and a state dict that is bound anew."""
    jobs, images = {}, {}
    for coder in CODERS:
        for name in FAST:
            model = set_coder(build(name), coder)
            with torch.no_grad():
                out = model.compress(picture())
                images[coder, name] = model.decompress(**out)["x_hat"]
            jobs[coder, name] = (model, out)
    (tmp_path / "jobs.pkl").write_bytes(pickle.dumps(jobs))
    (tmp_path / "decode.py").write_text(
        "import pickle, torch\n"
        "from compressai_sga import hooks\n"
        "from compressai_sga.coding import set_coder\n"
        "assert not hooks.is_enabled()\n"
        "torch.set_num_threads(1)\n"
        "images = {}\n"
        "for (coder, name), (model, out) in pickle.load(open('jobs.pkl', 'rb')).items():\n"
        "    fresh = type(model).from_state_dict(model.state_dict()).eval()\n"
        "    for net in (model, set_coder(fresh, coder)):\n"
        "        with torch.no_grad():\n"
        "            x_hat = net.decompress(**out)['x_hat']\n"
        "        images.setdefault((coder, name), []).append(x_hat)\n"
        "torch.save(images, 'images.pt')\n"
    )
    done = python("-W", "ignore", tmp_path / "decode.py", COMPRESSAI_SGA_DISABLE="1")
    assert done.returncode == 0, done.stderr
    for key, decoded in torch.load(tmp_path / "images.pt").items():
        assert len(decoded) == 2
        assert all((image - images[key]).abs().max() < 1e-5 for image in decoded), key


@pytest.mark.parametrize("name", ["mbt2018-mean", "mbt2018", "cheng2020-anchor-checkerboard"])
def test_refinement_of_a_bound_model(name):
    model = set_coder(build(name), "constriction-exact")
    result = refine(model, picture(), "ssl", steps=2, lmbda=0.05)
    with torch.no_grad():
        decoded = model.decompress(result.strings, result.shape)["x_hat"].clamp(0, 1)
    assert (decoded - result.x_hat).abs().max() < 1e-4


def test_hfd_still_knows_its_first_stage():
    model = HFD.untrained()
    model.first_stage = build("mbt2018")
    assert set_coder(model, "constriction-ans").settings["architecture"] == "mbt2018"


# --- Threads -------------------------------------------------------------------------------------


def test_threads_with_different_coders():
    """Every thread builds its own models and codes them, while the process's default and hooks change."""
    jobs = [(name, coder) for name in FAST for coder in ("ans", *CODERS)]

    def work(job: tuple[str, str], barrier: threading.Barrier | None = None) -> list:
        name, coder = job
        if barrier is not None:
            barrier.wait()
        model = set_coder(build_alone(name), coder)
        return [both_ways(model, picture(seed=seed)) for seed in range(2)]

    lock = threading.Lock()

    def build_alone(name: str) -> nn.Module:
        with lock:  # torch's seed is the process's
            return build(name)

    serial = [work(job) for job in jobs]
    barrier, stop = threading.Barrier(len(jobs)), threading.Event()

    def disturb() -> None:
        while not stop.wait(0.001):
            hooks.enable()
            hooks.disable()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            together = list(pool.map(lambda job: work(job, barrier), jobs))
    finally:
        stop.set()
        disturber.join()
    for job, one, other in zip(jobs, serial, together):
        for (strings, x_hat), (strings_again, x_hat_again) in zip(one, other):
            assert strings == strings_again, job
            assert torch.equal(x_hat, x_hat_again), job


# --- Files ---------------------------------------------------------------------------------------


def coded_files() -> list[bytes]:
    pixels = files.read_picture(zoo.sample_images()[0]).pixels
    return [
        files.compress_picture(
            files.Picture(pixels[40 : 104 + 8 * i, 100:164].copy()), model=model, quality=3, coder=coder
        )[0]
        for model in (zoo.DEFAULT_MODEL, "mbt2018-small")
        for i, coder in enumerate(CODERS)
    ]


def test_files_leave_compressai_alone(monkeypatch):
    """Also while a file is coded, and without hooks."""
    before, seen = functions(), []
    add = checksum.Record.add

    def look(*arguments: Any) -> None:  # called when the coders have coded
        seen.append(functions() == before)
        add(*arguments)

    monkeypatch.setattr(checksum.Record, "add", look)
    for data in coded_files():
        assert files.decompress_picture(data).pixels.shape[1] == 64
    assert seen and all(seen) and functions() == before and not hooks.is_enabled()
    assert before["names"] == ("ans",)


def test_threads_decode_files_of_different_coders():
    coded = coded_files()
    expected = [files.decompress_picture(data).pixels for data in coded]
    barrier = threading.Barrier(len(coded))

    def decode(data: bytes) -> list:
        barrier.wait()
        return [files.decompress_picture(data).pixels for _ in range(3)]

    with ThreadPoolExecutor(len(coded)) as pool:
        for decoded, pixels in zip(pool.map(decode, coded), expected):
            assert all((again == pixels).all() for again in decoded)


def test_threads_have_own_models_with_common_weights():
    record = files.models.choose(zoo.DEFAULT_MODEL, 3, "mse")
    with files.models.borrowed(record, "constriction-ans") as one:
        with files.models.borrowed(record, "constriction-range") as other:
            assert one is not other
            assert one.entropy_bottleneck.entropy_coder.name == "constriction-ans"
            assert other.entropy_bottleneck.entropy_coder.name == "constriction-range"
            for a, b in zip(one.state_dict().values(), other.state_dict().values()):
                assert a.data_ptr() == b.data_ptr()
    with files.models.borrowed(record, "constriction-exact") as again:
        assert again is one or again is other


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nonsense", "constriction", "", 3])
def test_an_unknown_coder_is_named_with_those_there_are(name):
    model = build("bmshj2018-factorized")
    with pytest.raises(ValueError) as error:
        set_coder(model, name)
    assert repr(name) in str(error.value) and all(coder in str(error.value) for coder in ("ans", *CODERS))
    assert type(model.entropy_bottleneck) is compressai.entropy_models.EntropyBottleneck


def test_a_module_without_entropy_model():
    with pytest.raises(ValueError, match="Conv2d has no entropy model.*give a model of CompressAI"):
        set_coder(nn.Conv2d(1, 1, 1), "constriction-ans")
