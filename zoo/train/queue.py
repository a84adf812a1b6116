# SPDX-License-Identifier: Apache-2.0
"""Train one model after the other, each for its CPU hours; the code and its description: `training_queue.py`.

python zoo/train/queue.py zoo/train/queue.toml --data PHOTOS
"""

import sys

if __name__ == "queue":
    # Scripts beside this file have its folder first on sys.path, so `import queue` in torch, multiprocessing
    # or concurrent.futures finds this file. It hands over the next `queue` on the path, the standard
    # library's: an import returns what stands in sys.modules after the module has run, so nobody sees this.
    import os
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    _here = os.path.dirname(os.path.realpath(__file__))
    _spec = PathFinder.find_spec("queue", [p for p in sys.path if os.path.realpath(p) != _here])
    sys.modules["queue"] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["queue"])
elif __name__ == "__main__":
    from training_queue import main

    sys.exit(main())
