# SPDX-License-Identifier: Apache-2.0
"""What the experiments say of the papers: the list of evaluations, claims and findings, the documents."""
