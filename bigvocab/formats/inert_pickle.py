"""A reader of the pickles in torch.save files that runs nothing: every name stands for itself and none is looked up.

It is no unpickler of Python's. Its values are numbers, texts, lists, dicts and the records below; a class or function
is only ever its name, and only names on a short list are accepted. What is not on the list is refused, and so is every
instruction that torch.save does not write.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from bigvocab.errors import FormatError
from bigvocab.formats.pickle_names import DTYPES, FAULTY, LISTED, MAPPINGS, PARAMETERS, STORAGE_TYPES, TENSORS

MOST_BYTES = 64 << 20
_MOST_STEPS = 4_000_000
_MOST_DIGITS = 64  # bytes of an integer


class Name(NamedTuple):
    """A class or function that was named, never looked up."""

    text: str


class Storage(NamedTuple):
    """A run of elements in a member of the archive; `size` counts elements, or bytes where `dtype` is None."""

    key: str
    dtype: str | None
    size: int


class Tensor(NamedTuple):
    """A view of a storage; `fault` says why it cannot be read as plain numbers."""

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    fault: str | None = None


class Inert:
    """Stands for an object that was made of a listed name, with nothing in it."""


def read_pickle(data: bytes, shown: str) -> Any:
    """The tree of lists, dicts, numbers and `Tensor` records in a pickle of torch.save.

    Raises:
        FormatError: a name that is not on the list, an instruction that torch.save does not write, truncated, corrupt.
    """
    if len(data) > MOST_BYTES:
        raise FormatError(f"{shown}: a pickle of {len(data)} bytes, expected at most {MOST_BYTES}")
    try:
        return _Machine(data, shown).run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{shown}: its pickle is truncated or corrupt ({type(error).__name__})") from error


_KEYS = (str, int, float, bool, type(None), bytes)


class _Machine:
    """A stack of values, what was set aside at each mark, and the memo."""

    def __init__(self, data: bytes, shown: str) -> None:
        self._data, self._shown, self._at = data, shown, 0
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def run(self) -> Any:
        while True:
            code = self.take(1)[0]
            if code == ord("."):
                return self._pop(Any)
            self._count(1)
            action = _ACTIONS.get(code)
            if action is None:
                raise FormatError(
                    f"{self._shown}: its pickle has the instruction {bytes([code])!r} at byte {self._at - 1}, which "
                    "torch.save does not write; refused, and nothing of it was run"
                )
            action(self)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise FormatError(f"{self._shown}: its pickle has more than {_MOST_STEPS} instructions")

    # ---- bytes

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise FormatError(f"{self._shown}: its pickle is truncated at byte {self._at}")
        self._at += count
        return found

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, width: int) -> None:
        self.push(self.take(self.unsigned(width)).decode("utf-8", "surrogatepass"))

    def raw(self, width: int) -> None:
        self.push(self.take(self.unsigned(width)))

    def long(self, width: int) -> None:
        size = self.unsigned(width)
        if size > _MOST_DIGITS:
            raise FormatError(f"{self._shown}: its pickle has an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 1000)
        if end < 0:
            raise FormatError(f"{self._shown}: its pickle is truncated at byte {self._at}")
        return self.take(end + 1 - self._at)[:-1].decode("utf-8")

    # ---- stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self, kind: Any) -> Any:
        value = self.stack.pop()
        if kind is not Any and not isinstance(value, kind):
            raise TypeError
        return value

    def skip(self, width: int) -> None:
        self.take(width)

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self._marks.pop()

    def mark(self) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        values, self.stack = self.stack, self._marks.pop()
        return values

    def pop_mark(self) -> None:
        self.marked()

    def remember(self, place: int | None = None) -> None:
        self._memo[len(self._memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[len(self.stack) - count :])
        if len(values) < count:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.push(values)

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise TypeError

    def append(self) -> None:
        value = self._pop(Any)
        self.extend([value])

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if len(values) % 2 or not isinstance(target, dict | Inert):
            raise TypeError
        if isinstance(target, dict):
            _fill(target, zip(values[::2], values[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self._pop(Any), self._pop(Any)
        self.set_items([key, value])

    # ---- names

    def name(self, module: str, attribute: str) -> None:
        text = f"{module}.{attribute}"
        if text not in LISTED:
            raise FormatError(
                f"{self._shown}: its pickle names {text[:200]!r}, which is not on the list of what holds tensors; "
                "refused, and nothing of it was run; save the tensors alone, as torch.save({'name': tensor}, path) or "
                "with safetensors"
            )
        self.push(Name(text))

    def stack_name(self) -> None:
        attribute, module = self._pop(str), self._pop(str)
        self.name(module, attribute)

    def reduce(self) -> None:
        arguments, name = self._pop(tuple), self._pop(Name)
        self._count(sum(len(value) for value in arguments if isinstance(value, list | dict | tuple)))  # may be copied
        self.push(_made_of(name.text, arguments))

    def build(self) -> None:
        self._pop(Any)  # attributes of what is there already: none is read
        self.stack[-1]  # noqa: B018

    def persistent(self) -> None:
        what, kind, key, _, size = self._pop(tuple)[:5]
        if what != "storage" or not isinstance(kind, Name) or kind.text not in STORAGE_TYPES:
            raise TypeError
        if type(key) is not str or type(size) is not int or size < 0:
            raise TypeError
        self.push(Storage(key, STORAGE_TYPES[kind.text], size))


def _fill(target: dict[Any, Any], pairs: Any) -> None:
    """Add pairs to a dict; a key that no selector can name is left out, unhashed."""
    for key, value in pairs:
        if type(key) in _KEYS:
            target[key] = value


def _made_of(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a listed function would have made, as a record."""
    if name in TENSORS:
        return _tensor(name, arguments)
    if name in FAULTY:
        return Tensor(None, "", 0, (), (), FAULTY[name])
    if name in PARAMETERS:
        return arguments[0] if isinstance(arguments[0], Tensor) else Inert()
    if name == "torch._tensor._rebuild_from_type_v2":
        inner, _, inner_arguments = arguments[:3]
        if not isinstance(inner, Name) or not isinstance(inner_arguments, tuple):
            raise TypeError
        if inner.text == name:  # nested without end
            raise ValueError
        return _made_of(inner.text, inner_arguments)
    if name == "torch.Size":
        return tuple(arguments[0])
    if name in MAPPINGS:
        made: dict[Any, Any] = {}
        if arguments and name != "collections.defaultdict":  # its argument is what makes values
            _fill(made, arguments[0].items() if isinstance(arguments[0], dict) else arguments[0])
        return made
    return Inert()


def _tensor(name: str, arguments: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise TypeError
    for sizes in (shape, strides):
        if not isinstance(sizes, tuple) or len(sizes) > 64 or any(type(n) is not int or n < 0 for n in sizes):
            raise TypeError
    if len(shape) != len(strides):
        raise ValueError
    dtype = storage.dtype
    if name.endswith("_v3"):
        if not isinstance(arguments[6], Name) or arguments[6].text not in DTYPES:
            raise TypeError
        dtype = arguments[6].text.removeprefix("torch.")
    metadata = arguments[-1] if len(arguments) > (7 if name.endswith("_v3") else 6) else None
    flags = isinstance(metadata, dict) and any(metadata.values())
    fault = "a conjugated or negated view; call .resolve_conj().resolve_neg() on it" if flags else None
    return Tensor(storage, dtype or "uint8", offset, shape, strides, fault)


_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.pop_mark,
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    ord("K"): lambda m: m.push(m.unsigned(1)),
    ord("M"): lambda m: m.push(m.unsigned(2)),
    0x8A: lambda m: m.long(1),
    0x8B: lambda m: m.long(4),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.text(4),
    0x8C: lambda m: m.text(1),
    0x8D: lambda m: m.text(8),
    ord("T"): lambda m: m.raw(4),
    ord("U"): lambda m: m.raw(1),
    ord("B"): lambda m: m.raw(4),
    ord("C"): lambda m: m.raw(1),
    0x8E: lambda m: m.raw(8),
    0x96: lambda m: m.raw(8),
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push(Inert()),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    ord("l"): lambda m: m.push(m.marked()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("a"): _Machine.append,
    ord("e"): lambda m: m.extend(m.marked()),
    0x90: lambda m: m.extend(m.marked()),
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _Machine.stack_name,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
    ord("q"): lambda m: m.remember(m.unsigned(1)),
    ord("r"): lambda m: m.remember(m.unsigned(4)),
    0x94: _Machine.remember,
    ord("h"): lambda m: m.recall(m.unsigned(1)),
    ord("j"): lambda m: m.recall(m.unsigned(4)),
    0x80: lambda m: m.skip(1),
    0x95: lambda m: m.skip(8),
}
