# SPDX-License-Identifier: Apache-2.0
"""The tasks' functions as a module that other processes import by its name, and runs of their script.

Those processes import `compressai_sga.tasks` without the rest of the package and CompressAI, which would take
each of them seconds: from a package of that name that has nothing but the way to the real one's modules.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import compressai_sga
from tests.tasks.tasks_runs import HERE, Popen, started


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the package that has nothing of its own."""
    folder = tmp_path_factory.mktemp("bare")
    package = folder / "compressai_sga"
    package.mkdir()
    real = str(Path(compressai_sga.__file__).parent)
    (package / "__init__.py").write_text(f"__path__ = [{real!r}]\n", encoding="utf-8")
    return str(folder)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, bare: str) -> ModuleType:
    """tasks_parts.py; workers get the search path of this process."""
    monkeypatch.syspath_prepend(bare)
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("tasks_parts")


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, bare: str) -> str:
    """PYTHONPATH of processes."""
    path = os.pathsep.join(filter(None, [bare, os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    return path


@pytest.fixture
def start(path: str) -> Iterator[Callable[..., Popen]]:
    """Start the script; see `started`."""
    with started() as start:
        yield start
