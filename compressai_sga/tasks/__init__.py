# SPDX-License-Identifier: Apache-2.0
"""Long measurements in small tasks: on processes or a cluster, each result on disk as soon as it is there."""
