# SPDX-License-Identifier: Apache-2.0
"""Small images, a small model trained in seconds, and Python processes that see the plugin."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compressai.losses import RateDistortionLoss
from compressai.models import MeanScaleHyperprior
from PIL import Image

import compressai_sga

ROOT = Path(compressai_sga.__file__).resolve().parent.parent
SIZES = {"a": (192, 176), "b": (200, 168), "c": (192, 192)}  # (width, height) px; b needs padding


def picture(width: int, height: int, seed: int) -> torch.Tensor:
    """A smooth random image, (1, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    return F.interpolate(x, size=(height, width), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images."""
    folder = tmp_path_factory.mktemp("images")
    for seed, (name, size) in enumerate(SIZES.items()):
        x = (picture(*size, seed)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(x)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mbt2018-mean with N=16, M=24, trained just enough for latents that carry something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MeanScaleHyperprior(16, 24)
        loss = RateDistortionLoss(lmbda=0.01)
        names = {name for name, _ in net.named_parameters() if not name.endswith(".quantiles")}
        optimizer = torch.optim.Adam([p for n, p in net.named_parameters() if n in names], lr=3e-3)
        for step in range(60):
            x = torch.cat([picture(64, 64, 100 + 4 * step + i) for i in range(4)])
            optimizer.zero_grad()
            loss(net(x), x)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    path = tmp_path_factory.mktemp("checkpoints") / "small.pth.tar"
    torch.save({"state_dict": net.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of a checkout with metadata, whatever is installed besides."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture(scope="session")
def variables(plugin_path: str) -> dict[str, str]:
    """Variables of a process that sees the plugin."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COMPRESSAI_SGA", "PYTHON"))}
    return {**kept, "PYTHONPATH": plugin_path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def environment(variables: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Such variables, and a cache folder of its own."""
    return {**variables, "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture(scope="session")
def warm_python(variables: dict[str, str]) -> Iterator[Callable[[dict[str, Any]], int]]:
    """A server of `warm_python.py`: runs a request, gives its exit code."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("warm_python.py")],
        env={**variables, "MPLBACKEND": "agg"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def run(request: dict[str, Any]) -> int:
            print(json.dumps(request), file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield run


@pytest.fixture(scope="session")
def run_python(
    variables: dict[str, str], request: pytest.FixtureRequest
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a folder; `changes` are variables.

    The process is a fork that has imported torch, but neither CompressAI nor the plugin; a new one if
    `fresh`, or if its options or variables are none that such a fork can follow.
    """

    def run(
        *arguments: Any, cwd: Path, input: str = "", check: bool = False, fresh: bool = False, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*map(str, arguments)]
        job = {"env": {**variables, **changes}, "cwd": str(cwd), "timeout": 300}
        options = command[2:] if command[:2] == ["-W", "ignore"] else command
        fresh |= not changes.keys() <= {"OMP_NUM_THREADS", "COMPRESSAI_SGA_DISABLE", "XDG_CACHE_HOME"}
        fresh |= options[0].startswith("-") and options[0] not in ("-m", "-c")
        if fresh:
            done = subprocess.run(
                [sys.executable, *command], input=input, capture_output=True, text=True, **job
            )
        else:
            with tempfile.TemporaryDirectory() as folder:
                streams = {name: f"{folder}/{name}" for name in ("stdin", "stdout", "stderr")}
                Path(streams["stdin"]).write_text(input)
                code = request.getfixturevalue("warm_python")({"arguments": command, **job, **streams})
                output = (Path(streams[name]).read_text() for name in ("stdout", "stderr"))
                done = subprocess.CompletedProcess(command, code, *output)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def python(
    run_python: Callable[..., subprocess.CompletedProcess[str]], environment: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a folder of the test, with a cache of its own."""
    return partial(run_python, cwd=tmp_path, XDG_CACHE_HOME=environment["XDG_CACHE_HOME"])


@pytest.fixture
def eval_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Stock's module, patched, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compressai_sga.hooks.enable()
    return importlib.import_module("compressai.utils.eval_model.__main__")


@pytest.fixture
def evaluate(eval_model: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the evaluation in this process; gives the JSON."""

    def run(*arguments: Any) -> dict[str, Any]:
        capsys.readouterr()
        eval_model.main([str(argument) for argument in arguments])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(eval_model: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run an evaluation that must end with exit code 2; gives (stdout, stderr)."""

    def run(*arguments: Any) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            eval_model.main([str(argument) for argument in arguments])
        assert stop.value.code == 2
        return tuple(capsys.readouterr())

    return run
