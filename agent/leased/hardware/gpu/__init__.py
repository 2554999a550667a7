# SPDX-License-Identifier: Apache-2.0
"""GPUs and MIG instances, over NVML and libcuda."""
