# SPDX-License-Identifier: Apache-2.0
"""Points that others have published, kept beside our results with their source.

Tables and figures follow from `eval/results` alone; the collection of published points that they compare
with is not part of the repository. What is used of it is copied when something is measured.

In:  a JSON file {codec: {"source": where it was read, "results": {"bpp": [...], "psnr-rgb": [...]}}}, means
     over the images of Kodak.
Out: eval/results/published-kodak.json, the same for the codecs that our scripts name.
Fails with ``FileNotFoundError`` where there is no such file, ``ValueError`` where it lacks a codec.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["FILE", "Published", "keep", "points"]

FILE = "published-kodak.json"
Published = dict[str, dict[str, Any]]


def keep(collection: Path, codecs: Iterable[str], results: Path) -> Published:
    """Copy these codecs' points to the folder of results; all that are there now."""
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
    """What was kept."""
    return json.loads((results / FILE).read_text(encoding="utf-8"))
