# SPDX-License-Identifier: Apache-2.0
"""Latent refinement: methods, curves and times; the zoo's models without refinement."""
