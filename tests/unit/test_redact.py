"""Secrets hidden in text that is logged or shown."""

from __future__ import annotations

import pytest

from sifkit.model import Site
from sifkit.redact import redact, secrets_of

SITE = Site.model_validate({"python_index": {"url": "https://reader:s3cr%40t-index@packages.example/simple/"}})
ENVIRON = {
    "HF_TOKEN": "hf_abcdefgh",
    "WANDB_API_KEY": "0123456789abcdef",
    "APPTAINER_DOCKER_PASSWORD": "registry-word",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+word",
    "http_proxy": "http://someone:proxy-word@proxy.example:3128",
    "PIP_EXTRA_INDEX_URL": "https://a.example/ https://token-alone@b.example/",
    "HF_TOKEN_PATH": "/home/someone/token",
    "TOKENIZERS_PARALLELISM": "disabled",
    "SSH_AUTH_SOCK": "/run/ssh.sock",
    "HOME": "/home/someone",
}


def test_what_is_a_secret_is_known_by_the_variables_name_or_its_place_in_a_url() -> None:
    assert set(secrets_of(ENVIRON, SITE)) == {
        "hf_abcdefgh",
        "0123456789abcdef",
        "registry-word",
        "aws/secret+word",
        "proxy-word",
        "token-alone",
        "s3cr%40t-index",
        "s3cr@t-index",  # as programs say it when they have decoded it
    }


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("fetching http://u:pw@host/x", "fetching http://u:****@host/x"),
        ("'https://u:p@ss:w@host:8080/x?q=a:b@c'", "'https://u:****@host:8080/x?q=a:b@c'"),
        ("https://:pw@host and https://tok@host", "https://:****@host and https://****@host"),
        ("oras://u:pw@host/x", "oras://u:****@host/x"),
        ("git clone ssh://git@host/x", "git clone ssh://git@host/x"),
        ("mail someone@example.org, at 10:30@home", "mail someone@example.org, at 10:30@home"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("http://u:****@host/", "http://u:****@host/"),
        ("http://****@host/", "http://****@host/"),
    ],
)
def test_passwords_of_urls_are_hidden_and_nothing_else(text: str, hidden: str) -> None:
    assert redact(text) == hidden


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    secrets = secrets_of(ENVIRON, SITE)
    assert redact("header: Bearer hf_abcdefgh; s3cr@t-index", secrets) == "header: Bearer ****; ****"


def test_a_secret_within_a_longer_one_leaves_nothing_of_it() -> None:
    secrets = secrets_of({"A_TOKEN": "abcdef", "B_TOKEN": "abcdefghi"}, Site())
    assert redact("abcdefghi abcdef", secrets) == "**** ****"


def test_short_and_empty_values_are_no_secrets() -> None:
    assert secrets_of({"A_TOKEN": "", "B_PASSWORD": "on"}, Site()) == ()
