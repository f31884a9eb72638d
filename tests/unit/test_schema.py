"""The committed schemas say what the model says, and accept what we ship."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sifkit.schema import DEFINITIONS, SCHEMAS, schema_text


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_schema_is_the_models(name: str) -> None:
    assert (DEFINITIONS / name).read_text() == schema_text(SCHEMAS[name]), "run: make schema"


@pytest.mark.parametrize("path", sorted(DEFINITIONS.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_every_spec_fits_the_schema(path: Path) -> None:
    schema = json.loads((DEFINITIONS / "spec.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_the_schema_refuses_a_typo() -> None:
    schema = json.loads((DEFINITIONS / "spec.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="lamafactory"):
        jsonschema.validate({"lamafactory": {}}, schema)
