# SPDX-License-Identifier: Apache-2.0
"""Compressed images as files: `compress_file`, `decompress_file`, `describe_file`; see `codec`."""

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from .codec import compress_file, compress_picture, decompress_file, decompress_picture
    from .description import Description, describe, describe_file
    from .images import Picture, read_picture, write_picture
    from .kinds import DEFAULT_CODER

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

__getattr__ = lazy.attributes(
    __name__,
    {
        **dict.fromkeys(
            ("compress_file", "compress_picture", "decompress_file", "decompress_picture"), "codec"
        ),
        **dict.fromkeys(("Description", "describe", "describe_file"), "description"),
        **dict.fromkeys(("Picture", "read_picture", "write_picture"), "images"),
        "DEFAULT_CODER": "kinds",
    },
)
