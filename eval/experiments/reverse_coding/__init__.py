# SPDX-License-Identifier: Apache-2.0
"""Channel simulation: what sending a sample costs, and whose law it has."""
