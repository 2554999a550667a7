# SPDX-License-Identifier: Apache-2.0
"""A mock of libnvidia-ml and libcuda over real device nodes; README.md says how honest it is."""
