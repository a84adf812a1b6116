# SPDX-License-Identifier: Apache-2.0
"""The encoder of C3: latents and nets of one image, by gradient descent.

loop                                    the two stages
initialisation, grid_plane, stage2      first weights; latents as planes; temperature and noise of the second
adam, soap, memory                      optimisers, and what keeps them fast on a CPU
weight_quantisation                     weights rounded
checkpoint                              a fit that was killed goes on
"""
