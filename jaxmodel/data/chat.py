"""Chat templates: a conversation as the one text a model reads, as transformers' apply_chat_template writes it."""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from jaxmodel.errors import InputError

Message = Mapping[str, Any]
Template = str | Mapping[str, str]  # one, or several by name: "default", "tool_use"

# Published templates and callers name the thoughts of an assistant in these ways.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def render(
    template: Template,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """The text of a conversation.

    The template is a program of the checkpoint's author. It runs in jinja2's immutable sandbox and sees copies of plain
    data alone, with `raise_exception`, `strftime_now`, `tojson` as in transformers; `{% generation %}` marks nothing.

    Args:
      template: jinja2; of several, `tool_use` where there are tools, and else `default`.
      messages: each with a `role`, mostly `content`, and whatever else the template knows (`tool_calls`, …). Entries
        that are None are left out; an assistant's thoughts go by `reasoning_content`, `thinking` or `reasoning`.
      tools: what may be called, each a JSON schema as a dict.
      documents: what may be quoted, mostly with `title` and `text`.
      add_generation_prompt: end with what begins the assistant's answer.
      **variables: others that the template reads: `bos_token`, `eos_token`, `enable_thinking`, …

    Raises:
      InputError: there is no message, one is no dict, or the template fails or reaches out of the sandbox; says why.

    >>> lines = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    >>> render(lines, [{"role": "me", "content": "Hi"}], eos_token="|")
    '<me> Hi|'
    """
    if not messages:
        raise InputError("the conversation is empty: give at least one message")
    if not isinstance(template, str):
        name = "tool_use" if tools is not None and "tool_use" in template else "default"
        if name not in template:
            raise InputError(
                f"no chat template is the default one: pass the text of one of them ({', '.join(sorted(template))})"
            )
        template = template[name]
    given = {"tools": _dicts(tools, "tools"), "documents": _dicts(documents, "documents")}
    given |= {"add_generation_prompt": add_generation_prompt, **_plain(variables)}
    try:
        return _compiled(template).render(messages=_messages(messages), **given)
    except InputError:
        raise
    except Exception as error:  # a foreign program: whatever it raises is its own mistake, or the conversation's
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the chat template does not take this conversation{line}: {kind}{words}; "
            "mend the messages as it says, or give another template"
        ) from error


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    found = []
    for message in _dicts(messages, "messages") or ():
        message = {key: value for key, value in message.items() if value is not None}
        thoughts = next((message[key] for key in _THOUGHTS if key in message), None)
        found.append(message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts})
    return found


def _dicts(values: Sequence[Mapping[str, Any]] | None, name: str) -> list[dict[str, Any]] | None:
    for i, each in enumerate(values or ()):
        if not isinstance(each, Mapping):
            raise InputError(f"{name}[{i}] is a {type(each).__name__}: give each of the {name} as a dict")
    return None if values is None else _plain(list(values))


def _plain(value: Any) -> Any:
    """A copy of nothing but dicts, lists, text and numbers: methods of anything else could reach out of the sandbox.

    Of an image or an array a template asks only whether it is there: its type's name stands for it.
    """

    def other(each: Any) -> Any:
        return dict(each) if isinstance(each, Mapping) else f"<{type(each).__name__}>"

    return json.loads(json.dumps(value, default=other))


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's own prints nothing for what a template may not reach: here it fails."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"it may not reach for {attribute!r} of a {type(obj).__name__}")


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks an assistant's words for training: only what is within."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 wants it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore, by which Python asks what a value can do."""

    def __init__(self, /, *args: Any, **kwargs: Any):
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}, which begins with an underscore")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys=False) -> str:
    """Not as jinja2's own, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        # Python's own would lend dict.update, which changes a dict unseen by the sandbox.
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": _Namespace,
    }
    return environment


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)
