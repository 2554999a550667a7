# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for libraries that need hardware: real interfaces over a machine that is not there."""
