"""Prompts as data, and the one function that turns a prompt and its fields into token ids.

Training, filtering, scoring and generation all go through `render`, so that what a model is asked at
inference is, id for id, the beginning of what it was trained on.
"""

import bisect
import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rationalyst_jax.files.settings import digest

_PLACEHOLDER = re.compile(r"\{([a-z_]+[0-9]*)\}")
# What each prompt may ask for; the last one is what the model is to write (the target).
_PLACEHOLDERS = {
    "annotate": ("document", "annotated"),
    "insert": ("preceding", "rationale"),
    "rationale": ("preceding", "rationale"),
    "follow": ("preceding", "following"),
    "follow_guided": ("preceding", "rationale", "following"),
    "step": ("question", "steps", "preceding", "step"),
    "judge": ("question", "steps", "preceding", "rating"),
    "step_guided": ("question", "steps", "preceding", "rationale", "step"),
}
# What a prompt may ask of the demonstrations of a task. Messages with a shot stand once for each.
_INSTRUCTION = "instruction"
_SHOT = ("shot_question", "shot_solution")
# Text, and whether it is the template's or the prompt's own, where names of added tokens count (no field).
_Piece = tuple[str, bool]
Field = str | list[_Piece]  # the value of a placeholder: a text, or the prompt's own words with texts between


@dataclass(frozen=True)
class Prompt:
    """Chat messages `(role, content)` with `{placeholders}`; the last one is the assistant's.

    given: values of placeholders that are the same whatever is asked: a task's instruction and shots.
    begins: the first characters of what the model writes, which are written already; white space stays.
    """

    name: str
    messages: tuple[tuple[str, str], ...]
    given: Mapping[str, str] = field(default_factory=dict)
    begins: str = ""

    @property
    def target(self) -> str:
        """The placeholder the model fills: the last one of the last message."""
        return _PLACEHOLDER.split(self.messages[-1][1])[-2]

    @property
    def opening(self) -> str:
        """The last message up to the target."""
        return self.messages[-1][1].removesuffix(f"{{{self.target}}}{self.closing}")

    def inserted(self, name: str, value: str) -> list[_Piece]:
        """What stands between the placeholder before `{name}` in the last message and the target, filled
        in."""
        parts = _PLACEHOLDER.split(self.messages[-1][1])
        at = parts.index(name)
        return [(parts[at - 1], True), (value, False), (parts[at + 1], True)]

    @property
    def closing(self) -> str:
        """The text after the target, which ends it (also its stop string); may be empty."""
        return _PLACEHOLDER.split(self.messages[-1][1])[-1]


@dataclass(frozen=True)
class Shot:
    """A solved question that is shown to a model before the one that it is asked."""

    question: str
    solution: str


@dataclass(frozen=True)
class Demonstrations:
    """How a task is put to a model: what it is told, and the shots that it is shown.

    version: names them; traces made with others are not continued.
    """

    version: str
    instruction: str
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one file. `document` is how a `{question}` opens a document.

    version: as the file gives it, and a fingerprint of the file.
    """

    version: str
    document: str
    prompts: Mapping[str, Prompt]

    def __getitem__(self, name: str) -> Prompt:
        if name not in self.prompts:
            raise ValueError(f"no prompt {name!r} among {', '.join(self.prompts)} (version {self.version})")
        return self.prompts[name]

    def shown(self, demonstrations: Demonstrations) -> "PromptSet":
        """These prompts with the instruction and the shots of a task, where they have places for them."""
        prompts = {name: _shown(prompt, demonstrations) for name, prompt in self.prompts.items()}
        if prompts == self.prompts:
            return self
        return replace(self, version=f"{self.version}+{demonstrations.version}", prompts=prompts)


def load_prompts(name_or_path: str | Path) -> PromptSet:
    """The prompt file shipped under that name ("llama3", "world") or, if it ends in .yaml, at that path.

    Raises FileNotFoundError, or ValueError naming the file and the entry that is malformed.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such prompt file")
        file = path
    else:
        file = resources.files("rationalyst_jax") / "prompts" / f"{name_or_path}.yaml"
        if not file.is_file():
            raise ValueError(f"no prompts named {str(name_or_path)!r} are shipped; a path must end in .yaml")
    raw, fingerprint = _read_yaml(str(name_or_path), file)
    return _prompt_set(str(name_or_path), raw, fingerprint)


def shipped_prompts() -> list[str]:
    """The names that `load_prompts` knows."""
    files = (resources.files("rationalyst_jax") / "prompts").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def load_demonstrations(name_or_path: str | Path) -> Demonstrations:
    """A task's instruction and our own shots, by the task's name, or of a YAML file with keys `instruction`
    and `shots`, a list of {question, solution}.

    Raises FileNotFoundError, or ValueError naming the file and the entry that is malformed.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    is_path = path.suffix in (".yaml", ".yml")
    file = path if is_path else resources.files("rationalyst_jax") / "prompts" / "tasks" / f"{name}.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{name}: no such file of demonstrations")
    raw, fingerprint = _read_yaml(name, file)
    if not isinstance(raw, dict) or set(raw) != {"instruction", "shots"}:
        raise ValueError(f"{name}: demonstrations have exactly the keys instruction and shots")
    shots = []
    if not isinstance(raw["shots"], list):
        raise ValueError(f"{name}: shots must be a list")
    for number, shot in enumerate(raw["shots"], start=1):
        if not isinstance(shot, dict) or set(shot) != {"question", "solution"}:
            raise ValueError(f"{name}: shot {number} must have exactly the keys question and solution")
        shots.append(Shot(str(shot["question"]).strip(), str(shot["solution"]).strip()))
    return Demonstrations(f"{path.stem}-{fingerprint}", str(raw["instruction"]).strip(), tuple(shots))


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    fields: Mapping[str, Field],
    target: str | None,
    close: bool,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`(context ids, target ids)` of `prompt` in the tokenizer's chat template, which alone puts BOS.

    `target` fills the target placeholder; None leaves it for a model to write (no target ids). `close` adds
    what ends it: the prompt's closing and the template's end of turn. The sequence is encoded as a whole and
    cut where the target's characters begin; a token that spans the cut belongs to the target. Messages are
    stripped, the last one on its left only. Control and marker tokens come from the template and the prompt
    alone: their names inside a field stay plain text.

    Raises ValueError for a missing field, a tokenizer without a chat template, or a template that begins with
    BOS twice or does not show a message.
    """
    *frames, end_of_turn = _frames(tokenizer, tuple(role for role, _ in prompt.messages))
    context: list[_Piece] = []
    for frame, (_, content) in zip(frames, prompt.messages[:-1], strict=False):
        context += [(frame, True), *_strip(_fill(prompt, content, fields))]
    *last, (target_text, _) = _lstrip([*_fill(prompt, prompt.opening, fields), (target or "", False)])
    context += [(frames[-1], True), *last, (prompt.begins, True)]
    rest = [] if target is None else [(target_text, False)]
    if target is not None and close:
        rest += [(prompt.closing, True), (end_of_turn, True)]

    ids, ends = _encode(tokenizer, [*context, *rest])
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError(f"prompt {prompt.name!r} begins with {tokenizer.bos_token} twice")
    cut = bisect.bisect_right(ends, sum(len(text) for text, _ in context))
    return tuple(ids[:cut]), tuple(ids[cut:])


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, names: Iterable[str]) -> None:
    """Raises what `render` would raise for these prompts, whatever their fields hold."""
    for name in names:
        given = dict.fromkeys(_PLACEHOLDERS[name], "x")
        render(tokenizer, prompts[name], given, target="x", close=True)


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What stands before a text that is no chat: what the tokenizer itself puts there, or else BOS.

    Not where BOS opens every message of a chat, as `<|im_start|>` does in some ChatML models: before plain
    text it would be out of place.
    """
    alone = tokenizer("x", add_special_tokens=False)["input_ids"]
    opened = tokenizer("x")["input_ids"]
    before = opened[: opened.index(alone[0])]
    bos = cast("str | None", tokenizer.bos_token)
    if before or bos is None:
        return tuple(before)
    if tokenizer.chat_template:
        chat = "".join(_frames(tokenizer, ("user", "assistant")))
        if chat.count(bos) > 1:
            return ()
    return (cast(int, tokenizer.bos_token_id),)


def messages(prompt: Prompt, fields: Mapping[str, Field]) -> tuple[tuple[str, str], ...]:
    """The chat `(role, content)` that a prompt opens, for a model that renders it itself.

    The assistant's unfinished message is the last one, where anything of it is written.
    """
    chat = []
    for role, content in prompt.messages[:-1]:
        chat.append((role, "".join(text for text, _ in _fill(prompt, content, fields)).strip()))
    opening = "".join(text for text, _ in _fill(prompt, prompt.opening, fields)).lstrip() + prompt.begins
    return (*chat, (prompt.messages[-1][0], opening)) if opening else tuple(chat)


def _fill(prompt: Prompt, content: str, fields: Mapping[str, Field]) -> list[_Piece]:
    """`content` in pieces: its own words, and the values of its placeholders."""
    pieces = []
    for i, part in enumerate(_PLACEHOLDER.split(content)):
        if i % 2 == 0:
            pieces.append((part, True))
        elif part not in fields and part not in prompt.given:
            raise ValueError(f"prompt {prompt.name!r} needs the field {part!r}")
        else:
            value = fields[part] if part in fields else prompt.given[part]
            pieces += [(value, False)] if isinstance(value, str) else value
    return pieces


def _lstrip(pieces: list[_Piece]) -> list[_Piece]:
    """Strips the text that the pieces spell on its left; the number of pieces stays."""
    blank = sum(1 for _ in itertools.takewhile(lambda piece: not piece[0].strip(), pieces))
    return [(text.lstrip(), own) if i <= blank else (text, own) for i, (text, own) in enumerate(pieces)]


def _strip(pieces: list[_Piece]) -> list[_Piece]:
    blank = sum(1 for _ in itertools.takewhile(lambda piece: not piece[0].strip(), reversed(pieces)))
    return [
        (text.rstrip(), own) if i >= len(pieces) - 1 - blank else (text, own)
        for i, (text, own) in enumerate(_lstrip(pieces))
    ]


@functools.lru_cache(maxsize=64)
def _frames(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...]) -> tuple[str, ...]:
    """What the chat template writes before, between and after messages of these roles.

    The template sees only stand-ins (private-use characters) for the contents, so nothing in a document can
    act on it.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template (chat_template.jinja)"
        )
    messages = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
    try:
        # Llama 3.1 and later write today's date into the system turn unless one is given: fix their default.
        skeleton = tokenizer.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024")
    except jinja2.TemplateError as error:
        raise ValueError(f"chat template refuses the roles {', '.join(roles)}: {error}") from error
    frames = re.split("\ue000([0-9]+)\ue001", str(skeleton))
    if frames[1::2] != [str(i) for i in range(len(roles))]:
        raise ValueError(f"chat template does not show each message of {', '.join(roles)} once, in order")
    return tuple(frames[::2])


@functools.lru_cache(maxsize=8)
def _text_encoder(tokenizer: PreTrainedTokenizerBase) -> tuple[Tokenizer, dict[str, int], re.Pattern[str]]:
    """(the tokenizer without its added tokens and BOS, its added tokens, a pattern that finds them)."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"rendering needs a fast tokenizer, got {type(tokenizer).__name__}")
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    longest_first = sorted(added, key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
    backend = tokenizer.backend_tokenizer
    text_only = Tokenizer(backend.model)
    text_only.normalizer = backend.normalizer
    text_only.pre_tokenizer = backend.pre_tokenizer
    return text_only, added, pattern


def _encode(tokenizer: PreTrainedTokenizerBase, pieces: list[_Piece]) -> tuple[list[int], list[int]]:
    """Token ids of the joined pieces, and where in the text each token ends (in characters).

    Text between two control tokens is encoded in one go, across the borders of pieces.
    """
    encoder, added, pattern = _text_encoder(tokenizer)
    runs: list[tuple[str, bool]] = []
    for text, own in pieces:
        for i, part in enumerate(pattern.split(text) if own else [text]):
            if i % 2 == 0 and runs and not runs[-1][1]:
                runs[-1] = (runs[-1][0] + part, False)
            else:
                runs.append((part, i % 2 == 1))
    ids = []
    ends = []
    start = 0
    for text, is_token in runs:
        if is_token:
            ids.append(added[text])
            ends.append(start + len(text))
        else:
            encoding = encoder.encode(text, add_special_tokens=False)
            ids += encoding.ids
            ends += [start + end for _, end in encoding.offsets]
        start += len(text)
    return ids, ends


def _prompt_set(file: str, raw: Any, fingerprint: str) -> PromptSet:
    if not isinstance(raw, dict) or set(raw) != {"version", "document", "prompts"}:
        raise ValueError(f"{file}: a prompt file has exactly the keys version, document and prompts")
    version = f"{raw['version']}+{fingerprint}"
    document = raw["document"]
    prompts = raw["prompts"]
    if not isinstance(document, str) or _PLACEHOLDER.findall(document) != ["question"]:
        raise ValueError(f"{file}: document must hold {{question}} once, got {document!r}")
    if not isinstance(prompts, dict):
        raise ValueError(f"{file}: prompts must map names to messages")
    return PromptSet(version, document, {name: _prompt(file, name, prompts[name]) for name in prompts})


def _prompt(file: str, name: str, raw: Any) -> Prompt:
    if name not in _PLACEHOLDERS:
        raise ValueError(f"{file}: unknown prompt {name!r}, not one of {', '.join(_PLACEHOLDERS)}")
    try:
        messages = tuple((str(message["role"]), str(message["content"])) for message in raw["messages"])
        is_open = messages[-1][0] == "assistant"
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{file}: prompt {name!r} needs messages, each with a role and a content") from error
    *used, target = [found for _, content in messages for found in _PLACEHOLDER.findall(content)] or [None]
    *given, wanted = _PLACEHOLDERS[name]
    if not is_open or target != wanted or f"{{{wanted}}}" not in messages[-1][1]:
        raise ValueError(f"{file}: prompt {name!r} must end in an assistant message with {{{wanted}}} last")
    if unknown := sorted(set(used) - {*given, _INSTRUCTION, *_SHOT}):
        may = ", ".join((*given, _INSTRUCTION, *_SHOT))
        raise ValueError(f"{file}: prompt {name!r} cannot use {', '.join(unknown)}, only {may}")
    return Prompt(name, messages)


def _shown(prompt: Prompt, demonstrations: Demonstrations) -> Prompt:
    """A prompt whose run of messages with a shot stands once for each shot, numbered from 1."""
    is_shot = [any(f"{{{name}}}" in content for name in _SHOT) for _, content in prompt.messages]
    messages = []
    for shows, run in itertools.groupby(zip(is_shot, prompt.messages, strict=True), lambda pair: pair[0]):
        each = [message for _, message in run]
        if not shows:
            messages += each
            continue
        for number in range(1, len(demonstrations.shots) + 1):
            for role, content in each:
                messages.append((role, re.sub(f"{{({'|'.join(_SHOT)})}}", rf"{{\g<1>{number}}}", content)))
    given = {_INSTRUCTION: demonstrations.instruction}
    for number, shot in enumerate(demonstrations.shots, start=1):
        given |= {f"shot_question{number}": shot.question, f"shot_solution{number}": shot.solution}
    used = {name for _, content in messages for name in _PLACEHOLDER.findall(content)}
    given = {name: value for name, value in given.items() if name in used}
    return replace(prompt, messages=tuple(messages), given=given)


def _read_yaml(name: str, file: Any) -> tuple[Any, str]:
    """What a YAML file holds, and the fingerprint of its text."""
    try:
        text = file.read_text(encoding="utf-8")
        return yaml.safe_load(text), digest([text.encode()])[:8]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-01
        raise ValueError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
