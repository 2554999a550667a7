# SPDX-License-Identifier: Apache-2.0
"""What a worker reads for telemetry: the kernel's counters, and what drives and ports count."""
