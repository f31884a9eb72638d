"""`sifkit submit --verify` on the real Slurm: the image is verified by a task of an array, and its verdict gathered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.errors import Exit
from sifkit.spec import DEFAULT_IMAGE
from tests.slurm.conftest import ROOT, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.image]


def test_an_image_is_verified_on_a_node_and_its_verdict_gathered(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.sifkit(
        "submit", "--verify", DEFAULT_IMAGE, "--gpus", "0", "--mem", "3G", "--wait", "--json", cwd=tmp_path
    )
    answer = json.loads(done.stdout)
    (verdict,) = [found for found in answer["images"] if found["image"] == DEFAULT_IMAGE]
    assert verdict["passed"] is True
    assert "train passed" in verdict["said"]
    assert (ROOT / "reports" / DEFAULT_IMAGE / "report.html").is_file()
    assert (tmp_path / "logs" / f"verify-{answer['job']}_0.out").is_file()


def test_an_image_that_is_not_built_is_refused_before_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    done = cluster.sifkit("submit", "--verify", "llamafactory-0.9.3-cu124", "--gpus", "0", cwd=tmp_path, check=False)
    assert done.returncode == Exit.USAGE
    assert "python build.py llamafactory-0.9.3-cu124" in done.stderr
    assert cluster.run("squeue", "--me", "--noheader", "--name", "verify", "--states=pending,running") == ""
