# SPDX-License-Identifier: Apache-2.0
"""What the log needs while the agent runs: epochs, counter, pruning, keys; and reading it."""
