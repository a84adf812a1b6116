# SPDX-License-Identifier: Apache-2.0
"""`python -m compressai_sga compare`, by its former name."""

import sys

from compressai_sga.comparison.plan import main

if __name__ == "__main__":
    sys.exit(main())
