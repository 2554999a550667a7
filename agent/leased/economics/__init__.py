# SPDX-License-Identifier: Apache-2.0
"""What leases cost: usage, peaks, rates and statements, computed from sealed records alone.

Rule: integers only, no clock, no state that the records could not rebuild. Imports `terms` and
nothing else of ours.
"""
