# SPDX-License-Identifier: Apache-2.0
"""Claims of zoo_joint.py and of what uses it: one file serves every quality and every lmbda between, as stock
classes, with the same coding tables everywhere; what was coded at one rate is refused at another."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import compressai.zoo
import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior, MeanScaleHyperprior
from compressai.utils.eval_model.__main__ import eval_model, load_pretrained, read_image
from compressai.zoo.image import model_architectures
from safetensors.torch import load_file, save_file

from compressai_sga import files, zoo, zoo_joint
from compressai_sga.coding.container import pack, unpack
from compressai_sga.errors import BitstreamError
from compressai_sga.files.images import Picture
from compressai_sga.models.elic import SpaceChannelContext
from compressai_sga.models.gains import Gained, condition
from compressai_sga.models.universal import ARCHITECTURES, anneal
from compressai_sga.refine import trained_lmbda
from tests.own_zoo import joint_record, used

LMBDA = {1: 0.0018, 3: 0.0067, 6: 0.0483}
MODELS = {
    "joint-mean": ("mbt2018-mean", lambda: MeanScaleHyperprior(16, 24)),
    "joint-factorized": ("bmshj2018-factorized", lambda: FactorizedPrior(16, 24)),
    "joint-factorized-uq": ("bmshj2018-factorized-uq", lambda: _dithered()),
    "joint-elic": ("elic2022-gdn", lambda: SpaceChannelContext(16, 72)),
}
OF_Y = ("joint-factorized", "joint-factorized-uq")  # models whose factorised prior codes y
TABLES = ("_quantized_cdf", "_offset", "_cdf_length")


def _dithered() -> torch.nn.Module:
    net = ARCHITECTURES["bmshj2018-factorized-uq"](16, 24)
    anneal(net, 0.1)
    return net


def _joint(name: str) -> torch.nn.Module:
    """Random weights, with latents large enough that the rates differ and a prior that is not centred."""
    torch.manual_seed(0)
    net = MODELS[name][1]()
    last = [m for m in net.g_a.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.mul_(20)
        for module in net.modules():
            if isinstance(module, compressai.entropy_models.EntropyBottleneck):
                module.quantiles[:, 0, 1] += 0.3
                module.quantiles[:, 0, 2] += 0.7
        if name != "joint-factorized":  # as trained before there were rates
            for key, parameter in condition(net).named_parameters():
                if key.endswith(".rates"):
                    parameter.normal_(std=0.01)
    return net.eval()


def _record(folder, name: str) -> dict:
    gains = {quality: zoo.gain_at(lmbda, "mse") for quality, lmbda in LMBDA.items()}
    tensors = zoo_joint.stored(_joint(name), gains)
    architecture = MODELS[name][0]
    net = zoo_joint.folded(tensors, model_architectures[architecture], gains[3], 3)
    facts = {"architecture": architecture, "N": net.N, "M": net.M}
    facts["gaussian_tables_crc32"] = zoo.tables_checksum(net)
    return joint_record(folder, name, tensors, LMBDA, **facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A zoo with a joint model of each kind, and one of the shipped weights for a single rate."""
    folder, shipped = tmp_path_factory.mktemp("made") / "zoo", zoo._folder()
    (folder / "weights").mkdir(parents=True)
    shutil.copytree(shipped / "samples", folder / "samples")
    manifest = json.loads((shipped / "manifest.json").read_text())
    manifest["weights"] = [w for w in manifest["weights"] if w["name"] == zoo.DEFAULT_MODEL]
    manifest["denoisers"] = []
    manifest["joint"] = [_record(folder, name) for name in MODELS]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def own_zoo(made, tmp_path, monkeypatch):
    """The same, for a test that may damage it; CompressAI knows its names."""
    folder = tmp_path / "zoo"
    shutil.copytree(made, folder)
    with used(folder, monkeypatch):
        yield folder


@pytest.fixture
def x():
    return torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def in_fp16(name: str) -> torch.nn.Module:
    """The joint model as its file has it, still at gain 1."""
    net = _joint(name)
    for key, parameter in net.named_parameters():
        if "entropy_bottleneck" not in key:
            parameter.copy_(parameter.half().float())
    return net


def edit(folder, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_one_file_has_all_qualities(own_zoo):
    for name in MODELS:
        records = [r for r in zoo.list_models() if r.name == name]
        assert [(r.quality, r.lmbda) for r in records] == list(LMBDA.items())
        assert len({(r.file, r.sha256) for r in records}) == 1
        assert all(r.lmbda_range == [LMBDA[1], LMBDA[6]] for r in records)


def test_a_manifest_without_joint_models_is_as_before(own_zoo):
    edit(own_zoo, lambda manifest: manifest.pop("joint"))
    assert {r.name for r in zoo.list_models()} == {zoo.DEFAULT_MODEL}
    assert all(r.lmbda_range is None for r in zoo.list_models())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("request_", [{"quality": 1}, {"quality": 6}, {"lmbda": 0.01}], ids=str)
def test_the_loaded_model_is_the_joint_one_at_its_gain(own_zoo, x, name, request_):
    lmbda = request_.get("lmbda") or LMBDA[request_["quality"]]
    net, joint = zoo.load(name, **request_), in_fp16(name)
    assert type(net) is type(joint) is model_architectures[MODELS[name][0]] and not net.training
    assert trained_lmbda(net) == lmbda
    with Gained(joint).at(torch.tensor([zoo.gain_at(lmbda, "mse")])):
        expected, y = joint(x), joint.g_a(x)
    found = net(x)
    assert torch.allclose(net.g_a(x), y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))
    assert torch.allclose(found["x_hat"], expected["x_hat"], atol=1e-5)
    for key, likelihood in expected["likelihoods"].items():
        bits, theirs = found["likelihoods"][key].log2().sum(), likelihood.log2().sum()
        assert bits.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_strings_decode_with_a_plain_class_from_another_load(own_zoo, x, name):
    sizes = []
    for request in ({"quality": 1}, {"lmbda": 0.01}, {"quality": 6}):
        net = zoo.load(name, **request)
        sent = net.compress(x)
        plain = model_architectures[MODELS[name][0]].from_state_dict(net.state_dict()).eval()
        there = zoo.load(name, **request).decompress(**sent)["x_hat"]
        assert torch.equal(plain.decompress(**sent)["x_hat"], there)
        sizes.append(sum(len(each) for group in sent["strings"] for each in group))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_without_the_package_the_file_is_the_stock_state_dict_at_gain_1(own_zoo, x):
    """safetensors and CompressAI alone: right for lmbda = 0.018, where rates say nothing."""
    state = load_file(own_zoo / "weights/joint-mean.safetensors")
    stock = MeanScaleHyperprior.from_state_dict({k: v for k, v in state.items() if "rates" not in k}).eval()
    stock.update()
    sent = zoo.load("joint-mean", lmbda=0.018).compress(x)
    assert stock.compress(x)["strings"] == sent["strings"]


def test_the_file_holds_fp16_transforms_and_exact_bottlenecks(own_zoo):
    for name in MODELS:
        stored, joint = load_file(own_zoo / f"weights/{name}.safetensors"), _joint(name)
        for key, parameter in joint.named_parameters():
            assert stored[key].dtype == (torch.float32 if "entropy_bottleneck" in key else torch.float16), key
            assert "entropy_bottleneck" not in key or torch.equal(stored[key], parameter), key
        for key in stored:
            if "gaussian_conditional." in key and key.rpartition(".")[2] in (*TABLES, "scale_table"):
                assert stored[key].numel() == 0, key


def test_tables_of_z_are_stored_once_and_used(own_zoo):
    stored = load_file(own_zoo / "weights/joint-mean.safetensors")
    assert not [key for key in stored if key.startswith("tables.")]
    for request in ({"quality": 1}, {"quality": 6}, {"lmbda": 0.01}):
        net = zoo.load("joint-mean", **request)
        for name in TABLES:
            assert torch.equal(getattr(net.entropy_bottleneck, name), stored[f"entropy_bottleneck.{name}"])


@pytest.mark.parametrize("name", OF_Y)
def test_tables_of_y_are_stored_for_every_quality_and_used(own_zoo, name):
    path = own_zoo / f"weights/{name}.safetensors"
    stored = load_file(path)
    for quality in LMBDA:
        tables = {table: stored[f"tables.{quality}.{table}"] for table in TABLES}
        assert all(table.dtype == torch.int32 and table.numel() for table in tables.values())
        prior = zoo.load(name, quality).entropy_bottleneck
        assert all(torch.equal(getattr(prior, table), tables[table]) for table in TABLES)
    assert stored["tables.1._quantized_cdf"].shape != stored["tables.6._quantized_cdf"].shape
    assert not any(stored[f"entropy_bottleneck.{table}"].numel() for table in TABLES)
    stored["tables.3._offset"] += 1  # no machine would compute this
    rewrite(own_zoo, name, stored)
    for request in ({"quality": 3}, {"lmbda": LMBDA[3]}):
        loaded = zoo.load(name, **request).entropy_bottleneck._offset
        assert torch.equal(loaded, stored["tables.3._offset"])


def rewrite(folder, name: str, stored: dict[str, torch.Tensor]) -> None:
    """Other tensors in the file of a model, as if it had been published so."""
    path = folder / f"weights/{name}.safetensors"
    save_file(stored, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(folder, lambda m: [r.update(sha256=sha256) for r in m["joint"] if r["name"] == name])


def test_tables_of_another_lmbda_are_computed_and_a_machine_that_differs_is_told(own_zoo, x):
    name = "joint-factorized"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = zoo.load(name, lmbda=0.007)
    expected = copy.deepcopy(net)
    expected.update(force=True)
    for table in TABLES:
        assert torch.equal(
            getattr(net.entropy_bottleneck, table), getattr(expected.entropy_bottleneck, table)
        )
    stored = load_file(own_zoo / f"weights/{name}.safetensors")
    stored["tables.3._quantized_cdf"][0, 1] += 1
    rewrite(own_zoo, name, stored)
    zoo.load(name, lmbda=0.04)  # quality 6 is nearer
    with pytest.warns(
        UserWarning, match=r"with lmbda 0.007 it decodes its own .* those of quality 3 \(lmbda 0"
    ):
        zoo.load(name, lmbda=0.007)


def test_a_file_without_the_tables_of_a_quality_is_refused(own_zoo):
    stored = load_file(own_zoo / "weights/joint-factorized.safetensors")
    del stored["tables.3._offset"]
    rewrite(own_zoo, "joint-factorized", stored)
    with pytest.raises(ValueError, match="has no tables.3._offset; publish the model again"):
        zoo.load("joint-factorized", 3)


def test_other_gaussian_tables_are_told(own_zoo):
    edit(own_zoo, lambda m: [record.update(gaussian_tables_crc32="0") for record in m["joint"]])
    for request in ({"quality": 3}, {"lmbda": 0.01}):
        with pytest.warns(UserWarning, match="Gaussian coding tables of joint-mean come out differently"):
            zoo.load("joint-mean", **request)


def test_a_changed_byte_is_noticed_before_use(own_zoo, monkeypatch):
    path = own_zoo / "weights/joint-mean.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(zoo, "load_file", lambda *_: pytest.fail("the damaged file was used"))
    for request in ({"quality": 3}, {"lmbda": 0.01}):
        with pytest.raises(ValueError, match="sha256 .* the manifest says"):
            zoo.load("joint-mean", **request)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="joint-mean.safetensors is not installed"):
        zoo.load("joint-mean", 3)


def test_a_record_with_a_missing_key_is_named(own_zoo):
    edit(own_zoo, lambda m: m["joint"][0]["qualities"]["3"].pop("lmbda"))
    with pytest.raises(ValueError, match=r"'joint-mean', quality 3 lacks \['lmbda'\]"):
        zoo.list_models()


@pytest.mark.parametrize("lmbda", [0.0017, 0.09])
def test_a_little_beyond_the_training_there_is_a_warning(own_zoo, lmbda):
    with pytest.warns(
        UserWarning, match=rf"lmbda {lmbda}: joint-mean was trained for 0.0018 to 0.0483; outside"
    ):
        net = zoo.load("joint-mean", lmbda=lmbda)
    assert trained_lmbda(net) == lmbda


@pytest.mark.parametrize("lmbda", [0.0008, 0.1, 0.0, -0.01, float("nan"), float("inf")])
def test_far_beyond_it_is_refused_with_the_range(own_zoo, lmbda):
    with pytest.raises(ValueError, match=rf"lmbda {lmbda}: .* it must lie between 0.0009 and 0.0966"):
        zoo.load("joint-mean", lmbda=lmbda)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (
            (zoo.DEFAULT_MODEL,),
            {"lmbda": 0.01},
            "lmbda 0.01: .* only for the rates of its qualities; .* quality 1, 2, 3",
        ),
        (("joint-mean", 2), {}, "joint-mean has no quality 2; there are 1, 3, 6"),
        (("joint-mean", 3), {"steps": 3}, "joint-mean has no option steps; it has none"),
        (("joint-mean", 3, "ms-ssim"), {"lmbda": 0.01}, "not trained for metric 'ms-ssim', only for mse"),
        (("joint", 3), {"lmbda": 0.01}, "no zoo model is called 'joint'; there are joint-elic"),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(own_zoo, arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(*arguments, **keywords)
    quality = arguments[1] if len(arguments) > 1 else 3
    with pytest.raises(ValueError, match=message):
        entry = compressai.zoo.image_models.get(arguments[0], lambda q, **k: zoo.load(arguments[0], q, **k))
        entry(quality, pretrained=True, **dict(zip(("metric",), arguments[2:])), **keywords)


def test_compressais_dictionaries(own_zoo):
    entry = compressai.zoo.image_models["joint-factorized"]
    for request in ({"quality": 6}, {"quality": 3, "lmbda": 0.01}):
        net = entry(pretrained=True, **request)
        expected = zoo.load("joint-factorized", **request).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
    assert (entry(quality=3).N, entry(quality=3).M) == (16, 24)  # untrained
    with pytest.raises(ValueError, match="lmbda 0.01 needs trained weights; add pretrained=True"):
        entry(quality=3, lmbda=0.01)
    for dictionary in (compressai.zoo.models, model_architectures, compressai.registry.MODELS):
        assert MODELS.keys() <= dictionary.keys()


def test_stock_evaluation_by_quality(own_zoo, tmp_path):
    bpp = []
    for quality in (1, 6):
        net = load_pretrained("joint-mean", "mse", quality)
        image = zoo.sample_images()[0]
        keywords = {"architecture": "joint-mean", "half": False, "per_image": False}
        bpp.append(eval_model(net, tmp_path, image.parent, [image], **keywords)["bpp"])
    assert bpp[0] < bpp[1]


def evaluate(capsys, *argv: object) -> dict:
    sys.modules["compressai.utils.eval_model.__main__"].main([str(each) for each in argv])
    return json.loads(capsys.readouterr().out)


def test_the_stock_command_takes_a_lmbda(own_zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(zoo.sample_images()[0], folder)
    command = ("pretrained", folder, "-a", "joint-mean", "-q", 3)
    out = evaluate(capsys, *command, "--lmbda", 0.01)
    assert out["options"] == {"lmbda": 0.01}
    x = read_image(next(folder.glob("*.png")))
    stock = sys.modules["compressai.utils.eval_model.__main__"].inference
    assert out["results"]["bpp"] == [stock(zoo.load("joint-mean", lmbda=0.01), x)["bpp"]]
    assert out["results"]["bpp"] != evaluate(capsys, *command)["results"]["bpp"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["pretrained", "{images}", "-a", "joint-mean", "-q", "1,3"],
            "--lmbda replaces the quality, and -q 1,3",
        ),
        (
            ["pretrained", "{images}", "-a", zoo.DEFAULT_MODEL, "-q", "3"],
            "has no such option, c3.*joint-mean",
        ),
        (
            ["pretrained", "{images}", "-a", "joint-mean", "-q", "3", "--lmbda", "9"],
            "must lie between 0.0009",
        ),
        (
            ["checkpoint", "{images}", "-a", "joint-mean", "-p", "{file}"],
            "--lmbda: joint-mean has no such option",
        ),
    ],
)
def test_wrong_use_of_it_is_one_sentence(own_zoo, capsys, more, message):
    file = own_zoo / "weights/joint-mean.safetensors"
    argv = [each.format(images=own_zoo / "samples", file=file) for each in more]
    with pytest.raises(SystemExit) as stop:
        evaluate(capsys, *argv, *(() if "--lmbda" in argv else ("--lmbda", "0.01")))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    return Picture(pixels)


@pytest.mark.parametrize("name", MODELS)
def test_files_at_two_qualities(own_zoo, picture, name):
    data = {q: files.compress_picture(picture, model=name, quality=q)[0] for q in (1, 6)}
    assert len(data[1]) < len(data[6])
    assert [unpack(data[q]).quality for q in (1, 6)] == [1, 6]
    images = {q: files.decompress_picture(each).pixels for q, each in data.items()}
    assert not np.array_equal(images[1], images[6])
    assert all(files.describe(each).weights_known for each in data.values())


@pytest.mark.parametrize("name", ["joint-mean", "joint-factorized"])
def test_a_file_of_one_quality_is_never_decoded_at_another(own_zoo, picture, name):
    """Not even of a constant image, whose symbols another rate's tables may decode to the same."""
    flat = Picture(np.zeros((64, 64, 3), np.uint8))
    for each in (picture, flat):
        container = unpack(files.compress_picture(each, model=name, quality=3)[0])
        other = pack(dataclasses.replace(container, quality=6))
        with pytest.raises(BitstreamError, match=f"{name}, quality 6.*the weights of that name .* are"):
            files.decompress_picture(other)


def test_a_file_of_an_older_publication_is_refused(own_zoo, picture):
    """The same weights, but quality 3 means another rate now."""
    data, _ = files.compress_picture(picture, model="joint-mean", quality=3)
    edit(own_zoo, lambda m: m["joint"][0]["qualities"]["3"].update(lmbda=0.0065))
    with pytest.raises(BitstreamError, match="install the compressai-sga that made the file"):
        files.decompress_picture(data)


def test_a_file_keeps_a_rate_between_qualities(own_zoo, picture):
    for name in MODELS:
        data, _ = files.compress_picture(picture, model=name, lmbda=0.01)
        container = unpack(data)
        assert (container.quality, container.lmbda) == (0, 0.01) and files.describe(data).weights_known
        sizes = [len(files.compress_picture(picture, model=name, quality=q)[0]) for q in (3, 6)]
        assert sizes[0] < len(data) < sizes[1]
        assert files.decompress_picture(data).pixels.shape == (70, 90, 3)
        with pytest.raises(BitstreamError, match="this zoo"):
            files.decompress_picture(pack(dataclasses.replace(container, lmbda=0.0100001)))
    data, _ = files.compress_picture(picture, model="joint-mean", lmbda=LMBDA[3])
    assert (unpack(data).quality, unpack(data).lmbda) == (3, None)
    data, result = files.compress_picture(picture, model="joint-mean", lmbda=0.01, refine="ssl", steps=2)
    assert result.lmbda == 0.01 == unpack(data).lmbda
    data, result = files.compress_picture(
        picture, model="joint-mean", quality=3, refine="ssl", steps=2, lmbda=0.01
    )
    assert result.lmbda == 0.01 and unpack(data).quality == 3 and unpack(data).lmbda is None
    for options, match in (
        ({"quality": 3, "lmbda": 0.01}, "quality 3 and lmbda 0.01 both set the rate of joint-mean"),
        ({"lmbda": 1.0}, "lmbda 1.0: joint-mean serves 0.0009 to 0.0966"),
    ):
        with pytest.raises(ValueError, match=match):
            files.compress_picture(picture, model="joint-mean", **options)


def test_a_size_is_searched_for_over_all_rates(own_zoo, picture):
    sizes = [len(files.compress_picture(picture, model="joint-mean", quality=q)[0]) for q in (3, 6)]
    wanted = (sizes[0] + sizes[1]) / 2
    data, _ = files.compress_picture(picture, model="joint-mean", target_bytes=wanted)
    assert abs(len(data) / wanted - 1) <= 0.02 and LMBDA[3] < unpack(data).lmbda < LMBDA[6]


def test_the_wheel_has_the_joint_weights_that_say_so(own_zoo, tmp_path):
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "compressai_sga").mkdir()
    package = ("__init__.py", "version.py", "py.typed")
    for name in ("setup.py", "compressai_sga_startup.py", *(f"compressai_sga/{each}" for each in package)):
        shutil.copy(root / name, tmp_path / name)

    def change(manifest: dict) -> None:
        manifest["weights"] = []
        manifest["joint"] = [r | {"wheel": r["name"] != "joint-elic"} for r in manifest["joint"]]
        manifest["c3_nets"]["file"] = manifest["joint"][0]["file"]

    edit(own_zoo, change)
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "out"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    there = {path.stem for path in (tmp_path / "out/compressai_sga/_zoo/weights").iterdir()}
    assert there == MODELS.keys() - {"joint-elic"}
    (own_zoo / "weights/joint-mean.safetensors").unlink()
    failed = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode and "marks joint-mean.safetensors as part of the wheel" in failed.stderr
