# SPDX-License-Identifier: Apache-2.0
"""Who uses memory: a lease's memfds, and the hugepages of a pool, with a lease or without."""
