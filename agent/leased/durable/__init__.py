# SPDX-License-Identifier: Apache-2.0
"""The sealed log on disk: the only fsync and the only rename of the program.

Rank 3: imports `terms`, `ports` and `chain`. `log.open_log` is the door for the writer,
`reader.read_log` for readers.
"""
