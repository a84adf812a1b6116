# SPDX-License-Identifier: Apache-2.0
"""Every patch is in the table, applied once, and can be taken back."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import sys
import warnings

import compressai.version
import pytest
from compressai.zoo.image import model_architectures

import compressai_sga
import compressai_sga_startup
from compressai_sga import hooks
from compressai_sga.evaluation import evaluate, options
from compressai_sga.evaluation.video import VideoEvaluation
from compressai_sga.hooks import PATCHES
from compressai_sga.models.families import UNLISTED


@pytest.fixture(autouse=True)
def enabled():
    hooks.enable()
    yield
    hooks.disable()
    assert hooks.enable()


@pytest.fixture
def stock(eval_model):
    return eval_model


VIDEO = "compressai.utils.video.eval_model.__main__"


def registries():
    return [
        dict(compressai.zoo.image_models),
        dict(compressai.zoo.models),
        dict(model_architectures),
        dict(compressai.registry.MODELS),
        dict(compressai.zoo.video_models),
        dict(importlib.import_module(VIDEO).models),
        [type(finder) for finder in sys.meta_path],
    ]


def functions():
    modules = {row.module: importlib.import_module(row.module) for row in PATCHES}
    return {
        (row.module, row.attribute): functools.reduce(getattr, row.attribute.split("."), modules[row.module])
        for row in PATCHES
    }


def test_the_docstring_lists_every_patch():
    table = [line for line in hooks.__doc__.splitlines() if line.startswith("| ")]
    where = [line.split("|")[1].replace(",", " ").split() for line in table]
    commands = {"compressai.utils.eval_model.__main__": "E.", VIDEO: "V."}
    ours = [commands.get(row.module, "") + row.attribute for row in PATCHES]
    ours += [f"E.{name}" for name in evaluate.Evaluation.REPLACED]
    ours += [f"V.{name}" for name in VideoEvaluation.REPLACED]
    for name in ours:
        assert sum(name in words for words in where) == 1, name
    assert all(version in hooks.__doc__ for version in hooks.CHECKED_VERSIONS)


def test_the_signatures_that_replacements_rely_on_are_checked(stock):
    checked = hooks._PARAMETERS[stock.__name__]
    replaced = set(evaluate.Evaluation.REPLACED) - {"json"}
    assert replaced | {"main", "setup_args", "collect_images", "compute_padding"} == set(checked)
    checked, replaced = hooks._PARAMETERS[VIDEO], set(VideoEvaluation.REPLACED) - {"json", "tqdm"}
    assert replaced | {"main", "create_parser", "collect_videos", "compute_padding"} == set(checked)


def test_disable_gives_stock_and_enable_is_idempotent(stock):
    with_us, patched = registries(), functions()
    assert all(name in with_us[0] for name in UNLISTED)
    hooks.disable()
    without_us, pure = registries(), functions()
    assert not any(name in without_us[0] for name in UNLISTED)
    assert not any("_Finder" in kind.__qualname__ for kind in without_us[-1])
    assert all(patched[key] is not pure[key] for key in pure)
    assert all(not hasattr(function, "__compressai_sga__") for function in pure.values())
    assert pure[stock.__name__, "main"].__code__.co_filename == stock.__file__
    assert not hooks.is_enabled() and not hooks.patch(stock)
    for _ in range(3):
        assert hooks.enable() and hooks.patch(stock)
    again = functions()
    assert [[*names] for names in registries()[:-1]] == [[*names] for names in with_us[:-1]]
    assert all(inspect.unwrap(again[key]) is inspect.unwrap(pure[key]) for key in pure)
    assert all(again[key].__wrapped__ is pure[key] for key in pure)  # wrapped once
    hooks.disable()
    assert functions() == pure and registries() == without_us


def test_an_unknown_version_gets_one_warning_and_stays_stock(stock, monkeypatch):
    hooks.disable()
    before = registries(), functions()
    monkeypatch.setattr(compressai.version, "__version__", "9.9.9")
    with pytest.warns(UserWarning, match="9.9.9") as caught:
        assert not hooks.enable()
        assert not hooks.enable()
    assert len(caught) == 1
    assert (registries(), functions()) == before


def test_an_unknown_version_is_told_what_differs(stock, monkeypatch):
    hooks.disable()
    monkeypatch.setattr(compressai.version, "__version__", "9.9.8")
    monkeypatch.setattr(stock, "inference", lambda model, x: None)
    message = r"not 9\.9\.8; .*inference has the parameters \('model', 'x'\), not \('model', 'x', 'vbr_stage'"
    with pytest.warns(UserWarning, match=message):
        assert not hooks.enable()


def test_functions_are_those_of_the_installed_version(monkeypatch):
    """What is right in one checked version is named in the other."""
    module = importlib.import_module("compressai.latent_codecs.rasterscan")
    assert hooks._differences(module) == []
    (other,) = set(hooks.CHECKED_VERSIONS) - {compressai.version.__version__}
    monkeypatch.setattr(compressai.version, "__version__", other)
    (difference,) = hooks._differences(module)
    assert "RasterScanLatentCodec.merge has the parameters" in difference and other in difference


def test_changed_functions_get_a_warning_and_stay_stock(stock, monkeypatch):
    hooks.disable()
    monkeypatch.setattr(stock, "inference", lambda model, x: None)
    main = stock.main
    with pytest.warns(UserWarning, match="inference has the parameters"):
        hooks.enable()
    assert stock.main is main and not hooks.patch(stock)


def test_an_internal_failure_gets_a_warning_and_stays_stock(stock, monkeypatch):
    hooks.disable()
    before = registries(), functions()

    def broken():
        raise OSError("zoo is gone")

    monkeypatch.setattr("compressai_sga.zoo.list_models", broken)
    with pytest.warns(UserWarning, match="zoo is gone"):
        assert not hooks.enable()
    assert (registries(), functions()) == before


def test_somebody_elses_names_are_left_alone(monkeypatch):
    hooks.disable()
    theirs = object()
    monkeypatch.setitem(compressai.zoo.image_models, "elic2022-official", theirs)
    hooks.enable()
    assert compressai.zoo.image_models["elic2022-official"] is theirs
    hooks.disable()
    assert compressai.zoo.image_models["elic2022-official"] is theirs


def test_reloading_stock_patches_it_again(stock):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.reload(stock)
    assert hasattr(stock.main, "__compressai_sga__")
    assert "--refine" in stock.setup_args().format_help()
    assert "def eval_model(" in inspect.getsource(stock)
    assert pickle.loads(pickle.dumps(stock.collect_images)) is stock.collect_images
    assert not type(stock.__spec__.loader).__module__.startswith("compressai_sga")


def test_abbreviations_of_stock_options_keep_their_meaning(stock):
    def parse(*arguments):
        return stock.setup_args().parse_args(["pretrained", "folder", "-a", "mbt2018-mean", *arguments])

    assert parse("--met", "ms-ssim").metric == "ms-ssim"
    assert parse("--metri=ms-ssim").metric == "ms-ssim"
    assert parse("--m=ms-ssim").metric == parse("--m", "ms-ssim").metric == "ms-ssim"
    both = parse("--metric", "ms-ssim", "--metrics", "fid")
    assert (both.metric, both.metrics) == ("ms-ssim", ("fid",))
    assert not {"refine", "metrics", "refine_steps", "lmbda", "steps", "seed"} & set(vars(parse()))
    fit = parse("--lmbda", "1e-3", "--steps=5", "--seed", "1", "--max", "60", "--m", "mse")
    assert (fit.lmbda, fit.steps, fit.seed, fit.max_seconds, fit.metric) == (1e-3, 5, 1, 60.0, "mse")
    before = stock.setup_args().parse_args(["--refine", "ssl", "pretrained", "folder", "-a", "mbt2018-mean"])
    assert before.refine == parse("--refine", "ssl").refine == "ssl"


def test_abbreviations_of_ours_are_not_ignored(stock, capsys):
    for arguments in (["--refine-st", "-1"], ["--refine-pre=magic"], ["--re", "ssl"]):
        with pytest.raises(SystemExit) as stop:
            stock.main([*arguments, "pretrained", ".", "-a", "mbt2018-mean"])
        assert stop.value.code == 2
    assert "-1" in capsys.readouterr().err
    found, rest = options.given(["--refine-st", "3", "--met", "mse", "--refine=ssl", "x"])
    assert found and rest == ["--met", "mse", "x"]
    found, rest = options.given(
        ["--max", "3", "--lm=1e-3", "--see", "1", "--st", "5", "--m", "mse", "--", "x"]
    )
    assert found and rest == ["--m", "mse", "--", "x"]
    assert options.given(["-m", "mse", "--metr", "mse", "--per-image", "--cuda"])[0] is False


def test_importing_under_the_switch_touches_nothing(stock, monkeypatch):
    hooks.disable()
    before = registries(), functions()
    monkeypatch.setenv("COMPRESSAI_SGA_DISABLE", "1")
    importlib.reload(compressai_sga)
    assert (registries(), functions()) == before


def test_every_parser_shows_the_options(stock, capsys):
    for arguments in (["--help"], ["pretrained", "--help"], ["checkpoint", "--help"]):
        with pytest.raises(SystemExit):
            stock.main(arguments)
        text = capsys.readouterr().out
        for option in ("", "-preset", "-steps", "-lmbda", "-lr", "-seed", "-trace"):
            assert f"--refine{option} " in text
        assert "--metrics NAMES" in text
        for option in ("--lmbda L", "--steps N", "--seed S", "--max-seconds T"):
            assert f" {option} " in text


def test_startup_and_hooks_name_the_same_modules():
    commands = {row.module for row in PATCHES if row.module.endswith("__main__")}
    assert set(compressai_sga_startup.MODULES) == {"compressai.zoo"} | commands
