"""Short keys that name a result by everything it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def content_key(identity: Mapping[str, Any]) -> str:
    """Returns a hash of 16 hex digits; equal identities have equal keys, whatever the order of their fields.

    Args:
        identity: everything that the result depends on; what JSON has no form for is hashed as its text.
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
