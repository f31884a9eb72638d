"""Datasets as people register them, right and wrong: rows (or the file's text), and the entry of dataset_info.json."""

from __future__ import annotations

from typing import Any

ROW = {"instruction": "a b", "input": "", "output": "c"}
TURNS = {"formatting": "sharegpt"}
TAGS = {
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
}
MESSAGES = {"columns": {"messages": "messages"}}
ANSWERED = {"prompt": "instruction", "response": "output"}
PAIRED = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
PAIR = {"instruction": "a", "chosen": "b", "rejected": "c"}
TALKED_PAIRS = {
    **TURNS,
    "ranking": True,
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}


def turns(*pairs: tuple[str, object]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


def messages(*pairs: tuple[str, object]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


ASKED = turns(("human", "a"), ("gpt", "b"))
TALK = messages(("user", "a"), ("assistant", "b"))
ANSWERS = {"chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": ([ROW], {}),
    "a column that no row has": ([{"instruction": "a", "output": "b"}], {}),
    "columns named": ([{"instruction": "a", "output": "b"}], {"columns": ANSWERED}),
    "a column that some rows have": ([{"instruction": "a", "output": "b"}, ROW], {}),
    "texts": (["a", "b"], {}),
    "texts, named": (["a", "b"], {"columns": {"prompt": "text"}}),
    "turns": ([ASKED], TURNS),
    "turns of others": ([turns(("user", "a"), ("assistant", "b"))], TURNS),
    "messages": ([TALK], TURNS),
    "messages, named": ([TALK], {**TURNS, **MESSAGES}),
    "messages with tags": ([TALK], {**TURNS, **MESSAGES, **TAGS}),
    "messages with two tags": ([TALK], {**TURNS, **MESSAGES, "tags": {"role_tag": "role", "content_tag": "content"}}),
    "a turn too much": ([turns(("human", "a"), ("gpt", "b"), ("human", "c"))], TURNS),
    "one row of odd turns": ([ASKED, turns(("human", "a")), ASKED], TURNS),
    "rows of other speakers": ([ASKED, turns(("user", "a"), ("assistant", "b"))], TURNS),
    "a system": ([turns(("system", "s"), ("human", "a"), ("gpt", "b"))], TURNS),
    "a system alone": ([turns(("system", "s"))], TURNS),
    "no turns": ([turns()], TURNS),
    "an observation": ([turns(("human", "a"), ("observation", "o"), ("gpt", "c"))], TURNS),
    "openai": ([TALK], {"formatting": "openai", **MESSAGES, **TAGS}),
    "openai, untagged": ([TALK], {"formatting": "openai", **MESSAGES}),
    "openai with a system": (
        [messages(("system", "s"), ("user", "a"), ("assistant", "b"))],
        {"formatting": "openai", "columns": {"messages": "messages", "system": "s", "tools": "t"}, **TAGS},
    ),
    "openai of others": ([messages(("user", "a"), ("bot", "b"))], {"formatting": "openai", **MESSAGES, **TAGS}),
    "no such formatting": ([ROW], {"formatting": "chatml"}),
    "kto": ([{**ROW, "t": True}, {**ROW, "t": False}], {"columns": {**ANSWERED, "kto_tag": "t"}}),
    "kto of texts": ([{**ROW, "t": "good"}] * 2, {"columns": {**ANSWERED, "kto_tag": "t"}}),
    "kto without answers": (
        [{"instruction": "x", "t": True}] * 2,
        {"columns": {"prompt": "instruction", "kto_tag": "t"}},
    ),
    "kto of turns": ([{**ASKED, "t": True}] * 2, {**TURNS, "columns": {"messages": "conversations", "kto_tag": "t"}}),
    "pairs": ([PAIR], {"ranking": True, "columns": PAIRED}),
    "pairs, unnamed": ([PAIR], {"ranking": True}),
    "pairs, by a text": ([PAIR], {"ranking": "true", "columns": PAIRED}),
    "pairs of lists": ([{**PAIR, "chosen": ["b"], "rejected": ["c"]}], {"ranking": True, "columns": PAIRED}),
    "pairs of turns": ([{**turns(("human", "a")), **ANSWERS}], TALKED_PAIRS),
    "pairs after an answer": ([{**ASKED, **ANSWERS}], TALKED_PAIRS),
    "pairs of turns, unnamed": ([turns(("human", "a"))], {**TURNS, "ranking": True}),
    "two types": ([ROW, {**ROW, "output": ["x"]}], {}),
    "no rows": ([], {}),
    "rows below a key": ({"data": [ROW]}, {}),
    "no system": ([ROW], {"columns": {**ANSWERED, "system": "system"}}),
    "a system that is a number": ([{**ROW, "system": 3}], {"columns": {**ANSWERED, "system": "system"}}),
    "history": ([{**ROW, "history": [["a", "b"]]}], {"columns": {**ANSWERED, "history": "history"}}),
    "history of texts": ([{**ROW, "history": ["abc", "d"]}], {"columns": {**ANSWERED, "history": "history"}}),
    "numbers": ([{"instruction": 3, "input": "", "output": 4}], {}),
    "an answer that is a number": ([{"instruction": "a", "input": "", "output": 4}], {}),
    "no answer": ([{"instruction": "a", "input": "", "output": None}], {}),
    "no question": ([{"instruction": None, "input": None, "output": "b"}], {}),
    "turns that are a text": ([{"conversations": "hello"}], TURNS),
    "turns that are texts": ([{"conversations": ["a", "b"]}], TURNS),
    "turns that are null": ([{"conversations": None}], TURNS),
    "content that is a number": ([turns(("human", 1), ("gpt", 2))], TURNS),
    "content that is null": ([turns(("human", None), ("gpt", "b"))], TURNS),
    "another split": ([ROW], {"split": "test"}),
    "more samples than rows": ([ROW] * 3, {"num_samples": 10}),
    "no file": (None, {}),
    "lines": ('{"instruction": "a", "input": "", "output": "b"}\n' * 2, {}),
    "lines without breaks": ('{"instruction": "a", "input": "", "output": "b"}' * 2, {}),
    "a byte order mark": ('\ufeff[{"instruction": "a", "input": "", "output": "b"}]', {}),
    "a byte order mark before lines": ('\ufeff{"instruction": "a", "input": "", "output": "b"}\n', {}),
    "a comma too much": ('[{"instruction": "a", "input": "", "output": "b"},]', {}),
    "a broken line": ('{"instruction": "a", "input": "", "output": "b"}\n{"instruction": \n', {}),
    "an empty file": ("", {}),
    "lines of texts": ('"a"\n"b"\n', {}),
    "an object over lines": ('{\n "instruction": "a",\n "input": "",\n "output": "b"\n}', {}),
}
