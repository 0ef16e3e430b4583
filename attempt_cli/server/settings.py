"""What a server takes, and how it computes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from attempt_cli.errors import ArgumentsError

PATHS = ("", "/", "/v1", "/v1/")  # of an upstream's address


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Args:
        host: the address that it listens on.
        port: the port; 0 takes a free one.
        api_key: what requests must show as their bearer token; None lets all in.
        max_tokens: positions computed at once, pads included.
        wait: milliseconds to wait for further requests, so that they are answered together.
        max_body: bytes of a request's body.
        max_rows: answers to one request: inputs times models.
        max_new_tokens: the longest text that is generated.
        timeout: seconds until a request that was not answered is given up.
        max_queue: inputs that wait; more are turned away.
        upstream: the address of a server that has the layers and takes prompt embeddings; None computes here. What
            `max_tokens` and `wait` say is then its own business.
        upstream_model: the model's name there; None finds it by the backbone's.
        upstream_key: the bearer token that it asks for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_tokens: int = 8192
    wait: float = 3.0
    max_body: int = 1 << 20
    max_rows: int = 256
    max_new_tokens: int = 256
    timeout: float = 60.0
    max_queue: int = 1024
    upstream: str | None = None
    upstream_model: str | None = None
    upstream_key: str | None = None

    def check(self) -> None:
        """Refuses settings that no server can have.

        Raises:
            ArgumentsError: naming the setting.
        """
        least = {"port": 0, "max_tokens": 1, "wait": 0, "max_body": 1, "max_rows": 1, "max_new_tokens": 1}
        least |= {"timeout": 1, "max_queue": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            # a comparison with not-a-number is false
            if field.name in least and not value >= least[field.name]:
                raise ArgumentsError(f"{field.name} is {value}", f"Give {least[field.name]} or more.")
        if self.port > 65535:
            raise ArgumentsError(f"port is {self.port}", "Ports end at 65535.")
        if self.wait > 1000:
            raise ArgumentsError(f"wait is {self.wait:g} ms", "Give a second at most.")
        if self.max_rows > self.max_queue:
            raise ArgumentsError(
                f"a request may have {self.max_rows} rows, but only {self.max_queue} may wait",
                "Give a lower max_rows or a higher max_queue.",
            )
        for key in (self.api_key, self.upstream_key):
            if key is not None and not (key and key.isascii() and key.isprintable()):
                raise ArgumentsError("the API key cannot be sent in a header", "Choose printable ASCII characters.")
        self._check_upstream()

    def _check_upstream(self) -> None:
        if self.upstream is None:
            if self.upstream_model is not None:
                raise ArgumentsError("upstream_model says nothing without upstream", "Give upstream, its address.")
            return
        for name, default in (("max_tokens", ServerSettings.max_tokens), ("wait", ServerSettings.wait)):
            if getattr(self, name) != default:
                raise ArgumentsError(f"{name} says nothing with upstream, which makes batches itself", "Leave it out.")
        try:
            parts = urlsplit(self.upstream)
            plain = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and parts.path in PATHS
        except ValueError:  # a port that is none
            plain = False
            parts = urlsplit("")
        if not plain or parts.query or parts.fragment or "@" in parts.netloc or not self.upstream.isprintable():
            raise ArgumentsError(
                f"upstream is '{self.upstream}', which is no address of a server", "Give one as http://127.0.0.1:8001."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
