# SPDX-License-Identifier: Apache-2.0
"""The claims of SGA+ (Perugachi-Diaz et al. 2024), at their settings."""
