# SPDX-License-Identifier: Apache-2.0
"""Device-dax ranges: CXL and persistent memory leased whole."""
