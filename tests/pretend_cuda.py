# SPDX-License-Identifier: Apache-2.0
"""A pretend CUDA device that computes on the CPU: finds errors of devices and counts waits without a GPU.

    with PretendCuda() as gpu:
        refine(model.cuda(), x.cuda())      # tensors report cuda:0; autograd and autocast as on CUDA
        gpu.count("waits"), gpu.count("kernels")

Its tensors are a subclass that reports device cuda:0, has CUDA's dispatch keys (so CUDA's autocast lists)
and keeps its values in a CPU tensor. Each operator is checked as CUDA would check it: tensors of two devices
raise, except 0-dim CPU numbers in pointwise operators and CPU indices; generators must be of the device;
`.numpy()` raises.

Counted, by the line of the project that caused them: kernel launches, waits for the device (`item`, `bool`,
nonzero, boolean masks, copies from and to pageable memory), and operators that CUDA does not compute in a
fixed order. Where torch's settings allow TF32, convolutions and matrix products of float32 get inputs with
10 bits of mantissa, as on an A100 or H100.

Not covered: the order of CUDA's sums, the numbers of bf16 autocast, several devices, memory. It uses private
functions of torch; `REASON` says why not where they are missing.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")

_PRIVATE = ("_only_lift_cpu_tensors", "_set_only_lift_cpu_tensors", "_get_fp32_precision_getter")
_missing = [name for name in _PRIVATE if not hasattr(torch._C, name)]
REASON = f"the pretend device needs torch._C.{_missing[0]}" if _missing else ""


class DeviceError(RuntimeError):
    """What CUDA would have refused."""


class Pretend(torch.Tensor):
    """A tensor of the device; `value` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> Pretend:
        shell = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shell, False, device_for_backend_keys=CUDA)
        made.value = value
        return made

    def __init__(self, value: torch.Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if PretendCuda.active is None:
            raise DeviceError(f"{func} on a tensor of the pretend device, outside of PretendCuda")
        return PretendCuda.active.__torch_dispatch__(func, types, args, kwargs)

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"Pretend({self.value})"

    def get_device(self) -> int:
        return 0

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __reduce_ex__(self, protocol):
        return Pretend, (self.value,)

    def __deepcopy__(self, memo):
        with torch.no_grad():
            new = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            new = torch.nn.Parameter(new, self.requires_grad)
        new.requires_grad_(self.requires_grad)
        memo[id(self)] = new
        return new


if not REASON:
    torch.serialization.add_safe_globals([Pretend])


class _Generator(torch.Generator):
    """A generator that knows its device."""

    of_device: set[int] = set()

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        if torch.device(device).type == "cuda":
            cls.of_device.add(made._cdata)
        else:
            cls.of_device.discard(made._cdata)  # of one that is gone
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return CUDA if self._cdata in _Generator.of_device else CPU


def _to(original):
    """Tensor.to for which "cuda" is cuda:0, and which does nothing where the tensor is there already."""

    def to(self, *args, **kwargs):
        args = list(args)
        for i, value in enumerate(args):
            if isinstance(value, torch.Tensor):  # to(other)
                args[i : i + 1] = [value.device, value.dtype]
                break
        args = [_placed(value) for value in args]
        if "device" in kwargs:
            kwargs["device"] = _placed(kwargs["device"])
        if isinstance(self, Pretend):
            there = [a for a in (*args, kwargs.get("device")) if isinstance(a, torch.device)]
            if all(place.type == "cuda" for place in there):
                args = [a for a in args if isinstance(a, torch.dtype)]
                kwargs.pop("device", None)
                if not args and not kwargs:
                    return self
        return original(self, *args, **kwargs)

    return to


def _pinned(tensor):
    copied = tensor.clone()
    copied.is_pinned_here = True
    return copied


def _placed(value):
    if isinstance(value, str | torch.device):
        place = torch.device(value)
        return CUDA if place.type == "cuda" else place
    return value


def _leaves(value) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [leaf for part in value for leaf in _leaves(part)]


def _mapped(function, value):
    """The same with function(tensor) instead of each tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, part) for key, part in value.items()}
    if isinstance(value, list | tuple) and value:
        parts = [_mapped(function, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _tf32(value):
    """Rounded to 10 bits of mantissa, half away from zero, as the tensor cores read float32."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    bits = value.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).reshape(value.shape)


_NO_KERNEL = set(
    "view _unsafe_view reshape select slice t transpose permute expand squeeze unsqueeze detach alias split "
    "split_with_sizes unbind as_strided lift_fresh chunk narrow diagonal empty empty_strided empty_like "
    "new_empty new_empty_strided unfold view_as_real _conj is_same_size sym_size sym_stride _reshape_alias "
    "lift".split()
)
_NO_FIXED_ORDER = set(
    "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward "
    "reflection_pad1d_backward reflection_pad2d_backward upsample_bilinear2d_backward "
    "upsample_linear1d_backward upsample_bicubic2d_backward scatter_add scatter_add_ index_add index_add_ "
    "grid_sampler_2d_backward kthvalue median histc bincount embedding_dense_backward "
    "adaptive_avg_pool2d_backward".split()
)  # of torch.use_deterministic_algorithms
_WAITS = set(
    "_local_scalar_dense is_nonzero nonzero masked_select equal _unique2 unique_dim unique_consecutive "
    "linalg_qr linalg_eigh _linalg_eigh linalg_cholesky_ex _linalg_svd multinomial".split()
)
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_CONVOLUTIONS = {
    "convolution": (0, 1),
    "convolution_backward": (0, 1, 2),
}  # the arguments that are multiplied
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
_COPIES = {"_to_copy", "copy_", "copy", "_copy_from", "_pin_memory", "set_", "lift_fresh", "lift"}


class PretendCuda(TorchDispatchMode):
    """The device, while the block runs.

    Args:
        roots: parts of paths; an event is counted for the innermost line of a file with one of them.
    """

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # with it torch looks for no driver
    active: PretendCuda | None = None

    def __init__(self, roots: tuple[str, ...] = ("compressai_sga", "zoo/train", "compressai")) -> None:
        super().__init__()
        self.roots = roots
        self.by_line: dict[str, Counter[str]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.by_line = {kind: Counter() for kind in ("kernels", "waits", "no fixed order", "tf32")}

    def count(self, kind: str) -> int:
        """Events of a kind: "kernels", "waits", "no fixed order", "tf32"."""
        return sum(self.by_line[kind].values())

    def report(self, kind: str = "waits", most: int = 12) -> str:
        """The lines with the most events of a kind."""
        return "\n".join(f"{n:6} {line}" for line, n in self.by_line[kind].most_common(most))

    # --- torch, patched --------------------------------------------------------------------------------

    def __enter__(self):
        self._undo = contextlib.ExitStack()
        for owner, name, value in self._patches():
            self._undo.enter_context(_attribute(owner, name, value))
        for now, change in (
            (torch._C._only_lift_cpu_tensors(), torch._C._set_only_lift_cpu_tensors),
            (
                torch.__future__.get_swap_module_params_on_conversion(),
                torch.__future__.set_swap_module_params_on_conversion,
            ),
        ):
            change(True)
            self._undo.callback(change, now)
        return super().__enter__()

    def __exit__(self, *error):
        out = super().__exit__(*error)
        self._undo.close()
        return out

    def _patches(self):
        yield PretendCuda, "active", self
        yield torch.Tensor, "to", _to(torch.Tensor.to)
        yield torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor.to(CUDA)
        yield torch.Tensor, "pin_memory", _pinned
        yield torch, "Generator", _Generator
        yield torch, "load", self._loaded(torch.load)
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "synchronize": self._synchronise,
            "is_bf16_supported": lambda including_emulation=True: True,
            "get_device_name": lambda *_: "pretend",
            "get_device_capability": lambda *_: (9, 0),
            "memory_allocated": lambda *_: 0,
            "max_memory_allocated": lambda *_: 0,
            "reset_peak_memory_stats": lambda *_: None,
            "empty_cache": lambda: None,
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "_lazy_init": lambda: None,
        }.items():
            yield torch.cuda, name, value
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):
                yield torch.optim.Optimizer, name, lambda optimizer: None

    def _synchronise(self, *_):
        self._add("waits")

    @staticmethod
    def _loaded(load):
        def loaded(*args, map_location=None, **kwargs):
            if map_location is None or callable(map_location):
                return load(*args, map_location=map_location, **kwargs)
            found = load(*args, map_location="cpu", **kwargs)
            place = torch.device(map_location)
            return _mapped(lambda t: t.to(place), found)

        return loaded

    # --- operators -------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        leaves = _leaves((args, kwargs))
        ours = [t for t in leaves if isinstance(t, Pretend)]
        on_device = bool(ours)
        if kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]).type in ("cuda", "meta")
            kwargs["device"] = CPU
        if name not in _COPIES:
            self._check(func, name, args, kwargs, ours, leaves, on_device)
        self._count(name, args, kwargs, ours, leaves, on_device)
        kwargs.pop("pin_memory", None)
        values = _mapped(lambda t: t.value if isinstance(t, Pretend) else t, (args, kwargs))
        with _disable_current_modes():
            if ours and (rounded := self._multiplied_in_tf32(name, leaves)):
                self._add("tf32")
                values = [_tf32(v) if i in rounded else v for i, v in enumerate(values[0])], values[1]
            out = func(*values[0], **values[1])
        in_place = name == "copy_" or (name.endswith("_") and not name.startswith("_"))
        if in_place and args and isinstance(args[0], torch.Tensor):
            on_device = isinstance(args[0], Pretend)
        if name == "_local_scalar_dense" or not on_device:
            return out
        same = {id(t.value): t for t in ours}
        return _mapped(lambda t: same[id(t)] if id(t) in same else Pretend(t), out)

    @staticmethod
    def _multiplied_in_tf32(name, leaves):
        """Positions of the arguments that torch's settings let the device round."""
        if not any(t.dtype == torch.float32 for t in leaves):
            return ()
        if torch.backends.cudnn.conv.fp32_precision == "tf32" and name in _CONVOLUTIONS:
            return _CONVOLUTIONS[name]
        return _PRODUCTS.get(name, ()) if torch.backends.cuda.matmul.fp32_precision == "tf32" else ()

    def _check(self, func, name, args, kwargs, ours, leaves, on_device):
        generator = kwargs.get("generator")
        if generator is not None and (generator._cdata in _Generator.of_device) != on_device:
            self._fail(f"{func}: a generator of another device than the tensor")
        host = [t for t in leaves if not isinstance(t, Pretend)]
        if not ours or not host:
            return
        bad = [t for t in host if t.dim() > 0 or torch.Tag.pointwise not in func.tags]
        if name in _INDEXING and isinstance(args[0], Pretend):
            bad = [t for t in bad if any(t is value for value in args[2:3]) and t.dim() > 0]
            if not bad:
                self._add("waits")
        if bad:
            self._fail(f"{func}: tensors of cuda and cpu, the latter {[tuple(t.shape) for t in host]}")

    def _fail(self, text):
        raise DeviceError(f"{text}, at {self._line()}")

    def _count(self, name, args, kwargs, ours, leaves, on_device):
        if name in ("_to_copy", "copy_") and leaves:
            source = leaves[-1] if name == "copy_" else leaves[0]
            target = isinstance(leaves[0], Pretend) if name == "copy_" else on_device
            waits = not (target and hasattr(source, "is_pinned_here") and kwargs.get("non_blocking"))
            if isinstance(source, Pretend) != target and waits:
                self._add("waits")
        if not ours and not on_device:
            return
        if name not in _NO_KERNEL:
            self._add("kernels")
        masks = args[1] if name in _INDEXING else ()
        if name in _WAITS or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in masks):
            self._add("waits")
        if (
            name in _NO_FIXED_ORDER
            or (name == "convolution_backward" and not torch.backends.cudnn.deterministic)
            or (name == "cumsum" and leaves[0].dtype.is_floating_point)
            or (name.startswith("index_put") and len(args) > 3 and args[3])
        ):
            self._add("no fixed order", f" [{name}]")

    def _add(self, kind, what=""):
        self.by_line[kind][self._line() + what] += 1

    def _line(self):
        frame = sys._getframe(1)
        while frame is not None:
            path = frame.f_code.co_filename
            if path != __file__ and any(root in path for root in self.roots):
                return f"{path[-60:]}:{frame.f_lineno}"
            frame = frame.f_back
        return "?"


@contextlib.contextmanager
def _attribute(owner, name: str, value) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
