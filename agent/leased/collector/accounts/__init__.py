# SPDX-License-Identifier: Apache-2.0
"""Usage, costs and bills from hourly cells, in the forms that people and tools read."""
