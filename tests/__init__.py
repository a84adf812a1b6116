# SPDX-License-Identifier: Apache-2.0
"""A package, because others install a `tests` of their own, which would hide this folder from child
processes."""
