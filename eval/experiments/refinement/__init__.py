# SPDX-License-Identifier: Apache-2.0
"""Latent refinement: methods, curves, times, and the zoo without it."""
