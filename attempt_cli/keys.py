"""Names results by all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def content_key(identity: Mapping[str, Any]) -> str:
    """Returns 16 hexadecimal digits that two identities share only if they are equal."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
