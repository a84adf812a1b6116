# SPDX-License-Identifier: Apache-2.0
"""The version of the package, for whoever needs it without the package."""

__all__ = ["__version__"]

__version__ = "0.1.0"
