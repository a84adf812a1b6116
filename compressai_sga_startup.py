# SPDX-License-Identifier: Apache-2.0
"""Start-up hook: the stock CompressAI command line knows this package without an import.

`import torch` ends by calling every entry point of the group "torch.backends" (PyTorch >= 2.5,
RFC pytorch/pytorch#122468). setup.py registers `install` there. `install` puts one finder in front of
`sys.meta_path`. The finder waits for the modules in `MODULES`. When one of them has been executed, the
finder hands it to `compressai_sga.hooks.patch`. Before that, only this file of the package is imported,
and this file imports only `os` and `sys`.

`compressai.zoo` is one of these modules; it is the last part of CompressAI that `import compressai` loads.
At that moment `compressai_sga` is imported and registers its models, so that every script finds them in
CompressAI's dictionaries.

`python -m package` does not execute a module through its loader: runpy asks the loader for the
code. The code that runpy gets from here imports the real module by its true name (so that it is patched
and its functions can be pickled), copies its names, and calls its `main`.

In:  the environment; COMPRESSAI_SGA_DISABLE=1 (any value other than "" and "0") turns all of this off.
Out: a changed `sys.meta_path`. `install` never raises and is idempotent. When this package cannot
be imported or refuses the installed CompressAI, a warning is shown and CompressAI stays stock.
"""

from __future__ import annotations

import os
import sys

__all__ = ["MODULES", "install", "is_disabled", "uninstall"]

MODULES = (
    "compressai.zoo",
    "compressai.utils.eval_model.__main__",
    "compressai.utils.video.eval_model.__main__",
)

_RUN_AS_MAIN = """\
import importlib
import sys

_module = importlib.import_module({name!r})
globals().update((k, v) for k, v in vars(_module).items() if k not in {kept!r})
if __name__ == "__main__":
    _module.main(sys.argv[1:])
"""
_KEPT = ("__name__", "__spec__", "__loader__", "__package__", "__file__", "__cached__")
_KEPT += ("__builtins__", "_module")


def is_disabled() -> bool:
    """Whether COMPRESSAI_SGA_DISABLE asks for stock CompressAI."""
    return os.environ.get("COMPRESSAI_SGA_DISABLE", "") not in ("", "0")


def install(force: bool = False) -> None:
    """Put the finder in front of `sys.meta_path`, once.

    Args:
        force: also under COMPRESSAI_SGA_DISABLE=1, because `hooks.enable` was called explicitly.
    """
    if (force or not is_disabled()) and not any(map(_is_ours, sys.meta_path)):
        sys.meta_path.insert(0, _Finder())


def uninstall() -> None:
    """Take the finder out of `sys.meta_path` again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]


def _is_ours(finder: object) -> bool:
    # By name, so that a reloaded copy of this file recognises the finder of the first one.
    kind = type(finder)
    return (kind.__module__, kind.__qualname__) == (__name__, "_Finder")


def _patch(module: object) -> None:
    package = sys.modules.get("compressai_sga")
    if getattr(getattr(package, "__spec__", None), "_initializing", False):
        return  # this thread or another imports it, and it patches what is loaded at its end
    try:
        from compressai_sga import hooks

        hooks.patch(module)
    except Exception as error:
        uninstall()  # a second module would fail likewise, with a second warning
        message = (
            f"compressai-sga could not extend {getattr(module, '__name__', module)} "
            f"({type(error).__name__}: {error}); CompressAI stays stock. Set "
            "COMPRESSAI_SGA_DISABLE=1 to silence this, or install compressai-sga again, or uninstall it"
        )
        try:
            import warnings

            warnings.warn(message, stacklevel=2)
        except Warning:  # python -W error
            print(f"warning: {message}", file=sys.stderr)


class _Finder:
    """Finds the modules of `MODULES` through the other finders and wraps their loader."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in MODULES or name in self._busy:
            return None
        self._busy.add(name)
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec = None if finder is self or find is None else find(name, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader)
                    return spec
            return None
        finally:
            self._busy.discard(name)


class _Loader:
    """The real loader, with a step after `exec_module` and another `get_code` for runpy."""

    def __init__(self, loader: object) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: object) -> object:
        return self._loader.create_module(spec)

    def exec_module(self, module: object) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _patch(module)

    def get_code(self, name: str) -> object:
        source = _RUN_AS_MAIN.format(name=name, kept=_KEPT)
        return compile(source, f"<compressai_sga_startup runs {name}>", "exec")
