"""What a definition must and must not hold, whatever the spec says."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from spython.main.parse.parsers import SingularityParser

from sifkit import deffile
from sifkit.lending import site_script
from sifkit.model import Site
from tests.conftest import make_image, make_spec

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, blacklist_characters="\x7f"), max_size=40)


def environment_of(definition: str) -> str:
    return definition.split("%environment\n")[1].split("\n%labels")[0]


@given(TEXT.filter(lambda text: "{{" not in text))
def test_no_value_of_env_is_run_or_changed(value: str) -> None:
    text = deffile.render(make_image(make_spec(env={"HOSTILE": value})), sifkit_version="1")
    script = environment_of(text) + '\nprintf %s "$HOSTILE"'
    run = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert run.stdout.decode() == value


def test_the_parts_do_what_one_definition_does() -> None:
    """All but how packages are installed, whose results tests/integration compares."""
    image = make_image()
    whole = deffile.render(image, sifkit_version="1")
    parts = deffile.render_base(image) + deffile.render_top(image, sifkit_version="1")
    packages = whole[whole.index("    # Python packages:") : whole.index("%environment")]
    lines = {line for line in whole.replace(packages, "").splitlines() if line.startswith("    ")}
    of_parts = {line for line in parts.splitlines() if line.startswith("    ") and "build-date" not in line}
    assert lines == of_parts


def test_images_with_the_same_debian_packages_share_a_base() -> None:
    one, two = make_image(), make_image(make_spec(torch={"version": "2.8.0", "cuda": "12.8"}))
    assert deffile.render_base(one) == deffile.render_base(two)


def test_spython_reads_what_we_render(tmp_path: Path) -> None:
    base = {"bootstrap": "docker", "from": "debian:trixie-slim"}
    path = tmp_path / "example.def"
    path.write_text(deffile.render(make_image(make_spec(base=base)), sifkit_version="1"))
    (layer,) = SingularityParser(str(path)).parse().values()
    assert (layer.fromHeader, layer.cmd) == ("debian:trixie-slim", 'exec llamafactory-cli "$@"')


def test_site_settings_stay_outside_the_definition() -> None:
    site = Site.model_validate({"python_index": {"url": "https://user:secret@index.example/simple"}})
    assert "secret" not in deffile.render(make_image(site=site), sifkit_version="1")
    script = site_script(site, {"https_proxy": "http://p:x'y@proxy.example"}, has_bundle=True)
    exports = dict(word.partition("=")[::2] for word in shlex.split(script) if word != "export")
    assert exports["UV_DEFAULT_INDEX"] == exports["PIP_INDEX_URL"] == "https://user:secret@index.example/simple"
    assert exports["https_proxy"] == "http://p:x'y@proxy.example"
    assert exports["SSL_CERT_FILE"] == exports["PIP_CERT"] == "/var/cache/sifkit/ca-bundle.crt"


def test_a_wheelhouse_turns_the_index_off() -> None:
    script = site_script(Site.model_validate({"python_index": {"wheelhouse": "/wheels"}}), {}, has_bundle=False)
    assert "export PIP_NO_INDEX=1\n" in script
    assert "UV_CONFIG_FILE" in script
    assert "SSL_CERT_FILE" not in script
