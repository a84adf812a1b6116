# SPDX-License-Identifier: Apache-2.0
"""DiffC: against its theory, its channels, and other codecs."""
