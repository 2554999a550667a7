# SPDX-License-Identifier: Apache-2.0
"""The local API: sockets, peers, conversations, and what each method does."""
