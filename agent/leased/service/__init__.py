# SPDX-License-Identifier: Apache-2.0
"""The agent: the tasks around the one sequencer. Rank 4; trio is at home here."""
