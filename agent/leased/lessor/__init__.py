# SPDX-License-Identifier: Apache-2.0
"""The lessor: everything that is decided about leases, as pure functions of commands, moments and a
table.

Rank 1, pure: imports `terms` only. Randomness and time are handed in. `lessor.Lessor` is the door.
"""
