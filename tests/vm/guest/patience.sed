# SPDX-License-Identifier: Apache-2.0
# For leased.toml on an emulated machine, which is ten times slower than a real one and shares its processors: the budgets
# that tell a hang from slow work are longer. They bound nothing that a test waits for; a test that needs a hang makes one.
# Nothing else of the configuration is ours to change.
#
# A worker's first call maps and compiles what Python needs of it: seconds here, and most of a minute on a host with ten
# other programs at work, where 5 s would abandon it in the middle of a proof.
s/^call_budget = .*/call_budget = "20s"/
# A killed process exits when it is next scheduled; under a fork bomb that is seconds later.
s/^kill_budget = .*/kill_budget = "20s"/
# udev opens a namespace that has changed with programs of its own, and holds it for as long as they take to start. The
# pages of a dying process come back when it has been scheduled.
s/^settle_budget = .*/settle_budget = "10s"/
# The sum of those above must fit in (`leased --check`): 60 s would not.
s/^reclaim_max = .*/reclaim_max = "10m"/
