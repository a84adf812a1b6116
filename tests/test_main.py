# SPDX-License-Identifier: Apache-2.0
"""`python -m compressai_sga` lists its commands; eval_model is stock's with our options."""

from __future__ import annotations

import compressai.version
import pytest

import compressai_sga
from compressai_sga.__main__ import COMMANDS, main


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
