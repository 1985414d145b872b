# SPDX-License-Identifier: Apache-2.0
"""Reading a result of which nothing is known for sure: every error says which field, and what is wrong with it."""

from collections.abc import Iterator
from typing import Any

LARGEST = 1e300
"""Beyond it numbers become infinite when they are drawn."""


class FieldError(Exception):
    """A field is missing, or not what it has to be."""


class Field:
    """A value in a JSON file and the path to it, such as `servers[0].summary`."""

    def __init__(self, value: Any, path: str = "") -> None:
        self.value = value
        self.path = path

    def __getitem__(self, key: str) -> "Field":
        """A member of an object. Raises FieldError if there is none."""
        found = self.get(key)
        if found is None:
            raise FieldError(f"{self._below(key)} is missing")
        return found

    def get(self, key: str) -> "Field | None":
        """A member of an object, if it has it and it is not null. Raises FieldError if this is no object."""
        found = self._object().get(key)
        return None if found is None else Field(found, self._below(key))

    def has(self, key: str) -> bool:
        """Whether this is an object with such a member, null or not."""
        return isinstance(self.value, dict) and key in self.value

    def items(self) -> Iterator[tuple[str, "Field"]]:
        """The members of an object that are not null."""
        for key, value in self._object().items():
            if value is not None:
                yield key, Field(value, self._below(key))

    def list(self) -> "list[Field]":
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        return [Field(value, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def number(self) -> float:
        """The number as it is in the file: an int stays one."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self._wrong("a number")
        if not abs(self.value) < LARGEST:
            raise self._wrong("a number of ordinary size")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self._wrong("text")
        return self.value

    def maybe(self, key: str) -> float | None:
        """The number of a member; None where it is missing or null."""
        found = self.get(key)
        return None if found is None else found.number()

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self._wrong("an object")
        return self.value

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _wrong(self, wanted: str) -> FieldError:
        shown = repr(self.value)
        return FieldError(f"{self.path or 'the whole'}: {wanted} is expected, not {shown[:40]}")
