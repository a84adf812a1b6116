# SPDX-License-Identifier: Apache-2.0
"""C3: against Cool-Chic, what its budget buys, and Kodak."""
