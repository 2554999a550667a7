# SPDX-License-Identifier: Apache-2.0
"""Policy files: TOML, or JSON where the name ends in .json, read as the agent reads them.

Rule: what is wrong is named by file, key, value and reason (and line, where the file cannot even be
read) before anything is sent. A key that is given twice is refused, also in JSON.

Does not judge what only the agent knows (its hardware, its time zones, its leases).
"""

from __future__ import annotations

from pathlib import Path

from leased.durable.reading import read_text
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.policy import Policy
from leased.terms.policy_text import read_policy
from leased.terms.reading import read_json, read_toml


def load_policy(file: Path) -> Policy:
    """The policy in `file`. Raises ConfigError."""
    try:
        text = read_text(file, pipe=True)
        document = read_json(text, "") if file.suffix == ".json" else read_toml(text)
        if not isinstance(document, dict):
            raise ConfigError("a policy is a table of keys")
        return read_policy(document, "")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidParameter("file", f"{file}: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (ConfigError, ValueError, RecursionError) as error:  # also no JSON, and no UTF-8
        raise ConfigError(f"{file}: {error}") from error
