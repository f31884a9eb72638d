"""Secrets of the environment and of the site file, hidden in text that is logged or shown. Pure.

Programs hide passwords in what they say of their own accord, but not all of them everywhere: what passes through
sifkit is looked at once more. A text that programs read (`Result.output`) is not changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from sifkit.model import Site

HIDDEN = "****"
_SHORTEST = 6  # characters: hiding shorter ones would hide words, and tell what they are

# Variables whose values are secrets: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, APPTAINER_DOCKER_PASSWORD; not
# the places of secrets (HF_TOKEN_PATH), and not TOKENIZERS_PARALLELISM.
_SECRET_NAME = re.compile(r"TOKEN(?!IZER)|PASSW|SECRET|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_PLACE = re.compile(r"_(PATH|FILE|DIR|HOME|SOCK)$", re.IGNORECASE)

# The password of a URL ends at the last @ before the path. A name without a password, in https, is a token.
_PASSWORD = re.compile(r"""([a-z][a-z0-9+.-]*://[^\s/?#:@'"]*:)([^\s/?#'"]+)(?=@)""", re.IGNORECASE)
_ALONE = re.compile(r"""(https?://)([^\s/?#:@'"*]+)(?=@)""", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None and _PLACE.search(name) is None


def secrets_of(environ: Mapping[str, str], site: Site) -> tuple[str, ...]:
    """Tokens of the environment and passwords in any URL of the environment and the site file, the longest first."""
    named = [value for name, value in environ.items() if is_secret(name)]
    texts = [*environ.values(), site.model_dump_json()]
    inside = [match[2] for text in texts for pattern in (_PASSWORD, _ALONE) for match in pattern.finditer(text)]
    found = {form for value in (*named, *inside) for form in (value, unquote(value)) if len(form) >= _SHORTEST}
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without the passwords of whatever URLs stand in it."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _ALONE.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1{HIDDEN}", text))
