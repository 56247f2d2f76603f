"""One shared text: a CRDT by pycrdt, behind checks of what comes in. No I/O."""

from __future__ import annotations

from typing import Final

from pycrdt import Doc, Text

from examples.collab.updates import UpdateError, check, read_state_vector
from nexios_trio import PeerError

NAME: Final = "text"  # of the one text in it
MAX_CHARACTERS: Final = 100_000  # that are not deleted
MAX_BYTES: Final = 1 << 20  # of the whole history, deleted text included
COMPACT_AFTER: Final = 128 << 10  # bytes of updates


class FullError(PeerError):
    """There is no room for this update."""

    close_code = 1008


class Document:
    """What everybody has written, and what it was made of. Any order of updates gives the same text."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._updates: list[bytes] = []
        self._size = 0
        """Bytes in `_updates`, at most."""
        self._compacted = 0
        self._load()

    def _load(self) -> None:
        self._doc: Doc[Text] = Doc()
        self._text = self._doc.get(NAME, type=Text)
        for update in self._updates:
            self._doc.apply_update(update)

    @property
    def text(self) -> str:
        return str(self._text)

    @property
    def state(self) -> bytes:
        """How much of each client is here, as Yjs writes it."""
        return self._doc.get_state()

    def since(self, state: bytes) -> bytes:
        """An update with all that somebody with this state lacks. Raises `UpdateError` if it is none."""
        read_state_vector(state)
        return self._doc.get_update(state)

    def apply(self, update: bytes) -> bool:
        """Take an update in; returns whether it may be news to others. Raises `UpdateError`, `FullError`."""
        checked = check(update, self._known, NAME)
        if checked.added and len(self.text) + checked.added > MAX_CHARACTERS:
            raise FullError("the text is full")
        if self._size + len(update) > self._compacted + COMPACT_AFTER:
            self._compact()
        if self._size + len(update) > MAX_BYTES:
            raise FullError("the text has too long a history")
        try:
            self._doc.apply_update(update)
        except BaseException as error:
            # Our checks should have found it. A Rust panic is no Exception, and leaves who knows what.
            if type(error).__name__ != "PanicException" and not isinstance(error, Exception):
                raise
            self._load()
            raise UpdateError("the update cannot be applied") from None
        changed = checked.deletes or checked.known != self._known
        self._known = checked.known
        if changed:
            self._updates.append(update)
            self._size += len(update)
        return changed

    def _compact(self) -> None:
        whole = self._doc.get_update()
        self._updates, self._size = [whole], len(whole)
        self._compacted = len(whole)
