# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the reaper: packets, tickets, board; starting one without systemd."""
