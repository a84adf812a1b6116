# SPDX-License-Identifier: Apache-2.0
"""The papers' claims, the list of evaluations, and the documents that are written from the results."""
