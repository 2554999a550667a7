# SPDX-License-Identifier: Apache-2.0
"""From raw segments to hourly cells: projection, engines, rollups; made again at will."""
