"""What a server takes, and how it computes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields

from attempt_cli.errors import ArgumentsError


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
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise ArgumentsError("the API key cannot be sent in a header", "Choose printable ASCII characters.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
