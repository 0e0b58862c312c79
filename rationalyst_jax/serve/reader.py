"""JSON that a client sent, and the refusal of what is wrong with it."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any


class Refused(Exception):
    """A request that is not served: its HTTP status, and what was wrong with which parameter."""

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.parameter = parameter
        self.code = code


def parse_json(text: str | bytes | bytearray, place: str, parameter: str | None = None) -> Any:
    """The value of a JSON text, all of whose strings are Unicode. Raises Refused, naming its place."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{place} holds half of a surrogate pair", parameter) from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"{place} is not JSON: {error}", parameter) from None
    return value


class Reader:
    """The values of a JSON object, checked as they are taken; one that is null is as good as absent.

    place: where the object stands, for messages. parameter: the one of the body that it belongs to; by
    default each key is itself one.
    """

    def __init__(self, value: Any, place: str = "the body", parameter: str | None = None):
        self._place = place
        self._parameter = parameter
        if not isinstance(value, dict):
            raise Refused(400, f"{place} must be a JSON object", parameter)
        self._left = {key: one for key, one in value.items() if one is not None}

    def take(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self._left.pop(key, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if value is not default and wrong:
            wanted = " or ".join(k.__name__ for k in kinds)
            raise self.refusal(key, f"{key} must be {wanted}, got {value!r:.60}")
        return value

    def number(self, key: str, default: Any, low: float, high: float, kind: Any = int) -> Any:
        """An integer, or another kind of number, in that range; the default may be None."""
        value = self.take(key, kind, default)
        if value is not None and not low <= value <= high:
            raise self.refusal(key, f"{key} must be between {low} and {high}, got {value!r:.60}")
        return value

    def done(self, neutral: Mapping[str, Any] = MappingProxyType({}), ignored: Sequence[str] = ()) -> None:
        """Refuses what nobody took, but for the `neutral` values of a key, and keys that are `ignored`."""
        for key, value in self._left.items():
            if key in ignored or value in neutral.get(key, ()):
                continue
            if key in neutral:
                raise self.refusal(key, f"{key}={value!r:.60} is not supported")
            raise self.refusal(key, f"unknown parameter {key!r:.100}")

    def refusal(self, key: str, message: str) -> Refused:
        """Of the value of a key."""
        if self._parameter is None:
            return Refused(400, message, key)
        return Refused(400, f"{self._place}: {message}", self._parameter)
