"""The options of a row that asks for a choice, as data sets write them."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from rationalyst_jax.files.rows import Row


def labeled_options(labels: Any, texts: Any, key: Any, place: str) -> tuple[tuple[str, ...], str]:
    """`(texts, gold letter)` of options under labels of their own ("A" to "E", or "1" to "4"), where `key` is
    the label of the right one. The gold letter counts from A, whatever the labels are.

    Raises ValueError naming the place where these do not fit together.
    """
    options = option_texts(texts, place)
    if not isinstance(labels, list) or len(labels) != len(options):
        raise ValueError(f"{place}: {len(options)} options need as many labels, found {labels!r:.60}")
    names = [str(label).strip() for label in labels]
    if len(set(names)) < len(names):
        raise ValueError(f"{place}: two options have one label: {', '.join(names)}")
    if str(key).strip() not in names:
        raise ValueError(f"{place}: the right label {key!r:.20} is none of {', '.join(names)}")
    return options, ascii_uppercase[names.index(str(key).strip())]


def option_texts(texts: Any, place: str) -> tuple[str, ...]:
    """The texts of 2 to 26 options, none empty. Raises ValueError naming the place."""
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise ValueError(f"{place}: the options must be a list of texts, found {texts!r:.60}")
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise ValueError(f"{place}: there must be 2 to 26 options, found {len(texts)}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: an option must be text and not empty, found {text!r:.60}")
    return tuple(text.strip() for text in texts)


def object_field(row: Row, key: str, place: str) -> Row:
    """`row[key]`, which must be an object. Raises ValueError naming place and key."""
    value = row.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {key!r} must be an object, found {value!r:.60}")
    return value
