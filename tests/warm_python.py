# SPDX-License-Identifier: Apache-2.0
"""Python processes without the five seconds that importing torch and CompressAI's dependencies takes.

A server imports them, neither CompressAI nor the plugin, and forks for every request. The child becomes
what the command line would have made of it: arguments, folder, variables, files as its standard streams,
`__main__`; it imports CompressAI and the plugin itself and ends as an interpreter ends. Of the variables
that are read when torch is imported, OMP_NUM_THREADS and COMPRESSAI_SGA_DISABLE are made good here; other
instructions or another PYTHONPATH need a process of their own.

In:  a line of JSON a request: {"arguments", "env", "cwd", "stdin", "stdout", "stderr", "timeout"}.
Out: a line with the exit status of `os.waitstatus_to_exitcode`.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import types
import warnings
from typing import Any

PRELOADED = ("torch", "torchvision", "torch_geometric", "scipy.stats", "matplotlib.pyplot")


def serve() -> dict[str, Any] | None:
    """Answer requests; return in a child, with its request, or at the end, with None."""
    for line in sys.stdin:
        request = json.loads(line)
        if not (child := os.fork()):
            return request
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the process that `python ARGUMENTS` would be, from its standard streams to its end."""
    signal.alarm(request["timeout"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        opened = os.open(request[name], os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.modules["torch"].set_num_threads(int(request["env"]["OMP_NUM_THREADS"]))
    if sys.modules["compressai_sga_startup"].is_disabled():
        sys.modules["compressai_sga_startup"].uninstall()
    arguments = request["arguments"]
    while arguments[0] == "-W":
        warnings.simplefilter(arguments[1])
        arguments = arguments[2:]
    if arguments[0] == "-m":
        name, sys.argv = arguments[1], arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    for preloaded in PRELOADED:
        importlib.import_module(preloaded)
    warnings.resetwarnings()
    if request := serve():
        become(request)
