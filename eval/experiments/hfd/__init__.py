# SPDX-License-Identifier: Apache-2.0
"""HFD: realism and distortion of a diffusion decoder that leaves the bits unchanged."""
