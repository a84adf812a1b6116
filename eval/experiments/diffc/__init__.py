# SPDX-License-Identifier: Apache-2.0
"""DiffC: compared with its theory and with other codecs; the cost of its channels."""
