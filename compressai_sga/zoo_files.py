# SPDX-License-Identifier: Apache-2.0
"""Where the zoo's files lie, and whether they are what the manifest says.

They are in the repository's `zoo/` folder, or in `compressai_sga/_zoo/` once installed. This file does not
import the models, because some of them need a file of the zoo themselves; `zoo` loads whole models.

In:  names and hashes of `manifest.json`. Out: paths.
Fails with ``FileNotFoundError`` for a file that is not installed, ``ValueError`` for one that differs from
the manifest's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

__all__ = ["c3_nets", "checked", "folder"]


def folder() -> Path:
    """The installed copy of the zoo, else the repository's."""
    package = Path(__file__).resolve().parent
    for place in (package / "_zoo", package.parent / "zoo"):
        if (place / "manifest.json").is_file():
            return place
    raise FileNotFoundError(
        f"no zoo: neither {package / '_zoo'} nor {package.parent / 'zoo'} holds a manifest.json; "
        "install compressai-sga again, or use its whole repository"
    )


def checked(path: Path, sha256: str) -> Path:
    """The path of a file, after a check that it exists and has this hash.

    Raises:
        ValueError: the file is not the one that the manifest names.
        FileNotFoundError: the manifest names a file that is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not installed: some weights are in the compressai-sga repository only, not in the "
            f"wheel. Copy zoo/{path.parent.name}/{path.name} from the repository to that place, "
            "or choose another quality or model (`python -m compressai_sga models` lists them)"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is damaged or a different file: its sha256 is {found}, the manifest says {sha256}; "
            "install compressai-sga again"
        )
    return path


def c3_nets() -> Path:
    """The default nets of C3; errors as `checked`."""
    record = json.loads((folder() / "manifest.json").read_text(encoding="utf-8"))["c3_nets"]
    return checked(folder() / record["file"], record["sha256"])
