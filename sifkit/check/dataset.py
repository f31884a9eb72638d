"""An entry of dataset_info.json as LLaMA-Factory reads it (llamafactory/data/parser.py, 0.9.4 and 0.9.5). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

HUBS = {"hf_hub_url": "huggingface", "ms_hub_url": "modelscope", "om_hub_url": "openmind"}
SOURCES = (*HUBS, "script_url", "cloud_file_name", "file_name")  # the first that is there counts
FILE_TYPES = ("arrow", "csv", "json", "jsonl", "parquet", "txt")  # extras/constants.py, FILEEXT2TYPE
FORMATS = ("alpaca", "sharegpt", "openai")  # data/converter.py, DATASET_CONVERTERS
MEDIA = ("images", "videos", "audios")
_COLUMNS = (
    "prompt",
    "query",
    "response",
    "history",
    "messages",
    "system",
    "tools",
    *MEDIA,
    "chosen",
    "rejected",
    "kto_tag",
)
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


@dataclass(frozen=True)
class Attributes:
    """What LLaMA-Factory makes of an entry: names of columns and tags. None: none of that kind."""

    formatting: str = "alpaca"
    ranking: bool = False
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"

    @property
    def media(self) -> tuple[str, ...]:
        """Kinds of media that its rows have."""
        return tuple(kind for kind in MEDIA if getattr(self, kind))

    @property
    def roles(self) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
        """Whose turns come first and second, in turn, apart from the system's."""
        return (self.user_tag, self.observation_tag), (self.assistant_tag, self.function_tag)

    def read(self) -> dict[str, str]:
        """Columns that are looked up in every row, of which each must be there: its name by its use."""
        if self.formatting == "alpaca":
            uses = ["prompt", "query", "history", "system", "tools", *self.media]
            uses += ["chosen", "rejected"] if self.ranking and not self.kto_tag else ["kto_tag", "response"]
        elif self.formatting == "openai":  # system and tools are asked for with .get
            uses = ["messages", *self.media, "kto_tag", *(["chosen", "rejected"] if self.ranking else [])]
        else:
            uses = ["messages", "system", "tools", *self.media, "kto_tag"]
            uses += ["chosen", "rejected"] if self.ranking else []
        return {use: name for use in uses if isinstance(name := getattr(self, use), str)}

    def texts(self) -> frozenset[str]:
        """Columns whose text becomes tokens of one sequence: of a pair, the chosen answer stands for both."""
        uses = ("prompt", "query", "response", "history", "messages", "system", "tools", "chosen")
        return frozenset(name for use in uses if isinstance(name := getattr(self, use), str))


def attributes(entry: Mapping[str, Any]) -> Attributes:
    """Of an entry. With `columns`, each one that is not named there is none at all; likewise `tags`."""
    plain = Attributes(formatting=str(entry.get("formatting", "alpaca")), ranking=bool(entry.get("ranking")))
    changes: dict[str, Any] = {}
    for group, names in (("columns", _COLUMNS), ("tags", _TAGS)):
        given = entry.get(group)
        if isinstance(given, Mapping):
            changes |= {name: _text_or_none(given.get(name)) for name in names}
    return replace(plain, **changes)


def _text_or_none(name: object) -> str | None:
    """A name that is no text names no column."""
    return name if isinstance(name, str) else None


def turns_alternate(row: Mapping[str, Any], meant: Attributes) -> bool:
    """Whether a row of messages is one that its converter keeps: user and assistant in turn, as many as it wants."""
    messages = row.get(meant.messages or "")
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        return True  # another rule's matter
    roles = [each.get(meant.role_tag or "") for each in messages]
    roles = roles[1:] if meant.system_tag and roles and roles[0] == meant.system_tag else roles
    turns = roles if meant.formatting != "openai" else _merged(messages[len(messages) - len(roles) :], roles, meant)
    first, second = meant.roles
    alternate = all(role in (second if at % 2 else first) for at, role in enumerate(turns))
    return alternate and bool(turns) and len(turns) % 2 == (1 if meant.ranking else 0)


def answers(row: Mapping[str, Any], meant: Attributes) -> int:
    """How many answers its converter makes of a row: one to learn, or two of a pair or a kto_tag."""
    messages = meant.formatting != "alpaca"
    if messages and not turns_alternate(row, meant):
        return 0
    if meant.kto_tag and isinstance(row.get(meant.kto_tag), bool):
        return 2
    kind = Mapping if messages else str
    if meant.ranking and all(isinstance(row.get(name or ""), kind) for name in (meant.chosen, meant.rejected)):
        return 2
    return 1 if messages or isinstance(row.get(meant.response or ""), str) else 0


def _merged(messages: list[Mapping[str, Any]], roles: list[Any], meant: Attributes) -> list[Any]:
    """Of the openai format: results of tools in a row are one turn, and are left out at the end."""
    turns: list[Any] = []
    waiting = False
    for message, role in zip(messages, roles, strict=True):
        if role == meant.observation_tag:
            waiting = True
            continue
        turns += [meant.observation_tag] if waiting else []
        waiting = False
        calls = role in (meant.assistant_tag, meant.function_tag) and message.get("tool_calls")
        turns.append(meant.function_tag if calls else role)
    return turns


def source_of(entry: Mapping[str, Any]) -> str | None:
    """Which key says where its data is; None: it says nothing."""
    return next((key for key in SOURCES if key in entry), None)


def local_name(entry: Mapping[str, Any]) -> str | None:
    """The file or directory that it names, below dataset_dir unless it is absolute; None: its data is elsewhere."""
    name = entry.get("file_name") if source_of(entry) == "file_name" else None
    return name if isinstance(name, str) else None
