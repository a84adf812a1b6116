# SPDX-License-Identifier: Apache-2.0
"""Compressed images as files: `compress_file`, `decompress_file`, `describe_file`; see `codec`."""

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from .codec import (
        DEFAULT_CODER,
        Description,
        compress_file,
        compress_picture,
        decompress_file,
        decompress_picture,
        describe,
        describe_file,
    )
    from .images import Picture, read_picture, write_picture

__all__ = [
    "DEFAULT_CODER",
    "Description",
    "Picture",
    "compress_file",
    "compress_picture",
    "decompress_file",
    "decompress_picture",
    "describe",
    "describe_file",
    "read_picture",
    "write_picture",
]

_IMAGES = ("Picture", "read_picture", "write_picture")
__getattr__ = lazy.attributes(__name__, {name: "images" if name in _IMAGES else "codec" for name in __all__})
