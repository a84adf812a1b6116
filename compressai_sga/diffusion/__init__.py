# SPDX-License-Identifier: Apache-2.0
"""Diffusion: the parts that HFD and DiffC use. A noise level is given as the log-SNR, log(alpha^2 / sigma^2).

schedules          log-SNR over time: cosine, shifted cosine, linear, rectified flow; alpha and sigma
parametrisations   what a network predicts (x, eps, v, flow) and how one turns into the other
samplers           ancestral, DDIM, DPM-Solver++(2M), Heun, with their single steps
gaussian           denoisers and flows of Gaussian sources in closed form
gaussian_rates     rates and distortions of Gaussian sources in closed form
unet               a small network for weights that are shipped
exact              the same bits from the CPU with any number of threads
pretrained         models of `diffusers` as denoisers; needs the extra `diffusion`

Exponential moving averages of weights: torch.optim.swa_utils.AveragedModel.
"""

__all__ = [
    "exact",
    "gaussian",
    "gaussian_rates",
    "parametrisations",
    "pretrained",
    "samplers",
    "schedules",
    "unet",
]
