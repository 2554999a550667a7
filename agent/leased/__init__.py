# SPDX-License-Identifier: Apache-2.0
"""`leased`: TTL leases on a host's premium hardware.

The rooms and the law between them are described in `agent/ARCHITECTURE.md`. Nothing runs at import.
"""

__version__ = "0.1.0"
