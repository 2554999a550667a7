# SPDX-License-Identifier: Apache-2.0
"""What is told of sealed events: the feed, the system journal, counters, vitals."""
