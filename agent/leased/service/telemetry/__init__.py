# SPDX-License-Identifier: Apache-2.0
"""Telemetry: sampling, what was seen of each lease, and the ways out."""
