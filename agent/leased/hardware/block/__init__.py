# SPDX-License-Identifier: Apache-2.0
"""NVMe namespaces, leased as dm-crypt mappings or raw."""
