# SPDX-License-Identifier: Apache-2.0
"""HFD: realism of what a decoder draws, bits unchanged."""
