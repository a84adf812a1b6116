# SPDX-License-Identifier: Apache-2.0
"""One weight file for all rates: what it holds, and how it becomes the stock model of one rate.

    tensors = stored(net, {1: gain_of(0.0018), 2: gain_of(0.0035)})     # of the published qualities
    net = folded(tensors, MeanScaleHyperprior, gain_of(0.01))           # of these two, or of any other lmbda

The tensors are the stock state dict at gain 1 and the `rates` of its convolutions (`models.gains`), both in
fp16. Entropy bottlenecks are exactly as trained; Gaussian tables are left out, as `update()` makes them.
`folded` widens the tensors and folds by products and sums, which IEEE arithmetic rounds alike on every
machine. The coding tables must be alike too:

- The gain does not affect the bottleneck of z. Its integer tables are stored under their stock names.
- A factorised prior that codes y itself has different tables for each gain, and computing them needs
  functions whose last bit may depend on the machine. So the tables of every published quality Q are stored
  as `tables.Q.NAME`, where NAME is `_quantized_cdf`, `_offset` or `_cdf_length`, and the stock ones are left
  out. For any other gain they are computed; `makes_same_tables` tells whether this machine is likely to
  compute what others do.

In:  a joint model and gains by quality; or the tensors, a class and a gain.
Out: what safetensors stores; a model in eval mode, float32, its coding tables ready.
Fails with ``ValueError`` when a weight does not fit fp16, or a quality has no tables in the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from torch import Tensor, nn

from .models.gains import fold, load_joint, places

__all__ = ["folded", "makes_same_tables", "stored"]

_TABLES = ("_quantized_cdf", "_offset", "_cdf_length")
_OF_QUALITIES = "tables."


def stored(net: nn.Module, gains: Mapping[int, float]) -> dict[str, Tensor]:
    """What the file of a joint model holds.

    Args:
        net: jointly trained, at gain 1; see `models.gains.places`. It is left as it is.
        gains: of the published qualities.

    Raises:
        ValueError: a weight does not fit fp16.
    """
    net = copy.deepcopy(net)
    net.update(force=True)
    prior = places(net).prior
    exact, empty = set(), set()
    for prefix, module in net.named_modules():
        if isinstance(module, EntropyBottleneck):
            exact |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        left_out = (*_TABLES, "scale_table") if isinstance(module, GaussianConditional) else ()
        empty |= {f"{prefix}.{name}" for name in (_TABLES if module is prior else left_out)}
    narrow = {name for name, _ in net.named_parameters()} - exact
    tensors = {}
    for name, tensor in net.state_dict().items():
        if name in empty:
            tensor = tensor.new_empty(0)
        elif name in narrow:
            tensor, full = tensor.half(), tensor
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} does not fit fp16: its maximum is {full.abs().max()}; train again")
        elif name.endswith(".mask"):  # of a masked convolution: zeros and ones
            tensor = tensor.bool()
        tensors[name] = tensor.contiguous()
    for quality, gain in gains.items():
        for name, table in _tables_at(net, gain):
            tensors[f"{_OF_QUALITIES}{quality}.{name}"] = table.contiguous()
    return tensors


def folded(
    tensors: Mapping[str, Tensor], architecture: type[nn.Module], gain: float, quality: int | None = None
) -> nn.Module:
    """The model of one rate.

    Args:
        tensors: as `stored` made them.
        architecture: the class of the joint model.
        gain: of the rate, see `models.gains.gain_of`.
        quality: the published one that has this gain; None where there is none.

    Raises:
        ValueError: the file lacks the tables of this quality.
    """
    net = fold(load_joint(architecture, _state(tensors)), gain)
    prior = places(net).prior
    if prior is not None and quality is not None:
        for name in _TABLES:
            if (key := f"{_OF_QUALITIES}{quality}.{name}") not in tensors:
                raise ValueError(f"the file has no {key}; publish the model again with zoo/train/publish.py")
            setattr(prior, name, tensors[key])
    net.update()  # makes what is missing
    return net.eval()


def makes_same_tables(
    tensors: Mapping[str, Tensor], architecture: type[nn.Module], gain: float, quality: int
) -> bool:
    """Whether this machine computes the tables of a published quality as its publisher's did.

    Args:
        tensors, architecture, gain, quality: as for `folded`.
    """
    if not any(name.startswith(_OF_QUALITIES) for name in tensors):
        return True  # no factorised prior of y
    made = dict(_tables_at(load_joint(architecture, _state(tensors)), gain))
    return all(torch.equal(made[name], tensors[f"{_OF_QUALITIES}{quality}.{name}"]) for name in made)


def _state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The joint state dict among the tensors."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_OF_QUALITIES)}


def _tables_at(net: nn.Module, gain: float) -> Iterator[tuple[str, Tensor]]:
    """Names and tables of the factorised prior of y at a gain; nothing where there is no such prior."""
    if places(net).prior is None:
        return
    prior = places(fold(copy.deepcopy(net), gain)).prior
    prior.update(force=True)
    for name in _TABLES:
        yield name, getattr(prior, name)
