# SPDX-License-Identifier: Apache-2.0
"""How a command ends: whatever the user or the system did wrong is one sentence on stderr, not a traceback.

    sys.exit(ended(lambda: command(argv)))

`refusals` decides what is such an error. An ``SgaError`` is, and so is a ``ValueError`` that a line of this
package raises, because such a message says value, rule and cure. Errors of the system (a full disk, a name
that is too long, missing rights) and lack of memory are, too. Everything else is a fault of the program and
keeps its traceback.

In:  a function without arguments. Out: its exit code; 2 after a refusal, 130 after Ctrl-C, 141 where the
reader of stdout has gone (`| head`).
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .errors import SgaError

__all__ = ["brief", "ended", "is_lack_of_memory", "refusals"]

_PACKAGE = __name__.partition(".")[0]
_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MOST_CHARACTERS = 200
_INTERRUPTED, _READER_GONE = 130, 128 + 13


def ended(command: Callable[[], int | None], *, ours_only: bool = False) -> int:
    """Run a command and give its exit code; see the file's head.

    Args:
        command: does the work; its return value is the exit code, None means 0.
        ours_only: whether only errors that a line of this package raises become a sentence, so that stock's
            own errors and interrupts stay stock's.
    """
    try:
        with refusals(ours_only=ours_only):
            code = command() or 0
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
            return code
    except SgaError as error:
        _drop_stdout()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _drop_stdout()
        return _READER_GONE
    except KeyboardInterrupt:
        if ours_only:
            raise
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


@contextmanager
def refusals(*, ours_only: bool = False) -> Iterator[None]:
    """Turn errors of the user and of the system into ``SgaError``; arguments as for `ended`."""
    try:
        yield
    except (SgaError, BrokenPipeError):
        raise
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        ours = _is_ours(error)
        if ours_only and not ours:
            raise
        if is_lack_of_memory(error):
            raise SgaError("the image needs more memory than there is; cut it into parts") from error
        if isinstance(error, OSError) or (ours and isinstance(error, ValueError)):
            raise SgaError(_text(error)) from error
        raise


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether Python, torch on a CPU or torch on a GPU ran out of memory."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("allocate memory", "out of memory")
    )


def brief(error: BaseException) -> str:
    """An error as part of a sentence: messages of this package whole, others by type and first lines.

    Escape codes are left out. What `torch.load` says about a file becomes the file's fault in a few words.
    """
    if isinstance(error, SgaError) or _is_ours(error):
        return _text(error)
    text = _ESCAPE_CODE.sub("", str(error)).strip()
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"Unsupported global: GLOBAL (\S+)", text)
        if found is not None:
            return (
                f"it holds an object of {found[1]}, which PyTorch loads from trusted files only; save the "
                "state dict alone"
            )
    if (
        isinstance(error, (pickle.UnpicklingError, EOFError, zipfile.BadZipFile))
        or "PytorchStreamReader" in text
    ):
        return "torch.save did not write it, or it is damaged"
    text = " ".join(line.strip() for line in text.splitlines()[:2])
    if len(text) > _MOST_CHARACTERS:
        text = text[: _MOST_CHARACTERS - 3].rpartition(" ")[0] + " ..."
    return f"{type(error).__name__}: {text}"


def _text(error: BaseException) -> str:
    reason = getattr(error, "reason", None)  # of urllib's errors, whose str has brackets around it
    if isinstance(error, OSError) and isinstance(reason, str):
        return reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return _ESCAPE_CODE.sub("", str(error))


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this package raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return name.partition(".")[0] == _PACKAGE


def _drop_stdout() -> None:
    """Let nothing more fail on stdout: the interpreter flushes it once more at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
