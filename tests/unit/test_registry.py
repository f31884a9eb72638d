"""Registries: names, credentials, and what is said of answers that a real registry cannot be made to give."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sifkit import credentials, digests
from sifkit.errors import HostError, SifkitError, UsageError
from sifkit.lock import BaseDigest, base_of, moved, parse_lock, with_base
from sifkit.model import DockerBase, ImageBase, Scratch
from sifkit.reference import Reference, pinned, reference_of
from sifkit.registry import INDEXES, MANIFESTS, Client, Settings, challenges_in, sha256_digest
from tests.conftest import lock_text, make_spec

DIGEST = "sha256:" + "0" * 64


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "whole", "short"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:trixie-slim", "docker.io/library/debian:trixie-slim", "debian:trixie-slim"),
        ("docker://hiyouga/pytorch:th2.6.0-cu124", "docker.io/hiyouga/pytorch:th2.6.0-cu124", None),
        ("index.docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("nvcr.io/nvidia/pytorch:24.05-py3", "nvcr.io/nvidia/pytorch:24.05-py3", "nvcr.io/nvidia/pytorch:24.05-py3"),
        ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
        ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a:b"),
        (f"host:5000/a/b__c@{DIGEST}", f"host:5000/a/b__c@{DIGEST}", f"host:5000/a/b__c@{DIGEST}"),
        (f"debian:12@{DIGEST}", f"docker.io/library/debian:12@{DIGEST}", f"debian:12@{DIGEST}"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, whole: str, short: str | None) -> None:
    reference = Reference.parse(text)
    assert str(reference) == whole
    assert reference.short == (short or whole.removeprefix("docker.io/"))
    assert Reference.parse(whole) == Reference.parse(reference.short) == reference


@pytest.mark.parametrize("text", ["", "Debian", "a b", "a:", "a@sha256:12", "http://a/b", "a//b", "a:b:c", "-a"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no image's name"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ('Basic realm="x, y"', {"basic": {"realm": "x, y"}}),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            {"bearer": {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"}},
        ),
        ("bearer Realm=https://a/t", {"bearer": {"realm": "https://a/t"}}),
        ('Negotiate, Basic realm="x"', {"negotiate": {}, "basic": {"realm": "x"}}),
    ],
)
def test_challenges_are_read(header: str, expected: dict[str, dict[str, str]]) -> None:
    assert challenges_in(header) == expected


# ---------------------------------------------------------------------------------------------- credentials


def pair(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_environment_comes_first_then_each_file_in_order(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    docker = write(tmp_path / ".docker/config.json", {"auths": {"r:1": pair("docker", "a")}})
    named = write(tmp_path / "auth.json", {"auths": {"other": pair("no", "no")}})
    environ = {**home, "REGISTRY_AUTH_FILE": str(named)}
    found = credentials.find("r:1", environ)
    assert found.credentials == credentials.Credentials(str(docker), "docker", "a")
    apptainer = write(tmp_path / ".apptainer/docker-config.json", {"auths": {"https://r:1": pair("apptainer", "b:c")}})
    found = credentials.find("r:1", environ)
    assert found.credentials == credentials.Credentials(str(apptainer), "apptainer", "b:c")
    environ |= {"APPTAINER_DOCKER_USERNAME": "env", "APPTAINER_DOCKER_PASSWORD": "d"}
    assert (found := credentials.find("r:1", environ)).credentials
    assert found.credentials.user == "env"


def test_docker_hub_is_found_under_its_old_address(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"auths": {"https://index.docker.io/v1/": pair("me", "x")}})
    found = credentials.find("docker.io", {"DOCKER_CONFIG": str(tmp_path), "HOME": "/nowhere"})
    assert found.credentials
    assert found.credentials.user == "me"


def test_a_helper_program_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = write(
        tmp_path / "bin/docker-credential-fake",
        '#!/bin/sh\nread host; [ "$host" = r:1 ] || { echo "credentials not found in native keychain"; exit 1; }\n'
        'echo "{\\"Username\\": \\"$FAKE_USER\\", \\"Secret\\": \\"s\\"}"\n',
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    write(tmp_path / "config.json", {"credHelpers": {"r:1": "fake"}, "credsStore": "fake"})
    environ = {"DOCKER_CONFIG": str(tmp_path), "HOME": "/nowhere", "FAKE_USER": "u"}
    assert credentials.find("r:1", environ).credentials == credentials.Credentials(
        str(tmp_path / "config.json"), "u", "s"
    )
    assert credentials.find("other", environ).credentials is None


def test_a_helper_that_is_not_there_is_remembered_not_fatal(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"credsStore": "desktop-of-another-machine"})
    found = credentials.find("r:1", {"DOCKER_CONFIG": str(tmp_path), "HOME": "/nowhere"})
    assert found.credentials is None
    assert "docker-credential-desktop-of-another-machine not installed" in found.faults[0]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '"x"',
        {"auths": {"r": "x"}},
        {"auths": {"r": {"auth": "%%%"}}},
        {"auths": {"r": {"auth": 5}}},
    ],
)
def test_a_damaged_file_of_credentials_is_named(tmp_path: Path, content: object) -> None:
    path = write(tmp_path / "config.json", content)
    with pytest.raises(UsageError, match=r"config\.json: not credentials as Docker keeps them") as caught:
        credentials.find("r", {"DOCKER_CONFIG": str(path.parent), "HOME": "/nowhere"})
    assert "docker login" in str(caught.value.fix)


@pytest.mark.parametrize(
    "content", [{}, {"auths": {}}, {"auths": {"r": {}}}, {"auths": {"r": {"auth": ""}}}, {"HttpHeaders": {}}]
)
def test_a_file_without_credentials_is_none(tmp_path: Path, content: object) -> None:
    path = write(tmp_path / "config.json", content)
    assert credentials.find("r", {"DOCKER_CONFIG": str(path.parent), "HOME": "/nowhere"}).credentials is None


def test_passwords_are_not_shown() -> None:
    assert "hidden" not in repr(credentials.Credentials("f", "u", "hidden", "hidden"))


# ---------------------------------------------------------------------------------------------- answers


@dataclass
class Answer:
    status: int = 200
    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Fake:
    """A registry that answers as it is told, one answer a request, the last one again and again."""

    host: str
    answers: dict[str, list[Answer]]
    seen: list[tuple[str, str]]  # path, Authorization

    def settings(self, **environ: str) -> Settings:
        return Settings({"HOME": "/nowhere", **environ}, sleep=self.waited.append)

    @property
    def waited(self) -> list[float]:
        return self._waited

    def __post_init__(self) -> None:
        self._waited: list[float] = []

    def resolve(self, name: str = "a:1", settings: Settings | None = None) -> str:
        return digests.resolve(
            Reference.parse(f"{self.host}/{name}"), settings or self.settings(), architecture="amd64"
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(digests, "SOCKET", "/nowhere/docker.sock")
    answers: dict[str, list[Answer]] = {"/v2/": [Answer()]}
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization", "")))
            left = answers.get(self.path.partition("?")[0], [Answer(404)])
            answer = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.data)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Fake(f"127.0.0.1:{server.server_port}", answers, seen)
    server.shutdown()
    thread.join()
    server.server_close()


def index(*platforms: str) -> bytes:
    rows = [
        {"digest": DIGEST, "platform": dict(zip(("os", "architecture"), p.split("/"), strict=True))} for p in platforms
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": rows}).encode()


GOOD = index("linux/amd64", "linux/arm64", "unknown/unknown")
MANIFEST = "/v2/a/manifests/1"


def served(data: bytes, **headers: str) -> Answer:
    return Answer(200, data, {"Content-Type": INDEXES[0], **{k.replace("_", "-"): v for k, v in headers.items()}})


def test_the_digest_of_a_tag_is_that_of_its_bytes(fake: Fake) -> None:
    fake.answers[MANIFEST] = [served(GOOD, Docker_Content_Digest=sha256_digest(GOOD))]
    assert fake.resolve() == sha256_digest(GOOD)


def test_wrong_bytes_are_refused(fake: Fake) -> None:
    fake.answers[MANIFEST] = [served(GOOD, Docker_Content_Digest=DIGEST)]
    with pytest.raises(HostError, match="damaged on the way or replaced"):
        fake.resolve()
    fake.answers[f"/v2/a/manifests/{DIGEST}"] = [served(GOOD)]
    with pytest.raises(HostError, match=f"not {DIGEST}"):
        fake.resolve(f"a@{DIGEST}")


def test_another_platform_is_refused_with_those_that_are_there(fake: Fake) -> None:
    fake.answers[MANIFEST] = [served(index("linux/arm64", "windows/amd64"))]
    with pytest.raises(UsageError, match="no image for linux/amd64; it has linux/arm64, windows/amd64"):
        fake.resolve()


def test_a_short_wait_is_kept_and_said_a_long_one_is_an_error(fake: Fake) -> None:
    limited = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached\\nyour limit"}]}'
    fake.answers[MANIFEST] = [Answer(429, limited, {"Retry-After": "7"}), Answer(429, limited), served(GOOD)]
    said: list[str] = []
    fake.resolve(settings=replace(fake.settings(), say=said.append))
    assert fake.waited == [7.0, 5.0]
    assert said[0] == f"{fake.host}: too many requests; waiting 7 s"
    fake.answers[MANIFEST] = [Answer(429, limited, {"Retry-After": "7200"})]
    with pytest.raises(
        HostError, match="asks to wait 120 minutes: TOOMANYREQUESTS You have reached your limit"
    ) as caught:
        fake.resolve()
    assert "docker login" in str(caught.value.fix)
    assert len(fake.waited) == 2


def test_a_registry_that_limits_for_ever_is_an_error(fake: Fake) -> None:
    fake.answers[MANIFEST] = [Answer(429, b"", {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"})]
    with pytest.raises(HostError, match="limits requests"):
        fake.resolve()
    assert fake.waited == [0.0, 0.0, 0.0]


def test_a_fault_that_passes_is_not_seen(fake: Fake) -> None:
    fake.answers[MANIFEST] = [Answer(502), served(GOOD)]
    assert fake.resolve() == sha256_digest(GOOD)


def test_a_fault_that_stays_is_said_in_the_registrys_words(fake: Fake) -> None:
    body = b'{"errors": [{"code": "UNSUPPORTED", "message": "not here"}]}'
    fake.answers[MANIFEST] = [Answer(405, body)]
    with pytest.raises(HostError, match="HTTP 405 UNSUPPORTED not here"):
        fake.resolve()


def test_an_unknown_tag_and_an_unknown_digest_differ(fake: Fake) -> None:
    with pytest.raises(UsageError, match="has no a:1"):
        fake.resolve()
    with pytest.raises(UsageError, match=f"has no {DIGEST} in a: mistyped, or deleted"):
        fake.resolve(f"a@{DIGEST}")


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"<html>", "text/html", "no manifest"),
        (b"[]", "text/html", "no manifest"),
        (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws", "no longer read"),
        (b'{"schemaVersion": 2, "config": {"mediaType": "application/vnd.x"}}', MANIFESTS[0], "no container image"),
        (b" " * (5 << 20), MANIFESTS[0], "too large"),
    ],
)
def test_what_is_no_image_is_refused(fake: Fake, data: bytes, kind: str, message: str) -> None:
    fake.answers[MANIFEST] = [Answer(200, data, {"Content-Type": kind})]
    with pytest.raises(SifkitError, match=message):
        fake.resolve()


def bearer(fake: Fake, realm: str = "") -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="{realm or f"http://{fake.host}/token?x=1"}",service="s"'}


def test_a_token_is_got_with_the_users_password_and_sent(fake: Fake) -> None:
    fake.answers[MANIFEST] = [Answer(401, b"", bearer(fake)), served(GOOD)]
    fake.answers["/token"] = [Answer(200, b'{"access_token": "T"}')]
    fake.resolve(settings=fake.settings(APPTAINER_DOCKER_USERNAME="u", APPTAINER_DOCKER_PASSWORD="p"))
    basic = "Basic " + base64.b64encode(b"u:p").decode()
    asked = "/token?x=1&service=s&scope=repository%3Aa%3Apull"
    assert fake.seen[-3:] == [(MANIFEST, ""), (asked, basic), (MANIFEST, "Bearer T")]


def test_an_identity_token_is_traded(fake: Fake, tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"auths": {fake.host: {"identitytoken": "I"}}})
    fake.answers[MANIFEST] = [Answer(401, b"", bearer(fake)), served(GOOD)]
    fake.answers["/token"] = [Answer(200, b'{"access_token": "T"}')]
    fake.resolve(settings=fake.settings(DOCKER_CONFIG=str(tmp_path)))
    assert fake.seen[-2:] == [("/token?x=1", ""), (MANIFEST, "Bearer T")]


def test_a_password_is_not_sent_in_the_clear_to_another_host(fake: Fake) -> None:
    client = Client("registry.invalid", fake.settings(APPTAINER_DOCKER_USERNAME="u", APPTAINER_DOCKER_PASSWORD="p"))
    client._base = "https://registry.invalid"
    with client, pytest.raises(HostError, match=r"sent to auth\.invalid without TLS: they were not sent"):
        client._token({"realm": "http://auth.invalid/token"}, "repository:a:pull")


def test_netrc_does_not_replace_what_we_send(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(write(tmp_path / "netrc", "machine 127.0.0.1 login other password other")))
    fake.answers[MANIFEST] = [served(GOOD)]
    fake.resolve()
    assert fake.seen[-1] == (MANIFEST, "")


def test_without_credentials_it_is_said_where_was_looked(fake: Fake, tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"credsStore": "not-here"})
    fake.answers[MANIFEST] = [Answer(401, b"", {"WWW-Authenticate": 'Basic realm="r"'})]
    with pytest.raises(HostError, match=r"asks for credentials for a, or has no such repository; none found") as caught:
        fake.resolve(settings=fake.settings(DOCKER_CONFIG=str(tmp_path)))
    assert f"looked in /nowhere/.apptainer/docker-config.json, {tmp_path}/config.json" in caught.value.message
    assert "docker-credential-not-here not installed" in caught.value.message
    assert (
        caught.value.fix
        == f"docker login {fake.host}, or apptainer registry login --username NAME docker://{fake.host}"
    )


@pytest.mark.parametrize("token", [b"{}", b"x", b"[]"])
def test_a_token_service_that_gives_none_is_named(fake: Fake, token: bytes) -> None:
    fake.answers[MANIFEST] = [Answer(401, b"", bearer(fake))]
    fake.answers["/token"] = [Answer(200, token)]
    with pytest.raises(HostError, match="gives no token"):
        fake.resolve()


def test_plain_http_elsewhere_is_refused_unless_it_is_allowed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sifkit.registry._is_loopback", lambda _: False)
    fake.answers[MANIFEST] = [served(GOOD)]
    with pytest.raises(HostError, match="speaks plain http") as caught:
        fake.resolve()
    assert "APPTAINER_NOHTTPS=1" in str(caught.value.fix)
    assert fake.resolve(settings=fake.settings(APPTAINER_NOHTTPS="1")) == sha256_digest(GOOD)


def test_a_registry_that_is_down_is_named(fake: Fake) -> None:
    reference = Reference.parse("127.0.0.1:9/a:1")
    with pytest.raises(HostError, match=r"127\.0\.0\.1:9 cannot be reached: 127\.0\.0\.1 does not answer"):
        digests.resolve(reference, fake.settings())


def test_a_blob_goes_on_where_it_stopped(fake: Fake) -> None:
    fake.answers["/v2/a/blobs/x"] = [Answer(206, b"cdef"), Answer(200, b"abcdef")]
    with Client(fake.host, fake.settings()) as client:
        reference = Reference.parse(f"{fake.host}/a:1")
        ask: Callable[[], bytes] = lambda: b"".join(client.blob(reference, "x", offset=2))  # noqa: E731
        assert ask() == b"cdef"
        assert ask() == b"cdef"  # from a registry that does not know ranges


# ---------------------------------------------------------------------------------------------- in the lock

PIN = BaseDigest("docker.io/library/debian:trixie-slim", DIGEST)
LOCK = parse_lock(lock_text(make_spec(), "torch==2.9.1", "numpy==2.0.0"), "x.lock")


def test_a_lock_keeps_the_digest_of_its_base_and_is_read_back() -> None:
    locked = with_base(LOCK, PIN)
    assert base_of(locked.text) == PIN
    again = parse_lock(locked.text, "x.lock")
    assert (again.packages, again.inputs_digest) == (LOCK.packages, LOCK.inputs_digest)
    assert with_base(again, None).text == LOCK.text
    assert with_base(again, PIN).text == locked.text


@pytest.mark.parametrize("line", ["# base: debian", "# base: debian@sha256:12", f"# base: a b@{DIGEST}"])
def test_a_line_that_is_no_digest_makes_a_lock_damaged(line: str) -> None:
    with pytest.raises(UsageError, match="not a lock as sifkit wrote it"):
        parse_lock(with_base(LOCK, PIN).text.replace(PIN.line(), line), "x.lock")


def test_what_moved_is_told_base_first() -> None:
    after = parse_lock(lock_text(make_spec(), "torch==2.9.2", "scipy==1.0"), "x.lock")
    other = replace(PIN, digest="sha256:" + "1" * 64)
    assert moved(with_base(LOCK, PIN), with_base(after, other)) == (
        f"base {PIN.name}: {PIN.digest} → {other.digest}",
        "numpy 2.0.0 is gone",
        "scipy 1.0 is new",
        "torch 2.9.1 → 2.9.2",
    )
    assert moved(LOCK, LOCK) == ()


def base(text: str) -> ImageBase:
    return ImageBase("x", DockerBase.model_validate({"bootstrap": "docker", "from": text}), "identity")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian:trixie-slim", f"debian@{DIGEST}"),
        ("docker.io/library/debian:trixie-slim", f"debian@{DIGEST}"),
        ("debian:bookworm", "debian:bookworm"),  # the lock has the digest of another
        (f"debian:bookworm@sha256:{'1' * 64}", f"debian@sha256:{'1' * 64}"),
    ],
)
def test_a_definition_gets_the_locked_digest(text: str, expected: str) -> None:
    source = pinned(base(text), with_base(LOCK, PIN)).source
    assert isinstance(source, DockerBase)
    assert source.from_ == expected


def test_other_bases_stay_as_they_are() -> None:
    scratch = ImageBase("x", Scratch(bootstrap="scratch"), "identity")
    assert pinned(scratch, with_base(LOCK, PIN)) is scratch
    assert reference_of(scratch.source) is None
