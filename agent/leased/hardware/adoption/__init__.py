# SPDX-License-Identifier: Apache-2.0
"""Bringing running work into a lease's cgroup."""
