# SPDX-License-Identifier: Apache-2.0
"""Policy files: TOML, or JSON where the name ends in .json, read as the agent reads them.

Rule: what is wrong is named by file, key, value and reason (and line, where the file cannot even be
read) before anything is sent. A key that is given twice is refused, also in JSON.

Does not judge what only the agent knows (its hardware, its time zones, its leases).
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

from leased.terms.errors import ConfigError
from leased.terms.policy import Policy
from leased.terms.policy_text import read_policy
from leased.terms.reading import misread, read_json


def load_policy(file: Path) -> Policy:
    """The policy in `file`. Raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8")
        document = read_json(text, "") if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {misread(text, str(error))}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:  # both decoders' errors, and text that is none
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: a policy is a table of keys")
    try:
        return read_policy({key: _spelled(value) for key, value in document.items()}, "")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _spelled(value: Any) -> Any:
    """TOML's own dates and times as the text they were."""
    if isinstance(value, dict):
        return {key: _spelled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_spelled(one) for one in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
