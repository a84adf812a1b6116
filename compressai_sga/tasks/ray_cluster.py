# SPDX-License-Identifier: Apache-2.0
"""Tasks on a Ray cluster. Ray schedules them, and repeats the tasks of a worker or machine that was lost.

The address is one that `ray.init` takes: "auto" for the cluster of this machine, HOST:PORT for another
cluster, "local" for a temporary cluster on this machine's processors, which ends with the run.

Every machine of the cluster needs the same versions of Python and Ray, the package compressai_sga with the
packages that the tasks use, and the tasks' files (images, weights) at the same paths. Relative paths are
looked up from the same working folder if it exists there. Functions of tasks may be in modules that are not
installed. Then the *.py files of the module's package are sent, or those of its folder if it is in no
package.

A task takes as many of the cluster's CPUs as it has threads, and one GPU where the cluster has any.

In:  tasks. Out: (task, outcome) in the order in which they end.
Fails with ``SgaError`` if Ray is not installed, if no cluster answers, if no machine has enough CPUs, or if a
machine cannot take the scripts. Closing the generator disconnects from the cluster, which then ends the tasks
that still run.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import SgaError
from .pool import died
from .process import PACKAGE, Outcome, Task, failed, is_library, module_of, pack, perform

__all__ = ["outcomes"]

CONNECT_SEC = 10
AHEAD = 2  # tasks that are handed to Ray for each that can run: workers need not wait for the next one


def outcomes(
    tasks: Sequence[Task], *, address: str, threads: int, retries: int
) -> Iterator[tuple[Task, Outcome]]:
    """Run the tasks.

    Args:
        tasks: the tasks to run.
        address: of the cluster.
        threads: torch threads, and CPUs, of each task.
        retries: further tries of a task whose process dies.
    """
    ray = _ray()
    _connect(ray, tasks, address, threads)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        remote = ray.remote(_perform_there).options(num_cpus=threads, num_gpus=gpus, max_retries=retries)
        here = os.getcwd()
        queue = deque(tasks)
        running: dict[Any, Task] = {}
        while queue or running:
            room = AHEAD * _slots(ray, threads, gpus)
            while queue and len(running) < room:
                task = queue.popleft()
                try:
                    packed = pack(task)
                except pickle.PicklingError as error:
                    yield task, failed(error)
                    continue
                running[remote.remote(packed, threads, here)] = task
            done, _ = ray.wait(list(running), num_returns=1, timeout=1) if running else ([], [])
            for reference in done:
                yield running.pop(reference), _outcome(ray, reference, retries)
    finally:
        ray.shutdown()


def _ray() -> ModuleType:
    """Ray, with its usage statistics turned off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise SgaError(f'--ray needs the package ray ({error}); pip install "compressai-sga[ray]"') from error
    return ray


def _connect(ray: ModuleType, tasks: Sequence[Task], address: str, threads: int) -> None:
    if ray.is_initialized():
        raise SgaError("this process uses Ray already; call ray.shutdown() before the run")
    _reach(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        environment: dict[str, Any] = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        if _copy_modules(tasks, Path(folder)):
            environment["working_dir"] = folder
        try:
            ray.init(
                address,
                runtime_env=environment,
                log_to_driver=False,
                logging_level=logging.WARNING,
                **options,
            )
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            ray.shutdown()
            raise _nobody(address, error) from error
    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < threads:
        ray.shutdown()
        raise SgaError(
            f"no machine of the cluster has {threads} CPUs, one for each thread (the largest: {most:g}); "
            "lower --threads"
        )


def _reach(address: str) -> None:
    """Raise ``SgaError`` at once if nothing answers at HOST:PORT; Ray itself would try for two minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SEC).close()
        except (OSError, OverflowError) as error:
            raise _nobody(address, error) from error


def _nobody(address: str, error: Exception) -> SgaError:
    line = " ".join(str(error).split())
    return SgaError(f"no Ray cluster at {address!r} ({line}); start one by `ray start --head`, or give local")


def _copy_modules(tasks: Sequence[Task], target: Path) -> bool:
    """Copy the modules that other machines lack into a folder on their path; whether there were any."""
    for call in {task.call for task in tasks}:
        for root, file in _files(call):
            copy = target / file.relative_to(root)
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
    return any(target.iterdir())


def _files(call: Callable[..., Any]) -> Iterator[tuple[Path, Path]]:
    """(folder of the import, file) for each source file that the import of a function may need."""
    try:
        name = module_of(call)
    except pickle.PicklingError:  # which is said of its task
        return
    top = name.partition(".")[0]
    is_script = call.__module__ == "__main__" and "." not in name
    module = sys.modules["__main__" if is_script else top]
    if hasattr(module, "__path__"):
        found = [(Path(folder).parent, Path(folder).rglob("*.py")) for folder in module.__path__]
    elif file := getattr(module, "__file__", None):
        folder = Path(file).resolve().parent
        found = [(folder, folder.glob("*.py"))]
    else:
        return
    for root, files in found:
        if top != PACKAGE.name and not is_library(str(root / top)):
            yield from ((root, file) for file in files)


def _slots(ray: ModuleType, threads: int, gpus: int) -> int:
    """The number of tasks that the cluster can run at the same time."""
    resources = ray.cluster_resources()
    slots = int(resources.get("CPU", 0) // threads)
    return max(1, min(slots, int(resources.get("GPU", 0))) if gpus else slots)


def _outcome(ray: ModuleType, reference: Any, retries: int) -> Outcome:
    errors = ray.exceptions
    try:
        return ray.get(reference)
    except errors.RuntimeEnvSetupError as error:
        line = " ".join(str(error).split())
        raise SgaError(f"a machine of the cluster cannot take the scripts: {line}") from error
    except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
        return Outcome(error=f"{died(retries + 1)} ({type(error).__name__})")
    except errors.RayError as error:
        return failed(error)


def _perform_there(packed: bytes, threads: int, folder: str) -> Outcome:
    """The function that a machine of the cluster calls."""
    torch.set_num_threads(threads)
    if os.path.isdir(folder):
        os.chdir(folder)
    return perform(packed)
