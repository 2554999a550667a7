# SPDX-License-Identifier: Apache-2.0
"""What the records say about tomorrow: capacity, forecast, placement, right sizes."""
