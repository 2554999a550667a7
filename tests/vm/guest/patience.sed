# SPDX-License-Identifier: Apache-2.0
# For leased.toml on an emulated machine, which is ten times slower than a real one and shares its processors: the budgets
# that tell a hang from slow work are longer. Nothing else of the configuration is ours to change.
s/^call_budget = .*/call_budget = "20s"/
s/^kill_budget = .*/kill_budget = "20s"/
s/^settle_budget = .*/settle_budget = "10s"/
s/^reclaim_max = .*/reclaim_max = "10m"/
