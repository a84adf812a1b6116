# SPDX-License-Identifier: Apache-2.0
"""The version of the package, in a file that can be read without importing the package."""

__all__ = ["__version__"]

__version__ = "0.1.0"
