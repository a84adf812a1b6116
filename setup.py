# SPDX-License-Identifier: Apache-2.0
"""Build of compressai-sga: metadata, the start-up entry point, the zoo's data in the wheel.

The repository's `zoo/` is no package. `BuildPy` copies what the installed package needs of it
(manifest, sample images, the weights that the manifest marks `"wheel": true`) to
`compressai_sga/_zoo/` in the build folder. An editable install reads `zoo/` itself.

`import torch` fails for everybody where the module of an entry point is missing. So an editable install gets
a copy of `compressai_sga_startup.py` beside the metadata that names it: it is there when the checkout is not.

C3's decoder and fit in C++ are an optional extension. Without a working compiler the build goes on without
it; the Python decoder gives the same latents and is about 25 times slower, the fit in PyTorch about 5 times.

Fails with FileNotFoundError when a weight that the manifest marks for the wheel does not exist.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

try:
    import pybind11
except ImportError:  # a build without isolation; pyproject.toml asks for it otherwise
    pybind11 = None

ROOT = Path(__file__).resolve().parent
PACKAGE = "compressai_sga"
STARTUP = "compressai_sga_startup"


class BuildPy(build_py):
    """build_py that adds the zoo's data, or the start-up hook where everything else stays in the checkout."""

    def _zoo_files(self) -> list[Path]:
        zoo = ROOT / "zoo"
        manifest = zoo / "manifest.json"
        content = json.loads(manifest.read_text(encoding="utf-8"))
        records = content["weights"] + content["denoisers"] + content.get("joint", [])
        weights = [zoo / record["file"] for record in records if record["wheel"]]
        weights += [zoo / content["c3_nets"]["file"]]
        for weight in weights:
            if not weight.is_file():
                raise FileNotFoundError(
                    f"{manifest} marks {weight.name} as part of the wheel, but {weight} does not "
                    "exist; publish it with zoo/train/publish.py or set its `wheel` to false"
                )
        samples = sorted(path for path in (zoo / "samples").iterdir() if path.is_file())
        return [manifest, *samples, *weights]

    def _targets(self) -> dict[str, Path]:
        target = Path(self.build_lib) / PACKAGE / "_zoo"
        return {str(target / p.relative_to(ROOT / "zoo")): p for p in self._zoo_files()}

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the files of an editable wheel are those of this folder
            wheel = self.get_finalized_command("install").install_lib
            self.copy_file(str(ROOT / f"{STARTUP}.py"), wheel, preserve_mode=False)
        else:
            # A build folder may still hold what an older manifest named.
            shutil.rmtree(Path(self.build_lib) / PACKAGE / "_zoo", ignore_errors=True)
            for target, source in self._targets().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(str(source), target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        data = [] if self.editable_mode else list(self._targets())
        return [*super().get_outputs(include_bytecode), *data]


def extensions() -> list[Extension]:
    """C3's decoder and fit; `optional` turns a failed compilation into a warning."""
    if pybind11 is None:
        return []
    folder = f"{PACKAGE}/models/c3"
    decoder, fit = ("decoder", "entropy", "synthesis"), ("entropy", "net", "step", "synthesis", "upsampling")
    sources = ["bindings", *decoder, "fit_bindings", *(f"fit_{name}" for name in fit)]
    sources += [f"fit_{name}" for name in ("portable", "avx2", "avx512")]
    msvc = sys.platform == "win32"
    return [
        Extension(
            f"{PACKAGE}.models.c3._native",
            sources=[f"{folder}/_{name}.cpp" for name in sources],
            depends=sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("_*.hpp")),
            include_dirs=[pybind11.get_include()],
            language="c++",
            extra_compile_args=["/std:c++17", "/O2", "/EHsc"]
            if msvc
            else ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread"],
            optional=True,
        )
    ]


def version() -> str:
    """The version that the package itself states."""
    text = (ROOT / PACKAGE / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def description() -> str:
    """README.md for readers without the repository: links become plain text, pictures become their titles."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    text = re.sub(r"!\[([^]\n]*)\]\((?!https?:)[^)\n]*\)", r"(Picture in the repository: \1)", text)
    return re.sub(r"\[([^]\n]*)\]\((?!https?:)[^)\n]*\)", r"\1", text)


DOCS = ["mkdocs-material", "mkdocstrings[python]"]

setup(
    name="compressai-sga",
    version=version(),
    description="Latent refinement and new models for stock CompressAI",
    long_description=description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={
        PACKAGE: ["py.typed"],
        f"{PACKAGE}.comparison": ["page.html", "viewer.js"],
        f"{PACKAGE}.metrics": ["photographs.json"],
    },
    py_modules=[STARTUP],
    install_requires=[
        "compressai>=1.2.8",
        "torch>=2.5",
        "constriction",
        "Pillow",
        "pytorch-msssim",
        "safetensors",
        "tqdm",
        "numpy",
        "scipy",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "matplotlib",
            "bjontegaard",
            "plotly",
            "filelock",
            "pillow-jxl-plugin",
            "ray",
            "lpips",
            "torchmetrics",
            "torch-fidelity",
            "diffusers",
            *DOCS,
        ],
        "docs": DOCS,
        "diffusion": ["diffusers"],
        "metrics": ["lpips", "torchmetrics[image]"],
        "eval": ["matplotlib", "bjontegaard", "plotly", "pillow-jxl-plugin", "filelock"],
        "ray": ["ray"],
    },
    # PyTorch calls the functions of this group at the end of `import torch`.
    entry_points={"torch.backends": [f"compressai_sga = {STARTUP}:install"]},
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy},
)
