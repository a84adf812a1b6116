# SPDX-License-Identifier: Apache-2.0
"""Claims of zoo.py: every shipped weight is the one the manifest names and reaches its golden
results as stock CompressAI loads and evaluates it; wrong requests are refused with the choices."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import compressai.registry
import compressai.zoo
import pytest
import torch
from compressai.utils.eval_model.__main__ import eval_model, load_pretrained, read_image
from compressai.zoo.image import model_architectures
from safetensors.torch import load_file

from compressai_sga import zoo
from compressai_sga.hooks import registration
from compressai_sga.models import ssf
from compressai_sga.models.families import FAMILIES, UNLISTED

RECORDS = zoo.list_models()
DICTIONARIES = (
    compressai.zoo.image_models,
    compressai.zoo.models,
    model_architectures,
    compressai.registry.MODELS,
)
OF_IMAGES = (compressai.zoo.image_models, model_architectures)


def label(record: zoo.ModelRecord) -> str:
    return f"{record.name}-{record.quality}"


@pytest.fixture(autouse=True)
def registered():
    """CompressAI knows the zoo's names, as whenever the package is imported; also afterwards."""
    registration.register()
    yield
    registration.register()


@pytest.fixture
def own_zoo(tmp_path, monkeypatch):
    """A copy of the zoo's default weight and manifest that a test may damage."""
    record = next(r for r in RECORDS if (r.name, r.quality) == (zoo.DEFAULT_MODEL, 3))
    source = zoo._folder()
    (tmp_path / "weights").mkdir()
    shutil.copy(source / record.file, tmp_path / record.file)
    shutil.copy(source / "manifest.json", tmp_path / "manifest.json")
    monkeypatch.setattr(zoo, "_folder", lambda: tmp_path)
    return tmp_path


def test_the_default_model_is_there():
    assert (zoo.DEFAULT_MODEL, zoo.DEFAULT_QUALITY) in {(r.name, r.quality) for r in RECORDS}


def test_wheel_weights_stay_within_60_mb():
    assert 0 < sum({r.file: r.bytes for r in RECORDS if r.wheel}.values()) <= 60e6


def test_every_record_names_licence_data_and_command():
    for record in RECORDS:
        assert record.licence == "Apache-2.0"
        assert len(record.training_data) >= 2
        assert not any("kodak" in text.lower() for text in record.training_data)
        codec = not record.architecture.startswith(("hfd", "diffc"))
        recipe = f"train.py --arch {record.architecture}" if codec else "denoiser.py --model "
        assert record.command.startswith("python zoo/train/" + recipe)


def test_samples_are_large_enough_for_ms_ssim_and_one_needs_padding():
    sizes = [read_image(path).shape[1:] for path in zoo.sample_images()]
    assert len(sizes) == 3
    assert all(min(size) > 160 for size in sizes)
    assert any(size[0] % 64 and size[1] % 64 for size in sizes)
    assert sum(path.stat().st_size for path in zoo.sample_images()) < 600_000


def golden_case(record: zoo.ModelRecord):
    """DiffC codes a sample image in half a minute; `tests/files` has golden bytes of a crop."""
    marks = [pytest.mark.slow] if record.architecture.startswith("diffc") else []
    return pytest.param(record, id=label(record), marks=marks)


@pytest.mark.parametrize("record", [golden_case(r) for r in RECORDS if r.golden])
def test_golden_results_of_stock_evaluation(record):
    net = load_pretrained(record.name, record.metric, record.quality)
    assert type(net) is model_architectures[record.architecture]
    assert not net.training
    images = [zoo._folder() / "samples" / name for name in sorted(record.golden)]
    if record.architecture == "mbt2018":
        images = images[:1]  # coding pixel by pixel is slow
    for path in images:
        # By attribute: the plugin's does not pad for models that need no padding.
        measured = sys.modules["compressai.utils.eval_model.__main__"].inference(net, read_image(path))
        golden = record.golden[path.name]
        assert measured["bpp"] == pytest.approx(golden["bpp"], rel=record.tolerance["bpp"])
        assert measured["psnr-rgb"] == pytest.approx(golden["psnr-rgb"], abs=record.tolerance["psnr-rgb"])


def test_higher_quality_means_more_bits_and_more_psnr():
    for name in {r.name for r in RECORDS}:
        ladder = [r for r in RECORDS if r.name == name and r.golden]
        for image in ladder[0].golden:
            for key in ("bpp", "psnr-rgb"):
                values = [r.golden[image][key] for r in ladder]
                assert values == sorted(values), (name, image, key)


def test_a_stream_is_decoded_by_a_model_that_stock_built_from_the_file():
    """No part of this package on the decoder's side: safetensors and CompressAI alone."""
    record = next(r for r in RECORDS if (r.name, r.quality) == (zoo.DEFAULT_MODEL, 1))
    x = read_image(zoo.sample_images()[0])[None]
    net = zoo.load(record.name, record.quality)
    with torch.no_grad():
        sent = net.compress(x)
        ours = net.decompress(**sent)["x_hat"]
        stock = model_architectures[record.architecture].from_state_dict(
            load_file(zoo._folder() / record.file)
        )
        stock.update()
        theirs = stock.eval().decompress(**sent)["x_hat"]
    assert torch.equal(ours, theirs)


def test_bottleneck_is_stored_exactly_and_update_keeps_it():
    record = RECORDS[0]
    stored = load_file(zoo._folder() / record.file)
    state = zoo.load(record.name, record.quality).state_dict()
    names = [name for name in stored if name.startswith("entropy_bottleneck.")]
    assert stored["entropy_bottleneck._quantized_cdf"].dtype == torch.int32
    assert len(names) > 10
    for name in names:
        assert stored[name].dtype in (torch.float32, torch.int32)
        assert torch.equal(stored[name], state[name]), name
    assert all(t.dtype != torch.float16 for t in state.values())


def test_refinement_finds_the_training_lmbda():
    from compressai_sga.refine import trained_lmbda

    assert trained_lmbda(zoo.load(quality=2), "mse") == 0.0035


def test_registering_is_in_place_idempotent_and_reversible():
    registration.unregister()
    before = [dict(d) for d in DICTIONARIES]
    names = {r.name for r in RECORDS} | {*UNLISTED} | {n for family in FAMILIES for n in family.classes}
    for dictionary in DICTIONARIES:
        assert not names & dictionary.keys() - {*UNLISTED}
    registration.register()
    functions = [compressai.zoo.image_models[name] for name in names]
    registration.register()
    assert functions == [compressai.zoo.image_models[name] for name in names]
    for dictionary, content in zip(DICTIONARIES, before, strict=True):
        video = set() if dictionary in OF_IMAGES else set(ssf.ARCHITECTURES)
        assert dictionary.keys() == content.keys() | names | video
        assert content.items() <= dictionary.items()
    registration.unregister()
    assert [dict(d) for d in DICTIONARIES] == before


def test_registering_leaves_somebody_elses_name_alone(monkeypatch):
    registration.unregister()
    theirs = object()
    monkeypatch.setitem(compressai.zoo.models, zoo.DEFAULT_MODEL, theirs)
    registration.register()
    assert compressai.zoo.models[zoo.DEFAULT_MODEL] is theirs
    registration.unregister()
    assert compressai.zoo.models[zoo.DEFAULT_MODEL] is theirs


def test_untrained_model_has_the_zoos_channels():
    net = compressai.zoo.image_models["mbt2018-mean-small"](quality=4)
    assert (net.N, net.M) == (64, 144)
    trained = zoo.load("mbt2018-mean-small", 4)
    assert not torch.equal(net.g_a[0].weight, trained.g_a[0].weight)
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="Uninitialized CDFs"):
        net.eval().compress(x)


def test_stock_eval_model_reads_a_zoo_name(tmp_path):
    image = zoo.sample_images()[0]
    results = eval_model(
        load_pretrained("mbt2018-mean-small", "mse", 1),
        tmp_path,
        image.parent,
        [image],
        architecture="mbt2018-mean-small",
        half=False,
        per_image=False,
    )
    golden = next(r for r in RECORDS if label(r) == "mbt2018-mean-small-1").golden[image.name]
    assert results["bpp"] == pytest.approx(golden["bpp"], rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mbt2018-mean-small", 8), r"no quality 8; there are 1, 2, 3, 4, 5, 6"),
        (("mbt2018-mean-small", "3"), r"no quality '3'; there are"),
        (("mbt2018-mean-smal", 3), r"'mbt2018-mean-smal'; there are .*mbt2018-mean-small"),
        (("mbt2018-mean-small", 3, "ms-ssim"), r"'ms-ssim', only for mse"),
    ],
)
def test_a_wrong_request_is_refused_with_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(*arguments)


def test_entry_point_refuses_as_load_does():
    for pretrained in (False, True):
        with pytest.raises(ValueError, match="there are 1, 2, 3"):
            compressai.zoo.image_models["mbt2018-mean-small"](7, pretrained=pretrained)


def test_a_changed_byte_is_noticed_before_use(own_zoo, monkeypatch):
    path = own_zoo / "weights" / "mbt2018-mean-small-3.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(zoo, "load_weights", lambda *_: pytest.fail("the damaged file was used"))
    with pytest.raises(ValueError, match="sha256 .* the manifest says"):
        zoo.load()


def test_a_weight_that_is_not_installed(own_zoo):
    with pytest.raises(FileNotFoundError, match="mbt2018-mean-small-1.safetensors.*repository"):
        zoo.load(quality=1)


def test_other_gaussian_tables_are_told(own_zoo, monkeypatch):
    real = zoo.find
    monkeypatch.setattr(zoo, "find", lambda *a: replace(real(*a), gaussian_tables_crc32="0"))
    with pytest.warns(UserWarning, match="not those of other machines"):
        zoo.load()


def test_a_record_with_a_missing_key_is_named(own_zoo):
    path = own_zoo / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["weights"][0]["sha256"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"lacks \['sha256'\]"):
        zoo.list_models()


def test_unknown_architecture():
    with pytest.raises(ValueError, match="no architecture is called 'mbt2019'; there are .*mbt2018-mean"):
        zoo.load_weights(Path("unused"), "mbt2019")


def test_failed_download_names_the_models_that_need_none():
    def offline(url, progress=True):
        raise URLError("Name or service not known")

    with pytest.raises(URLError) as caught:
        zoo.with_download_advice(offline)("https://example.org/a.pth.tar", progress=False)
    message = str(caught.value)
    assert "https://example.org/a.pth.tar: Name or service not known" in message
    assert "mbt2018-mean-small (quality 1, 2, 3, 4, 5, 6)" in message


def test_download_advice_leaves_success_alone():
    state = {"a": torch.ones(1)}
    assert zoo.with_download_advice(lambda url, progress: state)("u", progress=True) is state


def test_qualities_of_a_model_of_diffusion_share_a_file():
    records = [r for r in RECORDS if r.name == "hfd-small"]
    assert [r.quality for r in records] == [1, 2, 3, 4] and len({r.sha256 for r in records}) == 1
    assert {r.first_stage for r in records} == {zoo.DEFAULT_MODEL}
    nets = [zoo.load("hfd-small", quality, steps=3, realism=0.25) for quality in (1, 4)]
    assert [net.quality for net in nets] == [1, 4] and {net.steps for net in nets} == {3}
    first = zoo.load(zoo.DEFAULT_MODEL, 4)
    for name, value in nets[1].first_stage.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hfd-small", {"realism": 1.5}, "realism is 1.5"),
        ("hfd-small", {"bpp": 1.0}, "hfd-small has no option bpp; it has steps, seed, realism"),
        ("mbt2018-mean-small", {"steps": 3}, "mbt2018-mean-small has no option steps; it has none"),
    ],
)
def test_options_of_a_model(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(name, 1, **options)
    with pytest.raises(ValueError, match=message):
        compressai.zoo.image_models[name](1, pretrained=True, **options)


def test_readme_has_the_command_of_every_weight():
    readme = Path(__file__).resolve().parents[1] / "zoo" / "README.md"
    commands = readme.read_text(encoding="utf-8").splitlines()
    for record in RECORDS:
        assert set(record.command.split(" && ")) <= set(commands), label(record)


def test_records_are_short_hashable_and_found_by_name():
    assert len(set(RECORDS)) == len(RECORDS)
    assert max(len(repr(record)) for record in RECORDS) < 250
    assert "golden" not in repr(RECORDS[0]) and "quality=1" in repr(RECORDS[0])
    assert zoo.list_models("hfd-small") == [r for r in RECORDS if r.name == "hfd-small"]
    with pytest.raises(ValueError, match="no zoo model is called 'nosuch'; there are bmshj2018"):
        zoo.list_models("nosuch")
