"""The templates for users' own repositories: valid, and made of commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEMPLATES = ["github-actions.yml", "gitlab-ci.yml"]


def commands(name: str) -> list[str]:
    """Every shell line of a template."""
    document: dict[Any, Any] = yaml.safe_load((ROOT / "ci" / name).read_text())
    if "jobs" in document:
        steps = [step for job in document["jobs"].values() for step in job["steps"]]
        return [line for step in steps for line in step.get("run", "").splitlines()]
    jobs = [job for job in document.values() if isinstance(job, dict)]
    return [line for job in jobs for line in (*job.get("before_script", ()), *job.get("script", ()))]


def make_targets(name: str) -> set[str]:
    return {match[1] for line in commands(name) if (match := re.match(r"make ([\w-]+)", line))}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_make_target_exists(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    missing = {target for target in make_targets(name) if not re.search(rf"^{target}:", makefile, re.MULTILINE)}
    assert missing == set()


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_checks_tests_builds_and_verifies(name: str) -> None:
    assert make_targets(name) >= {"check", "test-fast", "sif", "verify"}
    lines = commands(name)
    assert '.venv/bin/python -m pytest tests/image --sif "images/$IMAGE.sif"' in lines
    for device in ("cpu", "gpu"):
        assert f"make verify IMAGE=\"$IMAGE\" VERIFY_OPTIONS='--device {device}'" in lines


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / "ci" / name).read_text()
    named = re.findall(r"\b(?:ci/[\w.-]+\.sh|requirements-[\w.-]+|tests/\w+)\b", text)
    image = re.search(r"IMAGE: (\S+)", text)
    assert named
    assert image
    assert [path for path in (*named, f"definitions/{image[1]}.lock") if not (ROOT / path).exists()] == []
