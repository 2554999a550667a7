# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the world, shared by every tier of tests."""
