# SPDX-License-Identifier: Apache-2.0
"""Channel simulation: the cost of sending a sample, and the distribution of the sample."""
