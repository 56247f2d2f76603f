"""What the shared text lets in: genuine updates, and none that could hurt the library behind."""

from __future__ import annotations

from random import Random

import pytest
from pycrdt import Doc, Text

from examples.collab import document
from examples.collab.document import Document, FullError
from examples.collab.updates import UpdateError, check, read_state_vector


class Writer:
    """Somebody else's copy of the text."""

    def __init__(self) -> None:
        self.doc: Doc[Text] = Doc()
        self.text = self.doc.get("text", type=Text)

    def insert(self, at: int, what: str) -> bytes:
        before = self.doc.get_state()
        self.text.insert(at, what)
        return self.doc.get_update(before)

    def delete(self, start: int, end: int) -> bytes:
        before = self.doc.get_state()
        del self.text[start:end]
        return self.doc.get_update(before)


def history(random: Random, steps: int) -> list[bytes]:
    """Updates of two that write at once and now and then hear of each other."""
    writers = [Writer(), Writer()]
    updates = []
    for _ in range(steps):
        writer, other = random.sample(writers, 2)
        size = len(str(writer.text))
        if size and random.random() < 0.3:
            start = random.randrange(size)
            updates.append(writer.delete(start, min(size, start + random.randint(1, 4))))
        else:
            updates.append(writer.insert(random.randint(0, size), random.choice(["a", "word ", "x" * 20])))
        if random.random() < 0.3:
            other.doc.apply_update(writer.doc.get_update(other.doc.get_state()))
    return updates


def test_genuine_updates_give_the_text_of_the_library() -> None:
    text, plain = Document(), Writer()
    for update in history(Random(1), 200):
        text.apply(update)
        plain.doc.apply_update(update)
    assert text.text == str(plain.text) != ""
    assert text.since(plain.doc.get_state()) == b"\x00" + plain.doc.get_update(plain.doc.get_state())[1:]
    fresh = Writer()
    fresh.doc.apply_update(text.since(fresh.doc.get_state()))
    assert str(fresh.text) == text.text


def test_an_update_that_comes_twice_is_news_once() -> None:
    text, writer = Document(), Writer()
    update = writer.insert(0, "hello")
    assert text.apply(update) is True
    assert text.apply(update) is False
    assert text.text == "hello"


def test_nothing_may_be_missing_in_between() -> None:
    text, writer = Document(), Writer()
    first, second = writer.insert(0, "a"), writer.insert(1, "b")
    with pytest.raises(UpdateError, match="builds on what nobody has"):
        text.apply(second)
    deleted = writer.delete(0, 1)
    with pytest.raises(UpdateError, match="deletes what nobody has"):
        text.apply(deleted)
    for update in (first, second, deleted):
        text.apply(update)
    assert text.text == "b"


@pytest.mark.parametrize(
    ("hexadecimal", "problem"),
    [
        ("", "cut short"),
        ("01", "cut short"),
        ("0100050000", "a client with nothing"),
        ("0000ff", "bytes follow"),
        ("00ffffffffffffffffffff01", "too large"),
        ("0101050004010474657874000000", "an insertion of nothing"),
        ("010105000401056f7468657201610000", "only one text"),
        ("0101050006010474657874016100", "only plain text"),
        ("01010500040104746578740280800000", "no UTF-8"),
        ("010105008405000474657874", "it builds on"),
        ("0101050084050001610000", "builds on what nobody has"),
        ("0101050001010474657874ffffffff070000", "too large"),
    ],
)
def test_what_is_no_edit_of_plain_text_is_refused(hexadecimal: str, problem: str) -> None:
    with pytest.raises(UpdateError, match=problem):
        check(bytes.fromhex(hexadecimal), {}, "text")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_updates_are_refused_or_harmless(seed: int) -> None:
    random = Random(seed)
    updates = history(random, 40)
    text, known = Writer(), dict[int, int]()
    passed = 0
    for _ in range(3000):
        damaged = bytearray(random.choice(updates))
        for _ in range(random.randint(0, 3)):
            match random.randrange(4):
                case 0:
                    del damaged[random.randrange(len(damaged) + 1) :]
                case 1:
                    at = random.randrange(len(damaged) + 1)
                    damaged[at:at] = random.randbytes(random.randint(1, 3))
                case _ if damaged:
                    damaged[random.randrange(len(damaged))] = random.choice((0, 1, 4, random.randrange(256)))
        try:
            checked = check(bytes(damaged), known, "text")
        except UpdateError:
            continue
        text.doc.apply_update(bytes(damaged))  # no panic, no loop
        known = checked.known
        passed += 1
        assert read_state_vector(text.doc.get_state()) == known
    assert passed > 100
    str(text.text)


def test_a_text_and_its_history_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    text, writer = Document(), Writer()
    text.apply(writer.insert(0, "x" * document.MAX_CHARACTERS))
    with pytest.raises(FullError, match="the text is full"):
        text.apply(writer.insert(0, "y"))
    monkeypatch.setattr(document, "MAX_BYTES", 10_000)
    monkeypatch.setattr(document, "COMPACT_AFTER", 1000)
    text, writer = Document(), Writer()
    with pytest.raises(FullError, match="too long a history"):
        for number in range(5000):
            text.apply(writer.insert(0, f"{number:05}"))
            text.apply(writer.delete(0, 3))
    assert len(text.text) > 200


def test_a_state_vector_that_is_none_is_refused() -> None:
    for bad in (b"", b"\x01", b"\x01\x05", b"\x00\x00", b"\xff" * 20):
        with pytest.raises(UpdateError):
            Document().since(bad)


def test_a_panic_of_the_library_costs_nothing_but_that_update(monkeypatch: pytest.MonkeyPatch) -> None:
    text, writer = Document(), Writer()
    text.apply(writer.insert(0, "kept"))

    class PanicException(BaseException):  # as pyo3 names it
        pass

    class Broken:
        def apply_update(self, _update: bytes) -> None:
            raise PanicException

    monkeypatch.setattr(text, "_doc", Broken())
    update = writer.insert(4, " on")
    with pytest.raises(UpdateError, match="cannot be applied"):
        text.apply(update)
    assert text.text == "kept"
    text.apply(update)
    assert text.text == "kept on"
