# SPDX-License-Identifier: Apache-2.0
"""One folder a topic: what measures, what reports, what draws. No topic imports another."""
