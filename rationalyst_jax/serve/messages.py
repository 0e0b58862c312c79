"""The messages of a chat, and the text that the model's chat template makes of them."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.serve.reader import Reader, Refused, parse_json

# What a message may hold beside its role and content, and whose messages may.
_CARRIERS = {
    "name": ("system", "developer", "user", "assistant", "tool", "function"),
    "tool_calls": ("assistant",),
    "tool_call_id": ("tool",),
}

Message = dict[str, Any]


def read_messages(messages: list[Any]) -> list[Message]:
    """The messages as templates want them. Raises Refused for what is not understood."""
    if not messages:
        raise Refused(400, "messages must not be empty", "messages")
    return [_message(f"messages[{number}]", message) for number, message in enumerate(messages)]


def render_messages(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], opens: bool, continues: bool
) -> str:
    """The text of a chat. opens: the head of an answer follows. continues: the last message goes on.

    Raises Refused where the template does not take the messages, or would drop a part of one: where its text
    is the same without it.
    """
    if not tokenizer.chat_template:
        raise Refused(400, "the model's tokenizer has no chat template", "messages")
    text = _rendered(tokenizer, messages, opens, continues)
    for key, role in sorted({(key, m["role"]) for m in messages for key in _CARRIERS if key in m}):
        without = [{k: v for k, v in m.items() if (k, m["role"]) != (key, role)} for m in messages]
        try:
            dropped = _rendered(tokenizer, without, opens, continues) == text
        except Refused:  # the template needs it
            continue
        if dropped:
            raise Refused(400, f"the chat template does not show {key} of {role} messages", "messages")
    return text


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], opens: bool, continues: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens, continue_final_message=continues
            )
        )
    except Exception as error:  # templates are programs: they raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(400, f"the chat template refuses the messages: {reason:.300}", "messages") from error


def _message(place: str, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused(400, f"{place} needs a role and a content", "messages")
    reader = Reader(message, place, "messages")
    role = reader.take("role", str, "")
    content = reader.take("content", (str, list), None)
    extra = {
        "name": reader.take("name", str, None),
        "tool_call_id": reader.take("tool_call_id", str, None),
        "tool_calls": _tool_calls(place, reader.take("tool_calls", list, [])) or None,
    }
    reader.done({"annotations": ([],)})  # the openai package sends it back so
    extra = {key: value for key, value in extra.items() if value is not None}
    for key in extra:
        if role not in _CARRIERS[key]:
            raise Refused(400, f"{place}: a message of role {role!r:.60} has no {key}", "messages")
    if content is None and "tool_calls" in extra:
        content = ""
    return {"role": role, "content": _text(place, content), **extra}


def _text(place: str, content: Any) -> str:
    """A content, which may come in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, f"{place}: the content must be text", "messages")
    texts = []
    for number, part in enumerate(content):
        reader = Reader(part, f"{place}.content[{number}]", "messages")
        kind = reader.take("type", str, "text")
        text = reader.take("text", str, None)
        if kind != "text" or text is None:
            raise Refused(400, f"{place}: the content must be text", "messages")
        reader.done()
        texts.append(text)
    return "".join(texts)


def _tool_calls(place: str, calls: list[Any]) -> list[dict[str, Any]]:
    """The calls with their arguments as an object, which templates expect; OpenAI's are JSON text."""
    read = []
    for number, call in enumerate(calls):
        where = f"{place}.tool_calls[{number}]"
        reader = Reader(call, where, "messages")
        identity = reader.take("id", str, None)
        kind = reader.take("type", str, "function")
        function = Reader(reader.take("function", dict, {}), f"{where}.function", "messages")
        reader.done()
        name = function.take("name", str, None)
        arguments = function.take("arguments", (str, dict), "{}")
        function.done()
        if isinstance(arguments, str):
            arguments = parse_json(arguments, f"{where}.function.arguments", "messages")
        if kind != "function" or name is None or not isinstance(arguments, dict):
            raise Refused(400, f"{where}: only functions with a name and arguments are known", "messages")
        known = {"type": "function", "function": {"name": name, "arguments": arguments}}
        read.append(known if identity is None else {"id": identity, **known})
    return read
