# SPDX-License-Identifier: Apache-2.0
"""`python -m compressai_sga compare`, by its former name."""

import sys

from compressai_sga.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
