# SPDX-License-Identifier: Apache-2.0
"""The fleet's side: pulls every node's sealed log, verifies it, keeps it, countersigns it.

Rank 4: imports terms, chain, economics, wire, ports and durable; never lessor, hardware or service,
which run on nodes.
"""
