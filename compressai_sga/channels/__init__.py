# SPDX-License-Identifier: Apache-2.0
"""Channel simulation: sending a sample of a law instead of a number.

`prng` is the randomness that encoder and decoder share.
"""
