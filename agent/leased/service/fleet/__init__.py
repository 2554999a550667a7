# SPDX-License-Identifier: Apache-2.0
"""The node's door to its fleet: the log as collectors pull it, and what they acknowledge."""
