# SPDX-License-Identifier: Apache-2.0
"""Which policy is in force: kept, handed in, fetched, and changed by the time of day."""
