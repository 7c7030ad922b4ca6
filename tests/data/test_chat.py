"""Chat templates: the texts of transformers, made by tests/golden/make_chats.py; and refusals."""

import copy
import datetime
import json
from pathlib import Path
from types import MappingProxyType
from unittest import mock

import numpy as np
import pytest

from jaxmodel.data import chat
from jaxmodel.errors import InputError

CHATS = Path(__file__).parent.parent / "golden" / "chats"
CONVERSATIONS = json.loads((CHATS / "conversations.json").read_text())
EXPECTED = json.loads((CHATS / "expected.json").read_text())
DAY = datetime.datetime(2024, 7, 26, 12)
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("name", [path.stem for path in sorted(CHATS.glob("*.jinja"))])
def test_as_transformers(name, monkeypatch):
    monkeypatch.setattr(chat, "datetime", mock.Mock(now=lambda: DAY))
    template = (CHATS / f"{name}.jinja").read_text()
    given = copy.deepcopy(CONVERSATIONS)
    for title, options in given.items():
        options = {"bos_token": "<s>", "eos_token": "</s>", **options}
        wanted = EXPECTED[name][title]
        if wanted is None:
            with pytest.raises(InputError, match=r"^the chat template does not take this conversation: "):
                chat.render(template, **options)
        else:
            assert chat.render(template, **options) == wanted, title
    assert given == CONVERSATIONS  # a template sees copies


def test_the_golden_texts_are_many_and_differ():
    assert len(EXPECTED) >= 10
    told = [text for texts in EXPECTED.values() for text in texts.values() if text is not None]
    assert len(set(told)) > 60
    assert "26 Jul 2024" in EXPECTED["llama3"]["plain"] and "1 Jan 2000" in EXPECTED["llama3"]["answered"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{{ namespace.mro() }}",
        "{% set n = namespace() %}{% set n.__call__ = messages %}",
        "{% set n = namespace(__call__=1) %}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{{ dict.update(messages[0], {'role': 'system'}) }}",
    ],
)
def test_a_template_stays_in_the_sandbox(template):
    messages = copy.deepcopy(HI)
    with pytest.raises(InputError, match=r"^the chat template does not take this conversation: ") as found:
        chat.render(template + " ", messages)
    assert "\n" not in str(found.value) and messages == HI


@pytest.mark.parametrize(
    "template, given, words",
    [
        ("", [], "the conversation is empty: give at least one message"),
        ("", ["Hi"], r"messages\[0\] is a str: give each of the messages as a dict"),
        ("{{ 1", HI, "take this conversation, line 1: unexpected end of template, expected 'end of print"),
        ("{{ raise_exception('no\nsuch role') }}", HI, "conversation: no such role; mend the messages as it"),
        ("{{ messages[0].content + 1 }}", HI, "conversation: TypeError: can only concatenate"),
        ("{{ messages[3].content }}", HI, "conversation: list object has no element 3; "),
        ({"a": "", "rag": ""}, HI, r"no chat template is the default one: pass the text of one .*\(a, rag\)"),
    ],
)
def test_refusals(template, given, words):
    with pytest.raises(InputError, match=words) as found:
        chat.render(template, given)
    assert "\n" not in str(found.value)


def test_tools_and_documents_are_dicts():
    for name in ("tools", "documents"):
        with pytest.raises(InputError, match=rf"{name}\[1\] is a builtin.*: give each of the {name} as a dict"):
            chat.render("", HI, **{name: [{}, len]})  # pyright: ignore[reportArgumentType]


def test_the_template_for_tools_is_taken_with_tools():
    templates = {"default": "plain", "tool_use": "tools"}
    assert chat.render(templates, HI) == "plain"
    assert chat.render(templates, HI, tools=[]) == "tools"
    assert chat.render({"default": "plain"}, HI, tools=[]) == "plain"


def test_what_is_no_text_is_there_by_name_alone():
    image = {"type": "image", "image": np.zeros(3)}
    message = MappingProxyType({"role": "user", "content": (image,)})
    shown = chat.render("{{ messages[0].content[0].image }} {{ messages[0].content | length }}", [message])
    assert shown == "<ndarray> 1"


def test_thoughts_go_by_every_name():
    for name in ("reasoning_content", "thinking", "reasoning"):
        message = {"role": "assistant", "content": "4", name: "four"}
        template = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
        assert chat.render(template, [message]) == "four four"


def test_the_clock():
    assert chat.render("{{ strftime_now('%Y') }}", HI) in {str(datetime.datetime.now().year + i) for i in (-1, 0)}
