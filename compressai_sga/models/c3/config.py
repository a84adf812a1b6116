# SPDX-License-Identifier: Apache-2.0
"""The configuration of a C3 codec and of its fit: architectures, fit settings, presets.

An `Architecture` is what a decoder must know, and it is in every bitstream: a known one by its index in
`KNOWN` (append only), any other one field by field. Only the encoder uses `FitSettings`. A `Preset` has both,
and a number of steps:
    c3-paper       C3 (Kim et al. 2024) for Kodak: 7 grids, gains 2^i, step 0.4, 24 causal taps, nets
                   24-18-18-2 and 7-18-18-3 with GELU, two residual 3x3 layers; 100 000 steps and at most
                   10 000 with rounded latents. Departures from the paper:
                     the entropy net is rounded to integers (otherwise other machines could not decode);
                     no clamp to [0, 1] in the loss, and the image's mean as first bias (otherwise bright
                     images have no gradient and collapse);
                     scales within [2^-5, 2^7.5] (for the tables; outside, the gradient of the identity);
                     weight steps are powers of two, for latents in units of their steps, and weights are
                     coded, not estimated; no cap of 16 bits on a latent.
    c3-paper-clic  the same with widths 24 and the next finer grid as further context.
    c3             ours: 14 nearest taps and 4 of the next coarser grid, nets 18-16-16-2 (ReLU, residual)
                   and 7-40-3 (GELU), both with a linear skip, learned upsampling, Gaussian noise, SOAP
                   (`soap`), 10 000 steps.
    c3-fast        the same in 2 000 steps.
`adaptive()` lists the 12 (CLIC: 6) candidates from which the paper's "C3 (Adaptive)" takes the best.

In:  names. Out: frozen dataclasses; `layout`, the nets' arrays in the order of the bitstream.
Fails with ``ValueError`` for fields that no bitstream can hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from .contexts import C3, C3_FINER, Context, nearest_taps, square_taps
from .integer import MAX_WIDTH, Activation

__all__ = [
    "CONTEXTS",
    "KNOWN",
    "PRESETS",
    "QUALITIES",
    "Architecture",
    "ArraySpec",
    "FitSettings",
    "Preset",
    "adaptive",
    "layout",
    "lmbda_of",
]

CONTEXTS: tuple[Context, ...] = (
    C3,
    Context(own=square_taps(2)),
    C3_FINER,
    Context(own=nearest_taps(14), other=((0, 0), (0, 1), (1, 0), (1, 1)), source="coarser"),
    Context(own=nearest_taps(8), other=((0, 0), (0, 1), (1, 0), (1, 1)), source="coarser"),
)
"""Those that a bitstream can name; append only."""

# The paper's sweep has 14 values, all of ours among them, so that published points can be put beside.
QUALITIES: dict[int, float] = {1: 2e-2, 2: 8e-3, 3: 4e-3, 4: 2e-3, 5: 1e-3, 6: 4e-4, 7: 2e-4, 8: 1e-4}


Upsampling = Literal["bilinear", "learned"]


@dataclass(frozen=True)
class Architecture:
    """What the decoder must know beside size and weights.

    Args:
        grids: number of latent grids, 1 to 16; grid i has ceil(H / 2^(first + i)) rows.
        first: exponent of the finest grid, 0 to 15.
        context: index into `CONTEXTS`.
        entropy_hidden: widths of the entropy net's hidden layers, 1 to 7 of them; it has two outputs.
        entropy_activation: of its hidden layers.
        entropy_residual: whether hidden layers whose input is as wide add it before the activation.
        entropy_skip: whether inputs enter the outputs linearly, too.
        upsampling: of the grids to the image's size: `bilinear` in one go as in the paper, or `learned`,
            by a factor of two again and again, each with four taps of its own; see `network.upsample`.
        synthesis_hidden: widths of the pointwise layers before the one with three outputs, at most 7.
        synthesis_activation: of these hidden layers.
        synthesis_skip: whether the upsampled latents also enter the last pointwise layer's sum, linearly.
        refinements: residual 3x3 layers after them, 0 to 15.
        refinement_activation: of all of these but the last.
    """

    grids: int = 7
    first: int = 0
    context: int = 0
    entropy_hidden: tuple[int, ...] = (18, 18)
    entropy_activation: Activation = "gelu"
    entropy_residual: bool = False
    entropy_skip: bool = False
    upsampling: Upsampling = "bilinear"
    synthesis_hidden: tuple[int, ...] = (18, 18)
    synthesis_activation: Activation = "gelu"
    synthesis_skip: bool = False
    refinements: int = 2
    refinement_activation: Activation = "gelu"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("grids", 1, 16),
            ("first", 0, 15),
            ("context", 0, len(CONTEXTS) - 1),
            ("refinements", 0, 15),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; choose {low} to {high}")
        for name, fewest in (("entropy_hidden", 1), ("synthesis_hidden", 0)):
            widths = getattr(self, name)
            if not fewest <= len(widths) <= 7 or not all(1 <= w <= MAX_WIDTH for w in widths):
                raise ValueError(f"{name} is {widths}; choose {fewest} to 7 widths from 1 to {MAX_WIDTH}")
        for name, kind in (
            ("entropy_activation", Activation),
            ("synthesis_activation", Activation),
            ("refinement_activation", Activation),
            ("upsampling", Upsampling),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(get_args(kind))}"
                )

    @property
    def taps(self) -> Context:
        """The context itself."""
        return CONTEXTS[self.context]

    @property
    def doublings(self) -> int:
        """How many times the coarsest grid is upsampled by two."""
        return self.first + self.grids - 1

    @property
    def residual(self) -> tuple[bool, ...]:
        """For each layer of the entropy net, whether its input is added."""
        widths = (self.taps.width, *self.entropy_hidden, 2)
        last = len(widths) - 2
        return tuple(
            self.entropy_residual and i < last and a == b for i, (a, b) in enumerate(zip(widths, widths[1:]))
        )


class ArraySpec(NamedTuple):
    """An array of a net."""

    name: str
    shape: tuple[int, ...]

    @property
    def part(self) -> str:
        """`entropy`, `upsampling`, `synthesis` or `refinement`."""
        return self.name.split(".")[0]

    @property
    def is_bias(self) -> bool:
        return self.name.endswith("bias")

    @property
    def fan_in(self) -> int:
        return math.prod(self.shape[1:])


def layout(architecture: Architecture) -> tuple[ArraySpec, ...]:
    """All arrays in the order of the bitstream; biases after their weights."""
    a, found = architecture, []
    widths = (a.taps.width, *a.entropy_hidden, 2)
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        found += [
            ArraySpec(f"entropy.{i}.weight", (outputs, inputs)),
            ArraySpec(f"entropy.{i}.bias", (outputs,)),
        ]
    if a.entropy_skip:
        found.append(ArraySpec("entropy.skip", (2, a.taps.width)))
    if a.upsampling == "learned" and a.doublings:
        found.append(ArraySpec("upsampling.weight", (a.doublings, 4)))
    widths = (a.grids, *a.synthesis_hidden, 3)
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        found += [
            ArraySpec(f"synthesis.{i}.weight", (outputs, inputs)),
            ArraySpec(f"synthesis.{i}.bias", (outputs,)),
        ]
    if a.synthesis_skip:
        found.append(ArraySpec("synthesis.skip", (3, a.grids)))
    for i in range(a.refinements):
        found += [
            ArraySpec(f"refinement.{i}.weight", (3, 3, 3, 3)),
            ArraySpec(f"refinement.{i}.bias", (3,)),
        ]
    return tuple(found)


@dataclass(frozen=True)
class FitSettings:
    """How latents and nets are optimised. Ranges are (at the start, at the end).

    Args:
        gains: latent (in quantisation steps) = parameter * gain, for each grid.
        entropy_scale: inputs of the entropy net's parameters are latents times this.
        output_scale: its outputs (location in steps, log2 of the scale) are the parameters' times this.
        synthesis_scale: inputs of the synthesis are latents times this.
        noise: Gaussian with std `noise_range`, or Kumaraswamy with a = `noise_range`.
        temperature: of soft rounding.
        after_noise: what follows the noise: soft rounding again, or its conditional mean.
        learning_rate: at the start; falls to 0 by half a cosine.
        betas: Adam's, of the latents.
        net_optimiser: of the nets.
        net_betas: its.
        clip_norm: of the gradient of one image's loss.
        clip_latents: whether the latents' gradient belongs to that norm.
        weight_bits: whether the loss has the nets' bits, too.
        last_scale: of the initial weights of the entropy net's last layer.
        log2_scale: the entropy net's second output at the start.
        finish: what follows with rounded latents: `nets` only, or latents too with the gradient of soft
            rounding at temperature 1e-4 (`ste`).
        finish_share: steps of it, relative to all steps.
        finish_rate: its first learning rate.
        finish_decay: None for half a cosine; else the factor after `finish_patience` steps without a
            better loss, until the rate falls below 1e-8.
        step_search: steps of the weights: one for `each` array, or one for weights and one for biases
            (`shared`).
    """

    gains: tuple[float, ...] = (16.0,) * 7
    entropy_scale: float = 1.0
    output_scale: tuple[float, float] = (1.0, 1.0)
    synthesis_scale: float = 0.4
    noise: Literal["gaussian", "kumaraswamy"] = "gaussian"
    noise_range: tuple[float, float] = (0.22, 0.15)
    temperature: tuple[float, float] = (0.35, 0.08)
    after_noise: Literal["soft_round", "conditional_mean"] = "soft_round"
    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    net_optimiser: Literal["adam", "soap"] = "soap"
    net_betas: tuple[float, float] = (0.95, 0.95)
    clip_norm: float = 0.1
    clip_latents: bool = False
    weight_bits: bool = True
    last_scale: float = 0.3
    log2_scale: float = -1.5
    finish: Literal["nets", "ste"] = "nets"
    finish_share: float = 0.05
    finish_rate: float = 1e-3
    finish_decay: float | None = None
    finish_patience: int = 20
    step_search: Literal["each", "shared"] = "each"


_PAPER_STEP = 0.4
_PAPER_FIT = FitSettings(
    gains=tuple(2.0**i / _PAPER_STEP for i in range(7)),
    entropy_scale=_PAPER_STEP,
    # The paper's second output is -log(scale^2) - 8, the scale in units of pixels, not of steps.
    output_scale=(1 / _PAPER_STEP, -0.5 / math.log(2)),
    synthesis_scale=_PAPER_STEP,
    noise="kumaraswamy",
    noise_range=(2.0, 1.0),
    temperature=(0.3, 0.1),
    after_noise="conditional_mean",
    betas=(0.9, 0.999),
    net_optimiser="adam",
    net_betas=(0.9, 0.999),
    clip_latents=True,
    weight_bits=False,
    last_scale=1.0,
    log2_scale=-4.0 / math.log(2) - math.log2(_PAPER_STEP),
    finish="ste",
    finish_share=1 / 11,
    finish_rate=1e-4,
    finish_decay=0.8,
    step_search="shared",
)


@dataclass(frozen=True)
class Preset:
    """An architecture, its fit settings and a number of steps."""

    name: str
    steps: int
    architecture: Architecture
    fit: FitSettings = field(default_factory=FitSettings)


_OURS = Architecture(
    context=3,
    entropy_hidden=(16, 16),
    entropy_activation="relu",
    entropy_residual=True,
    entropy_skip=True,
    upsampling="learned",
    synthesis_hidden=(40,),
    synthesis_skip=True,
    synthesis_activation="gelu",  # 4 % less loss than relu after 300 steps (three crops of training photos)
)
_CLIC = Architecture(context=2, synthesis_hidden=(24, 24), entropy_hidden=(24, 24))

KNOWN: tuple[Architecture, ...] = (Architecture(), _CLIC, _OURS)
"""Architectures that a bitstream names by a number; append only."""

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("c3", 10_000, _OURS),
        Preset("c3-fast", 2_000, _OURS),
        Preset("c3-paper", 110_000, Architecture(), _PAPER_FIT),
        Preset("c3-paper-clic", 110_000, _CLIC, _PAPER_FIT),
    )
}


def adaptive(preset: Preset) -> tuple[Preset, ...]:
    """The candidates of the paper's adaptive choice: contexts, exponents and widths of `preset`.

    With the next finer grid as context there is only the (3, 3) mask, so CLIC has half as many candidates.

    Raises:
        ValueError: a preset that is not the paper's.
    """
    papers = {0: (0, 1), 2: (2,)}
    if preset.architecture.context not in papers:
        raise ValueError(
            f"{preset.name} has no adaptive choice; c3-paper and c3-paper-clic have, as in the paper"
        )
    found = []
    for context in papers[preset.architecture.context]:
        for first in (0, 1):
            for width in (12, 18, 24):
                architecture = replace(
                    preset.architecture,
                    context=context,
                    first=first,
                    entropy_hidden=(width, width),
                    synthesis_hidden=(width, width),
                )
                gains = tuple(gain * 2.0**first for gain in preset.fit.gains)
                found.append(replace(preset, architecture=architecture, fit=replace(preset.fit, gains=gains)))
    return tuple(found)


def lmbda_of(quality: int) -> float:
    """The trade-off of a quality, for mse on images in [0, 1] and bits a pixel.

    Raises:
        ValueError: no such quality.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality is {quality!r}; choose 1 to {len(QUALITIES)}, or give lmbda itself")
    return QUALITIES[quality]
