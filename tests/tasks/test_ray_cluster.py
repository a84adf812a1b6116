# SPDX-License-Identifier: Apache-2.0
"""tasks/tasks.py on a Ray cluster: as the serial run, whatever is killed; what Ray is asked for."""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compressai_sga import zoo
from compressai_sga.errors import SgaError
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, run
from tests.tasks.tasks_runs import POSIX, calls, ended, expected, journal, read, squares, until


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SgaError, match=r'pip install "compressai-sga\[ray\]"'):
        run(Record(tmp_path / "r.json"), [], title="t", ray="auto")


class FakeRay:
    """What `ray_cluster` asks of Ray, done here and at once: a cluster of one machine."""

    exceptions = SimpleNamespace(
        RayError=type("RayError", (Exception,), {}),
        RuntimeEnvSetupError=type("RuntimeEnvSetupError", (Exception,), {}),
        **{
            name: type(name, (Exception,), {})
            for name in ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError")
        },
    )

    def __init__(self, **resources: float):
        self.resources, self.most, self.options, self.is_on = resources, 0, {}, False

    def is_initialized(self) -> bool:
        return self.is_on

    def init(self, address: str, **options: Any) -> None:
        self.is_on = True
        self.options |= options
        folder = options["runtime_env"].get("working_dir")
        files = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
        self.sent = {path.relative_to(folder).as_posix() for path in files}

    def shutdown(self) -> None:
        self.is_on = False

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}]

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(**more: Any) -> Any:
            self.options |= more
            return SimpleNamespace(remote=lambda *given: functools.partial(function, *given))

        return SimpleNamespace(options=options)

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(references))
        return references[:1], references[1:]

    def get(self, reference: Any) -> Any:
        return reference()


def test_what_ray_is_asked_for(parts, tmp_path, monkeypatch):
    """A bounded number of tasks at a time; CPUs as threads; a GPU each; the module and those beside it."""
    fake = FakeRay(CPU=8, GPU=2)
    monkeypatch.setitem(sys.modules, "ray", fake)
    record = Record(tmp_path / "results.json")
    tasks = squares(parts, tmp_path, 30)
    assert run(record, tasks, title="t", ray="auto", threads=2) == {}
    torch.set_num_threads(1)
    assert read(tmp_path) == expected(30)
    assert fake.most == 2 * 2 and not fake.is_on
    asked = ("num_cpus", "num_gpus", "max_retries")
    assert [fake.options[name] for name in asked] == [2, 1, 2]
    assert fake.options["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "2"}
    assert fake.sent == {path.name for path in Path(parts.__file__).parent.glob("*.py")}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("is_namespace", [False, True], ids=["package", "namespace"])
def test_a_whole_package_is_sent(tmp_path, monkeypatch, is_namespace):
    """The *.py of the top-level package that a function is in, and nothing that is installed."""
    top = f"studies_{is_namespace}"
    for name in ("depth/measure.py", "depth/report.py", "width.py", "depth/data.txt", "../neighbour.py"):
        path = tmp_path / "src" / top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("def measure():\n    return {}\n")
    for folder in () if is_namespace else ("", "depth"):
        (tmp_path / "src" / top / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    module = importlib.import_module(f"{top}.depth.measure")
    fake = FakeRay(CPU=1)
    monkeypatch.setitem(sys.modules, "ray", fake)
    tasks = [Task("ours", {}, module.measure), Task("theirs", {}, platform.uname), Task("sga", {}, zoo.load)]
    failures = run(Record(tmp_path / "results.json"), tasks, title="t", ray="auto")
    assert list(failures) == ["theirs", "sga"]  # which return no dictionaries
    own = {"depth/measure.py", "depth/report.py", "width.py"}
    own |= set() if is_namespace else {"__init__.py", "depth/__init__.py"}
    assert fake.sent == {f"{top}/{name}" for name in own}
    run(Record(tmp_path / "more.json"), tasks[1:], title="t", ray="auto")
    assert fake.sent == set() and "working_dir" not in fake.options["runtime_env"]


def test_what_ray_cannot_do(parts, tmp_path, monkeypatch):
    fake = FakeRay(CPU=2)
    monkeypatch.setitem(sys.modules, "ray", fake)
    record = Record(tmp_path / "results.json")

    def given(**options: Any) -> dict[str, str]:
        return run(record, squares(parts, tmp_path, 2), title="t", **options)

    with pytest.raises(SgaError, match="no machine of the cluster has 3 CPUs.*the largest: 2.*--threads"):
        given(ray="auto", threads=3)
    torch.set_num_threads(1)
    with pytest.raises(SgaError, match=r"no Ray cluster at '127.0.0.1:9' \(.*refused\)"):
        given(ray="127.0.0.1:9")
    monkeypatch.setattr(fake, "get", _raising(fake.exceptions.RuntimeEnvSetupError("no\nroom")))
    with pytest.raises(SgaError, match="cannot take the scripts: no room"):
        given(ray="auto")
    monkeypatch.setattr(fake, "get", _raising(fake.exceptions.WorkerCrashedError()))
    text = "the process died 3 times, perhaps out of memory (WorkerCrashedError)"
    assert given(ray="auto") == {"square 0": text, "square 1": text}
    assert fake.options["num_gpus"] == 0
    fake.is_on = True
    with pytest.raises(SgaError, match="uses Ray already"):
        given(ray="auto")


def _raising(error: Exception) -> Callable[..., Any]:
    def get(_: Any) -> Any:
        raise error

    return get


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = dict(num_cpus=1, num_gpus=0, object_store_memory=80_000_000, include_dashboard=False)
cluster = Cluster(initialize_head=True, head_node_args=node)
machine = cluster.add_node(**node)
print("address", cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(machine, allow_graceful=False)
cluster.shutdown()
"""


@pytest.fixture
def cluster(monkeypatch, path) -> Iterator[SimpleNamespace]:
    """Two Ray nodes of one CPU each, below a process of their own."""
    pytest.importorskip("ray", reason='pip install ".[ray]"')
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # a short path
        for name, value in {
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home folder
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }.items():
            monkeypatch.setenv(name, value)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
            yield SimpleNamespace(address=address, process=process)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@POSIX
def test_ray_and_a_killed_worker(cluster, start, tmp_path):
    """Two workers, one of which is killed in mid-run: the results of the serial run."""
    run = start(tmp_path, "--count", "8", "--seconds", "0.5", "--ray", cluster.address)
    until(lambda: len({pid for _, pid in calls(tmp_path)}) == 2)

    def running() -> list[int]:
        done = [json.loads(line)["cell"]["of"]["x"] for line in journal(tmp_path) if line.endswith("}")]
        return [pid for name, pid in calls(tmp_path) if int(name) not in done]

    until(lambda: bool(running()))
    os.kill(running()[0], signal.SIGKILL)
    ended(run, tmp_path, 0)
    assert list(read(tmp_path).items()) == list(expected(8).items())
    assert len(calls(tmp_path)) == 9


@POSIX
@pytest.mark.slow
def test_ray_and_a_killed_machine(cluster, start, tmp_path):
    run = start(tmp_path, "--count", "12", "--seconds", "1", "--ray", cluster.address)
    until(lambda: len({pid for _, pid in calls(tmp_path)}) == 2)
    cluster.process.stdin.write("kill\n")
    cluster.process.stdin.flush()
    ended(run, tmp_path, 0)
    assert list(read(tmp_path).items()) == list(expected(12).items())
    assert len(calls(tmp_path)) > 12
