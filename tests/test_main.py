# SPDX-License-Identifier: Apache-2.0
"""`python -m compressai_sga` lists its commands; eval_model is stock's with our options."""

from __future__ import annotations

import importlib
import resource
import runpy
import sys
from pathlib import Path

import compressai.version
import numpy as np
import pytest

import compressai_sga
from compressai_sga import files
from compressai_sga.__main__ import COMMANDS, main
from compressai_sga.models import families


def test_alone_it_prints_the_commands(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS)
    for arguments, code in ((["--version"], 0), (["--help"], 0), (["sing"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
    captured = capsys.readouterr()
    assert compressai_sga.__version__ in captured.out and "sing" in captured.err


def test_eval_model_works_without_any_hook(capsys, monkeypatch):
    monkeypatch.setenv("COMPRESSAI_SGA_DISABLE", "1")
    compressai_sga.hooks.disable()
    try:
        for arguments in (["--help"], ["checkpoint", "--help"]):
            with pytest.raises(SystemExit) as stop:
                main(["eval_model", *arguments])
            assert stop.value.code == 0
            assert "--refine-steps N" in capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            main(["eval_model", "--refine", "magic"])
        assert stop.value.code == 2
    finally:
        compressai_sga.hooks.enable()


def test_eval_model_refuses_an_unknown_compressai(capsys, monkeypatch):
    monkeypatch.setattr(compressai.version, "__version__", "0.0.1")
    with pytest.warns(UserWarning, match="0.0.1"):
        assert main(["eval_model", "--help"]) == 2
    assert "not one that this package knows" in capsys.readouterr().err


def test_compare_says_how_it_is_called(capsys):
    for words in (["compare", "--help"], ["compare", "--workers", "0"]):
        with pytest.raises(SystemExit):
            main(words)
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: python -m compressai_sga compare [-h] [--images IMAGES]")
    assert captured.err.startswith("usage: python -m compressai_sga compare")
    assert main(["compare", "--images", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: there is no folder nowhere; name one with --images\n"


@pytest.mark.parametrize("name", ["matplotlib", "plotly", "bjontegaard"])
def test_compare_without_its_extra(name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["compare"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: compare needs the package {name} (")
    assert line.endswith('; pip install "compressai-sga[eval]"')


def test_other_commands_do_not_need_that_extra(python):
    code = """
import sys
sys.modules |= dict.fromkeys(("matplotlib", "plotly", "bjontegaard", "ray", "filelock"))
from compressai_sga.__main__ import COMMANDS, main
for command in COMMANDS:
    if command.name not in ("compare", "eval_model"):  # the latter is CompressAI's
        try:
            main([command.name, "--help"])
        except SystemExit as stop:
            assert stop.code == 0
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_former_name_calls_the_command(monkeypatch, capsys):
    script = Path(compressai_sga.__file__).parents[1] / "eval" / "compare.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--images", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 2 and "no folder nowhere" in capsys.readouterr().err


def test_help_and_info_need_no_pytorch(python, tmp_path):
    """In new processes, for a fork of the tests' server has imported it."""
    x = np.zeros((8, 8, 3), np.uint8)
    data, _ = files.compress_picture(files.Picture(x, None), quality=1)
    (tmp_path / "a.csga").write_bytes(data)
    fitted, _ = files.compress_picture(files.Picture(x, None), model="c3-fast", steps=1)
    (tmp_path / "b.csga").write_bytes(fitted)
    lines = {"info a.csga": "mbt2018-mean-small, quality 1", "info b.csga": "multiplications a pixel"}
    lines |= {f"{command.name} --help": "usage: " for command in COMMANDS if command.name != "eval_model"}
    for line, expected in lines.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python("-X", "importtime", "-m", "compressai_sga", *line.split(), check=True, fresh=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        imported = {entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines()}
        assert expected in done.stdout and "compressai_sga.lazy" in imported
        assert not {"torch", "compressai"} & imported, line
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5, line


def test_the_names_of_families_are_those_of_their_modules():
    for family in families.FAMILIES:
        ours = {importlib.import_module(cls.__module__) for cls in family.classes.values()}
        there = {name: cls for module in ours for name, cls in module.ARCHITECTURES.items()}
        assert dict(family.classes) == there
