# SPDX-License-Identifier: Apache-2.0
"""The encoder of C3: latents and nets of one image, by gradient descent.

loop                                    the two stages
initialisation, grid_plane, stage2      first weights; latents as planes; best results and rates of stage 2
fused                                   loss and gradients in C++, on a CPU
adam, soap, memory                      optimisers; memory settings that keep them fast on a CPU
weight_quantisation                     rounds the weights
checkpoint                              lets a killed fit go on
"""
