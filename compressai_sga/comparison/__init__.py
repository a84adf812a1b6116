# SPDX-License-Identifier: Apache-2.0
"""Comparison of codecs on the same images: `python -m compressai_sga compare`."""
