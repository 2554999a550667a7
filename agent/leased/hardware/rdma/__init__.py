# SPDX-License-Identifier: Apache-2.0
"""Memory that remote peers reach by RDMA."""
