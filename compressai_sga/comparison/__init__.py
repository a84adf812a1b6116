# SPDX-License-Identifier: Apache-2.0
"""Codecs compared: `python -m compressai_sga compare`."""
