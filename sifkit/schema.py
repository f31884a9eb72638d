"""JSON Schemas for editors, generated from the model: `make schema` writes them, a test keeps them true."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from sifkit.model import ImageSpec, Site

DEFINITIONS = Path(__file__).parent.parent / "definitions"

SCHEMAS: dict[str, type[BaseModel]] = {"spec.schema.json": ImageSpec, "site.schema.json": Site}


def schema_text(model: type[BaseModel]) -> str:
    """The schema of a file format, keys as they are written in the file."""
    schema = model.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def write_schemas(directory: Path) -> None:
    """Write all schemas."""
    for name, model in SCHEMAS.items():
        (directory / name).write_text(schema_text(model))


if __name__ == "__main__":
    write_schemas(DEFINITIONS)
