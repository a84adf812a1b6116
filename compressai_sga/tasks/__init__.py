# SPDX-License-Identifier: Apache-2.0
"""Long measurements as small tasks, on processes or a cluster; every result is on disk when its task ends."""
