# SPDX-License-Identifier: Apache-2.0
"""Entropy coders and universal quantisation."""
