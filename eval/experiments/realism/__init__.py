# SPDX-License-Identifier: Apache-2.0
"""Realism: the critic, rate-distortion-perception, stochastic encoders, autoencoders."""
