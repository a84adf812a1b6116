# SPDX-License-Identifier: Apache-2.0
"""Tasks on a Ray cluster; Ray schedules them, and tries again what a lost worker or machine was doing.

The address is one that `ray.init` takes: "auto" for the cluster that this machine belongs to, HOST:PORT of
another, "local" for one of this machine's processors that lives as long as the run.

What a machine of the cluster needs: the same versions of Python and Ray, the package compressai_sga with what
the tasks use, and the tasks' files (images, weights) at the same paths; relative ones are looked up from
the same working folder where it exists. The scripts themselves are sent: the *.py of this folder, and of the
folders of the tasks' functions.

A task takes as many of the cluster's CPUs as it has threads, and one GPU where the cluster has any.

In:  tasks. Out: (task, outcome) in the order in which they end.
Fails with ``SgaError`` where Ray is not installed, where no cluster answers, where none of its machines is
large enough, and where they cannot take the scripts. Closing the generator leaves the cluster, which ends
what still runs there.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .pool import died
from .process import Outcome, Task, failed, module_of, pack, perform

__all__ = ["outcomes"]

EVAL = Path(__file__).resolve().parent
CONNECT_SEC = 10
AHEAD = 2  # tasks that are handed to Ray for each that can run: workers need not wait for the next one


def outcomes(
    tasks: Sequence[Task], *, address: str, threads: int, retries: int
) -> Iterator[tuple[Task, Outcome]]:
    """Do the tasks.

    Args:
        tasks: what to do.
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
    """Ray, which sends nothing about its use anywhere."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise _error(f'ray needs the package ray ({error}); pip install "compressai-sga[ray]"') from error
    return ray


def _error(text: str) -> Exception:
    from ..errors import SgaError  # not above: workers would import it for nothing

    return SgaError(text)


def _connect(ray: ModuleType, tasks: Sequence[Task], address: str, threads: int) -> None:
    if ray.is_initialized():
        raise _error("this process uses Ray already; call ray.shutdown() before the run")
    _reach(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    with tempfile.TemporaryDirectory(prefix="eval-") as folder:
        _copy_scripts(tasks, Path(folder))
        environment = {"working_dir": folder, "env_vars": {"OMP_NUM_THREADS": str(threads)}}
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
        raise _error(
            f"no machine of the cluster has {threads} CPUs, one for each thread (the largest: {most:g}); "
            "lower --threads"
        )


def _reach(address: str) -> None:
    """Whether there is anything at HOST:PORT: Ray itself tries for two minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SEC).close()
        except (OSError, OverflowError) as error:
            raise _nobody(address, error) from error


def _nobody(address: str, error: Exception) -> Exception:
    line = " ".join(str(error).split())
    return _error(f"no Ray cluster at {address!r} ({line}); start one by `ray start --head`, or give local")


def _copy_scripts(tasks: Sequence[Task], target: Path) -> None:
    """What other machines import: modules of the tasks' functions, and those beside them."""
    names = {module_of(task.call) for task in tasks if task.call.__module__ != "__main__"}
    modules = [sys.modules[name] for name in names if "." not in name]
    if any(task.call.__module__ == "__main__" for task in tasks):
        modules.append(sys.modules["__main__"])
    files = [Path(m.__file__).resolve() for m in modules if getattr(m, "__file__", None)]
    folders = {file.parent for file in files if "site-packages" not in file.parts and file.suffix == ".py"}
    for folder in (EVAL, *(folders - {EVAL})):
        for file in folder.glob("*.py"):
            if not (target / file.name).exists():
                shutil.copy(file, target)


def _slots(ray: ModuleType, threads: int, gpus: int) -> int:
    """Tasks that the cluster as it is now can do at a time."""
    resources = ray.cluster_resources()
    slots = int(resources.get("CPU", 0) // threads)
    return max(1, min(slots, int(resources.get("GPU", 0))) if gpus else slots)


def _outcome(ray: ModuleType, reference: Any, retries: int) -> Outcome:
    errors = ray.exceptions
    try:
        return ray.get(reference)
    except errors.RuntimeEnvSetupError as error:
        line = " ".join(str(error).split())
        raise _error(f"a machine of the cluster cannot take the scripts: {line}") from error
    except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
        return Outcome(error=f"{died(retries + 1)} ({type(error).__name__})")
    except errors.RayError as error:
        return failed(error)


def _perform_there(packed: bytes, threads: int, folder: str) -> Outcome:
    """What a machine of the cluster calls."""
    torch.set_num_threads(threads)
    if os.path.isdir(folder):
        os.chdir(folder)
    return perform(packed)
