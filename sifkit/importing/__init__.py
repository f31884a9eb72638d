"""Specs from what people have: Dockerfiles, definitions, images. `convert` reads, `write` gives the spec's text."""
