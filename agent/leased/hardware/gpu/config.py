# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[hardware.gpu]`, with every default spelled out.

Does not read a file: `service.config_file` does.
"""

from __future__ import annotations

import msgspec


class GpuConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[hardware.gpu]` table. `offer` False: nothing of this kind is leased, or looked at."""

    offer: bool = True
