"""What refers to an image: asked of the registry, or of the tag that stands in where it keeps no such list.

Source: github.com/opencontainers/distribution-spec, spec.md 1.1: "Listing Referrers", "Pushing Manifests with Subject",
"Referrers Tag Schema". Docker's registry 2.8 has the tag only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from sifkit.errors import HostError
from sifkit.reference import Reference
from sifkit.registry import INDEXES, LARGEST_MANIFEST, PULL, PUSH, Client, Manifest, sha256_digest
from sifkit.share.artifact import Descriptor, index_of, rows_of

_TRIES = 5


def referrers(client: Client, subject: Reference) -> list[Descriptor]:
    """What refers to a manifest, which `subject` names by digest; nothing where nobody keeps a list."""
    listed = _listed(client, subject)
    return _tagged(client, subject, PULL) if listed is None else listed


def _listed(client: Client, subject: Reference) -> list[Descriptor] | None:
    """By the registry's own list, all its pages; None where it has none, or answers with something else."""
    found: list[Descriptor] = []
    path: str | None = f"{subject.repository}/referrers/{subject.digest}"
    while path:
        headers = {"Accept": INDEXES[0]}
        with client.request("GET", path, subject.repository, headers=headers, stream=True) as answer:
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            if not answer.ok or kind != INDEXES[0]:
                return None
            data = client.read(answer, LARGEST_MANIFEST)
            link = answer.links.get("next", {}).get("url")
        try:
            found += rows_of(Manifest(sha256_digest(data), kind, data))
        except (ValueError, AttributeError, json.JSONDecodeError):
            return None
        path = link if link != path else None
    return found


def add_referrers(client: Client, subject: Reference, rows: Sequence[Descriptor]) -> None:
    """Put rows on the list that the tag stands for. Raises `HostError` when others change it all the time."""
    for _ in range(_TRIES):
        there = _tagged(client, subject, PUSH)
        missing = [row for row in rows if row not in there]
        if not missing:
            return
        client.put_manifest(_tag(subject), index_of([*there, *missing]))
        # two that write at the same time may lose rows of the other: read again
    raise HostError(f"{client.registry}: others keep changing the list of what refers to {subject}", "push again")


def _tag(subject: Reference) -> Reference:
    return replace(subject, tag=subject.digest.replace(":", "-"), digest="")


def _tagged(client: Client, subject: Reference, actions: str) -> list[Descriptor]:
    """Raises `HostError` for a tag that holds something else, since writing would destroy it."""
    index = client.find_manifest(_tag(subject), actions=actions)
    try:
        return rows_of(index) if index else []
    except ValueError:
        if actions == PULL:
            return []
        raise HostError(
            f"{_tag(subject)} holds no list of referrers, which is what this tag is for",
            "have that tag deleted, and push again",
        ) from None
