"""Conversations out of a file, for a chat template: .json holds one or several, .jsonl one a line."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmodel.config import did_you_mean
from jaxmodel.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in their order, and what the assistant may call."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None

    def answered(self, text: str) -> dict[str, Any]:
        """As a line of a file, the assistant having said `text`."""
        said = {"messages": [*self.messages, {"role": "assistant", "content": text}]}
        return said if self.tools is None else {**said, "tools": self.tools}


def read_conversations(path: str) -> list[Conversation]:
    """What a file holds: `[{"role": "user", "content": "Hi"}, …]`, or the same as `messages`, with `tools` beside it.

    Raises:
      InputError: there is no such file, it is not JSON, or it holds something else; says where, and what is wanted.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"--messages={path}: {why}: give a .json or .jsonl file of messages") from None
    if not path.endswith(".jsonl"):
        said = _parsed(text, f"--messages={path}")
        several = isinstance(said, list) and said and not any(_is_message(each) for each in said)
        return [_conversation(each, f"--messages={path}") for each in (said if several else [said])]
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"--messages={path} is empty: give it a conversation a line")
    wheres = ((f"--messages={path}, line {i}", line) for i, line in lines)
    return [_conversation(_parsed(line, where), where) for where, line in wheres]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): mend it there") from None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _conversation(value: Any, where: str) -> Conversation:
    messages = value.get("messages") if isinstance(value, dict) else value
    tools = value.get("tools") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InputError(
            f'{where} holds no conversation: give a list of messages, as in [{{"role": "user", "content": "Hi"}}]'
        )
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise InputError(f"{where}: message {i} has no role: give it one of {', '.join(ROLES)}")
        if role not in ROLES:
            raise InputError(f"{where}: message {i} has the role {role}: {did_you_mean(role, ROLES)}")
    if tools is not None and not isinstance(tools, list):
        raise InputError(f"{where}: tools is a {type(tools).__name__}: give a list of JSON schemas")
    return Conversation(messages, tools)
