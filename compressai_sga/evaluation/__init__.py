# SPDX-License-Identifier: Apache-2.0
"""What runs inside CompressAI's `eval_model`: its further options, checks, metrics, and journal."""
