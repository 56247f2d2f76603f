"""A token per device, and one for operators, all made from one secret: nothing has to be stored.

``python -m examples.iot.tokens d-001 d-002 operator`` writes them out. The secret is ``IOT_SECRET`` in the
environment; without one everybody knows it, and the server says so.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import sys
from typing import Final

from attrs import field, frozen

from nexios_trio import Identity

__all__ = ["OPERATOR", "Keys"]

DEMO: Final = "the secret of the demo, which everybody knows"
OPERATOR: Final = "operator"
ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


@frozen
class Keys:
    """Makes tokens and checks them."""

    secret: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Keys:
        return cls(os.environ.get("IOT_SECRET") or DEMO)

    @property
    def known_to_all(self) -> bool:
        return self.secret == DEMO

    def token(self, name: str) -> str:
        """Of a device, or of `OPERATOR`."""
        if name == OPERATOR and self.known_to_all:
            return "demo"
        mac = hmac.new(self.secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:40]
        return mac if name == OPERATOR else f"{name}.{mac}"

    def device(self, token: str) -> Identity | None:
        """Whose token it is."""
        name = token.partition(".")[0]
        if name == OPERATOR or not ID.fullmatch(name) or not same(token, self.token(name)):
            return None
        return Identity(name, scopes=["device"], user_id=f"device {name}")

    def operator(self, token: str) -> Identity | None:
        return Identity(OPERATOR, scopes=[OPERATOR]) if same(token, self.token(OPERATOR)) else None


def same(one: str, other: str) -> bool:
    """In a time that does not tell how much of them is."""
    return hmac.compare_digest(one.encode(), other.encode())


if __name__ == "__main__":
    keys = Keys.from_environment()
    sys.stdout.writelines(f"{name}\t{keys.token(name)}\n" for name in sys.argv[1:] or [OPERATOR])
