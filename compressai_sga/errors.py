# SPDX-License-Identifier: Apache-2.0
"""The errors that this package raises on purpose. Each message says the value, the rule and the cure."""

from __future__ import annotations

__all__ = ["BitstreamError", "InputError", "SgaError", "ShapeError", "UnsupportedModelError"]


class SgaError(Exception):
    """Base class: catch it to catch whatever this package refuses."""


class UnsupportedModelError(SgaError):
    """The model lacks a part that refinement or coding needs; the message names it."""


class BitstreamError(SgaError, ValueError):
    """A bitstream or file is damaged, truncated or of another kind; the message names the place."""


class ShapeError(SgaError, ValueError):
    """A tensor has another shape than the function takes."""


class InputError(SgaError, ValueError):
    """An image, a latent or a weight is of another type than can be coded, or out of range."""
