# SPDX-License-Identifier: Apache-2.0
"""The stock command line knows the plugin without an import, and nobody else pays for it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import compressai_sga
import compressai_sga_startup as startup

ROOT = Path(startup.__file__).resolve().parent
TIMES = ("encoding_time", "decoding_time")
EVAL_MODEL = ("-m", "compressai.utils.eval_model")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A package with a __main__ that the finder waits for; lists what was patched."""
    package = tmp_path / "site" / "fakepackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys\nran = []\ndef main(argv):\n    ran.append(argv)\n"
        "    return __name__\nif __name__ == '__main__':\n    raise RuntimeError('unpatched')\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(startup, "MODULES", ("fakepackage.__main__",))
    patched = []
    monkeypatch.setattr(startup, "_patch", patched.append)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not startup._is_ours(f)])
    yield patched
    for name in ("fakepackage", "fakepackage.__main__"):
        sys.modules.pop(name, None)


def test_both_ways_to_run_a_module_are_patched(fake, monkeypatch):
    startup.install()
    startup.install()
    assert sum(map(startup._is_ours, sys.meta_path)) == 1
    monkeypatch.setattr(sys, "argv", ["fakepackage", "-a", "b"])
    names = runpy.run_module("fakepackage", run_name="__main__")
    real = sys.modules["fakepackage.__main__"]
    assert fake == [real] and real.ran == [["-a", "b"]]
    assert names["main"] is real.main and real.main([]) == "fakepackage.__main__"
    assert type(real.__spec__.loader).__module__ != startup.__name__
    assert "raise RuntimeError" in real.__loader__.get_source("fakepackage.__main__")


def test_the_switch_turns_it_off(fake, monkeypatch):
    for value, disabled in (("1", True), ("yes", True), ("0", False), ("", False)):
        monkeypatch.setenv("COMPRESSAI_SGA_DISABLE", value)
        assert startup.is_disabled() is disabled
        startup.install()
        assert any(map(startup._is_ours, sys.meta_path)) is not disabled
        startup.uninstall()
    monkeypatch.setenv("COMPRESSAI_SGA_DISABLE", "1")
    startup.install()
    with pytest.raises(RuntimeError, match="unpatched"):
        runpy.run_module("fakepackage", run_name="__main__")
    assert fake == []


def test_finders_of_others_that_delegate_do_not_loop(fake):
    class Other:
        busy = False

        def find_spec(self, name, path=None, target=None):
            if Other.busy:
                return None
            Other.busy = True
            try:
                for finder in sys.meta_path:
                    if finder is not self and hasattr(finder, "find_spec"):
                        if spec := finder.find_spec(name, path, target):
                            return spec
            finally:
                Other.busy = False
            return None

    startup.install()
    sys.meta_path.insert(0, Other())
    __import__("fakepackage.__main__")
    assert fake == [sys.modules["fakepackage.__main__"]]


def test_only_the_stub_is_imported_without_compressai(python):
    code = (
        "import sys, json\n"
        "empty = [m for m in sys.modules if m.startswith('compressai')]\n"
        "import torch, torchvision\n"
        "with_torch = [m for m in sys.modules if m.startswith('compressai')]\n"
        "print(json.dumps([empty, with_torch]))\n"
    )
    done = python("-W", "ignore", "-c", code, fresh=True)
    assert json.loads(done.stdout) == [[], ["compressai_sga_startup"]]


REGISTERED = (
    "{first}\n"
    "from compressai.zoo import image_models, models\n"
    "from compressai.zoo.image import model_architectures\n"
    "from compressai.registry import MODELS\n"
    "names = ('mbt2018-mean-small', 'elic2022-official')\n"
    "print([name in d for d in (image_models, models, model_architectures, MODELS) for name in names])\n"
    "if names[0] in image_models:\n"
    "    print(type(image_models[names[0]](quality=3, pretrained=True)).__name__)\n"
    "    import importlib, compressai\n"
    "    compressai_zoo = importlib.reload(compressai.zoo)\n"
    "    print([name in d for d in (compressai_zoo.image_models, compressai_zoo.models) for name in names])\n"
)


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import compressai_sga",
        pytest.param("import compressai_sga.refine", marks=pytest.mark.slow),
        pytest.param(
            "import torch, compressai_sga_startup as s; s.uninstall(); import compressai, compressai_sga",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scripts_find_the_zoo_in_compressais_dictionaries(python, first):
    """Whatever is imported first: the circle of compressai and compressai_sga closes elsewhere."""
    done = python("-W", "ignore::FutureWarning", "-c", REGISTERED.format(first=first))
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.splitlines() == [str([True] * 8), "MeanScaleHyperprior", str([True] * 4)]


def test_a_package_that_is_being_imported_is_left_to_finish(monkeypatch):
    monkeypatch.setattr(compressai_sga.__spec__, "_initializing", True, raising=False)
    monkeypatch.setattr(compressai_sga.hooks, "patch", lambda module: pytest.fail("asked too early"))
    startup._patch(sys)


def test_scripts_under_the_switch_find_stock(python):
    done = python("-c", REGISTERED.format(first=""), COMPRESSAI_SGA_DISABLE="1")
    # Stock knows elic2022-official too, but in the registry only.
    assert done.stdout.splitlines() == [str([False] * 7 + [True])]


def test_workers_that_are_spawned_see_the_plugin(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "def work(_):\n"
        "    import importlib\n"
        "    module = importlib.import_module('compressai.utils.eval_model.__main__')\n"
        "    return ('--refine-steps' in module.setup_args().format_help(),\n"
        "            'elic2022-official' in module.pretrained_models)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [0]))\n"
    )
    assert python("-W", "ignore", script).stdout == "[(True, True)]\n"


def test_isolated_mode_of_an_environment_that_has_the_plugin(environment, plugin_path, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    here = [path for path in sys.path if path.endswith("site-packages")]
    site = next((tmp_path / "venv").rglob("site-packages"))
    (site / "paths.pth").write_text("\n".join([*plugin_path.split(os.pathsep), *here]))
    command = [tmp_path / "venv/bin/python", "-I", *EVAL_MODEL, "checkpoint", "--help"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "--refine-steps N" in run.stdout
    assert "elic2022-chandelier" in run.stdout


def test_without_our_options_the_result_is_stocks(python, images, checkpoint, tmp_path):
    source = ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, "--per-image"]
    runs = {}
    for label, disable in (("stock", "1"), ("plugin", "0")):
        folder = tmp_path / label
        done = python(*EVAL_MODEL, *source, "-d", folder, COMPRESSAI_SGA_DISABLE=disable)
        assert done.returncode == 0, done.stderr
        texts = {path.name: path.read_text() for path in folder.iterdir()}
        texts["stdout"] = done.stdout
        runs[label] = {name: _without_times(text) for name, text in texts.items()}
    assert len(runs["stock"]) == 5
    assert runs["plugin"] == runs["stock"]
    assert not (tmp_path / "cache").exists()


def _without_times(text: str) -> str:
    lines, drop = [], 0
    for line in text.splitlines():
        if any(f'"{name}"' in line for name in TIMES):
            drop = 1 if "[" in line else 0  # the number stands on the next line, or on this one
            lines.append(line.split(":")[0])
        elif drop:
            drop = 0
        else:
            lines.append(line)
    return "\n".join(lines)


def test_a_broken_plugin_warns_and_leaves_stock_working(python, plugin_path, tmp_path):
    package = tmp_path / "broken" / "compressai_sga"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise OSError('half an installation')\n")
    path = os.pathsep.join([str(package.parent), plugin_path])
    # A user who turns warnings into errors must not lose stock either.
    done = python("-W", "error::UserWarning", "-c", "import compressai.zoo", PYTHONPATH=path)
    assert done.stderr.count("half an installation") == 1
    done = python("-W", "error::UserWarning", *EVAL_MODEL, "--help", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("half an installation") == 1
    assert "{pretrained,checkpoint}" in done.stdout and "--refine" not in done.stdout


LOAD = """
from importlib.metadata import entry_points
for entry_point in entry_points(group="torch.backends"):
    entry_point.load()()
import compressai.zoo
print("stock")
"""


def test_an_editable_install_whose_checkout_has_moved_fails_nobody(python, tmp_path):
    """What `import torch` does, in an environment that holds the editable install and nothing else."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for name in ("setup.py", "compressai_sga_startup.py", "compressai_sga/version.py"):
        (checkout / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "compressai_sga" / "__init__.py").write_text("")
    built = python("setup.py", "-q", "editable_wheel", cwd=checkout, fresh=True, CC="false", CXX="false")
    (wheel,) = (checkout / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    assert built.returncode == 0 and not (site / "compressai_sga").exists()
    (site / "compressai").mkdir()
    for name in ("__init__", "zoo"):
        (site / "compressai" / f"{name}.py").write_text("")
    checkout.rename(tmp_path / "moved")
    done = python("-S", "-c", LOAD, PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (0, "stock\n"), done.stderr
    assert "No module named 'compressai_sga'" in done.stderr and "or uninstall it" in done.stderr
