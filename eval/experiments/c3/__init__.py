# SPDX-License-Identifier: Apache-2.0
"""C3: compared with Cool-Chic, with different budgets of its fit, and on Kodak."""
