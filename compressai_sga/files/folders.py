# SPDX-License-Identifier: Apache-2.0
"""Many files by one command: which output belongs to which input, and the loop over them.

    pairs = outputs("photos", "coded", INPUT_SUFFIXES, ".csga")
    code = each(pairs, work, is_kept, force=False, title="compress")

Folders below the folder are kept. Two inputs whose names differ in the ending only keep it: a.png.csga and
a.jpg.csga. An output that exists is kept, so that the same command goes on after an interrupt; one that is
older than its input, or that `is_kept` does not take for the same, is named as a failure.

In:  folders. Out: lines on stdout, failures and progress on stderr, an exit code: 0, 2 where a file failed.
Fails with ``SgaError`` where there is nothing to do or no place for it.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..errors import SgaError
from ..progress import Meter
from .images import require_folder

__all__ = ["each", "outputs"]


def outputs(
    source: str | os.PathLike[str], target: str | os.PathLike[str], endings: frozenset[str], ending: str
) -> list[tuple[Path, Path]]:
    """The files of a folder, sorted, each with its output.

    Args:
        source, target: folders; the second is made where it is missing.
        endings: of the files to take, in small letters.
        ending: of the outputs.

    Raises:
        SgaError: no file has such an ending, or the second is a file.
    """
    folder, out = Path(source), Path(target)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise SgaError(
            f"{folder} holds no file that ends in {', '.join(sorted(endings))}; name another folder"
        )
    stems = Counter(path.with_suffix("") for path in found)
    pairs = []
    for path in found:
        short = path.relative_to(folder)
        name = short.with_suffix(ending) if stems[path.with_suffix("")] == 1 else Path(f"{short}{ending}")
        pairs.append((path, out / name))
    for place in (out, *{output.parent for _, output in pairs}):
        require_folder(place, "the output")
    return pairs


def each(
    pairs: Sequence[tuple[Path, Path]],
    work: Callable[[Path, Path], str],
    is_kept: Callable[[Path], bool],
    *,
    force: bool,
    title: str,
    at_once: int = 1,
) -> int:
    """Do all pairs; see the file's head.

    Args:
        pairs: inputs and outputs.
        work: makes an output and gives the line to print; an ``SgaError`` of it concerns this file only.
        is_kept: whether an existing output is what `work` would make.
        force: whether existing outputs are made again.
        title: of the progress.
        at_once: of the files, each in a thread; 1 does the work in the caller's.

    Returns:
        The exit code; 130 after an interrupt.
    """
    done = kept = 0
    failed: list[Path] = []

    def one(pair: tuple[Path, Path]) -> str | None:
        source, target = pair
        if target.exists() and not force:
            if target.stat().st_mtime < source.stat().st_mtime or not is_kept(target):
                raise SgaError(f"{target} is there already, but older or made otherwise; --force replaces it")
            return None
        return work(source, target)

    with Meter(title, len(pairs), unit="file") as meter:
        try:
            for number, (source, result) in enumerate(_results(one, pairs, at_once, meter), 1):
                try:
                    line = result()
                    kept += line is None
                    done += line is not None
                    if line is not None:
                        tqdm.write(line)
                except SgaError as error:
                    failed.append(source)
                    told = str(error) if str(source) in str(error) else f"{source}: {error}"
                    meter.write(f"error: {told}")
                meter.at(number)
        except KeyboardInterrupt:
            meter.write(
                f"interrupted; {done + kept} of {len(pairs)} are done, the same command does the rest"
            )
            return 130
    parts = (
        [f"{done} done"] + [f"{kept} there already"] * bool(kept) + [f"{len(failed)} failed"] * bool(failed)
    )
    print(", ".join(parts) + "".join(f"\nfailed: {path}" for path in failed), file=sys.stderr)
    return 2 if failed else 0


def _results(
    one: Callable[[tuple[Path, Path]], str | None],
    pairs: Sequence[tuple[Path, Path]],
    at_once: int,
    meter: Meter,
) -> Iterator[tuple[Path, Callable[[], str | None]]]:
    """Each input, as it ends, with a function that gives its result or raises its error."""
    if at_once == 1:
        for number, pair in enumerate(pairs):
            meter.at(number, pair[0].name)
            yield pair[0], partial(one, pair)
        return
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(one, pair): pair[0] for pair in pairs}
        while futures:  # the time-out lets Ctrl-C through
            for future in wait(futures, timeout=1, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
