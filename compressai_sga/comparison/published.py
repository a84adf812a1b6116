# SPDX-License-Identifier: Apache-2.0
"""Published rate-distortion points of other codecs, with their source.

`read` takes them from a file for one comparison. `keep` copies the codecs that an experiment uses from a
larger collection to the folder of results. Tables and figures then depend on that folder alone (`points`).

In:  a JSON file {codec: {"source": where it was read, "results": {"bpp": [...], "psnr-rgb": [...]}}} with
     means over a set of images; for `keep` this set is Kodak.
Out: the same for the codecs asked for; `keep` writes published-kodak.json.
Fails: `read` with ``SgaError`` if the file is no such collection or lacks a codec; `keep` with
``FileNotFoundError`` if there is no such file, and ``ValueError`` if it lacks a codec.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import SgaError

__all__ = ["FILE", "Published", "keep", "points", "read"]

FILE = "published-kodak.json"
Published = dict[str, dict[str, Any]]


def read(file: Path, names: Sequence[str] = ()) -> Published:
    """The points of these codecs, or of all codecs of the file.

    Raises:
        SgaError: see the head of the file.
    """
    if not file.is_file():
        raise SgaError(f"there is no file {file} of published points; name one that exists")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SgaError(f"{file} is no JSON file of published points ({error})") from error
    unknown = [name for name in names if name not in content]
    if unknown:
        raise SgaError(f"{file} has no {', '.join(unknown)}; it has {', '.join(content)}")
    found = {name: content[name] for name in names or content}
    for name, codec in found.items():
        if not isinstance(codec, dict) or not {"source", "results"} <= codec.keys():
            raise SgaError(f'{file}: {name} must have the keys "source" and "results"; add them')
    return found


def keep(collection: Path, codecs: Iterable[str], results: Path) -> Published:
    """Copy the points of these codecs to the folder of results; returns all points that it has now."""
    if not collection.is_file():
        raise FileNotFoundError(f"no file {collection}; name published points with --anchors")
    known = json.loads(collection.read_text(encoding="utf-8"))
    if missing := [codec for codec in codecs if codec not in known]:
        raise ValueError(f"{collection} has no {', '.join(missing)}; name another file with --anchors")
    path = results / FILE
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    new = dict(sorted((old | {codec: known[codec] for codec in codecs}).items()))
    if new != old:
        results.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    return new


def points(results: Path) -> Published:
    """The points that `keep` has written."""
    return json.loads((results / FILE).read_text(encoding="utf-8"))
