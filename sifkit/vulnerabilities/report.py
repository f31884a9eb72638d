"""What was found in a lock, as JSON and as a table, and what to do about it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from sifkit.printable import printable
from sifkit.vulnerabilities.database import Answer
from sifkit.vulnerabilities.locks import Locked
from sifkit.vulnerabilities.osv import Finding

_WITH_TORCH = ("torch", "torchaudio", "torchvision")


@dataclass(frozen=True)
class Judged:
    """A lock that was really checked."""

    locked: Locked
    answer: Answer
    findings: tuple[Finding, ...]
    ignored: tuple[Finding, ...]
    unused: tuple[str, ...]  # --ignore that fits nothing


def sort_out(locked: Locked, answer: Answer, found: Sequence[Finding], ignore: Iterable[str]) -> Judged:
    """Split findings by the names that are to be ignored; any of a vulnerability's names will do."""
    wanted = {name.upper(): name for name in ignore}
    names = {finding: {name.upper() for name in finding.ids} for finding in found}
    return Judged(
        locked,
        answer,
        tuple(finding for finding in found if names[finding].isdisjoint(wanted)),
        tuple(finding for finding in found if not names[finding].isdisjoint(wanted)),
        tuple(name for upper, name in wanted.items() if not any(upper in known for known in names.values())),
    )


def as_json(judged: Judged) -> dict[str, object]:
    """For machines."""
    answer = judged.answer
    return {
        "lock": judged.locked.where,
        "packages": len(judged.locked.lock.versions()),
        "database": {"source": answer.source, "entries": answer.total, "newest": answer.newest},
        "vulnerabilities": [asdict(finding) for finding in judged.findings],
        "ignored": [asdict(finding) for finding in judged.ignored],
    }


def headline(judged: Judged) -> str:
    """How much was checked against what, and what came of it."""
    answer, count = judged.answer, len(judged.findings)
    age = f", {answer.total} entries, the newest of {answer.newest or 'no date'}" if answer.total else ""
    found = f"{count} known {'vulnerability' if count == 1 else 'vulnerabilities'}" if count else "nothing known"
    ignored = f"; ignored: {', '.join(finding.ids[0] for finding in judged.ignored)}" if judged.ignored else ""
    return printable(
        f"{judged.locked.where}: {len(judged.locked.lock.versions())} packages, {found}{ignored} ({answer.source}{age})"
    )


def as_table(findings: Sequence[Finding]) -> Table:
    """One row a vulnerability."""
    table = Table(box=None, pad_edge=False)
    for title in ("package", "version", "fixed in", "known as", "severity", "what"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        certain = "" if finding.certain else "versions cannot be compared, look yourself: "
        cells = (
            finding.package,
            finding.version,
            finding.fixed or "no release",
            " ".join(finding.ids),
            " ".join(filter(None, (finding.severity, *finding.vectors))) or "not rated",
            certain + finding.summary,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def advice(judged: Judged) -> list[str]:
    """What a user of this project changes: keys of the spec, or the environment that an image starts from."""
    inherited = {package.name for package in judged.locked.lock.inherited}
    lines, requirements = [], []
    for name, version in {finding.package: finding.clean for finding in judged.findings}.items():
        if version is None:
            lines.append(f"{name}: no release is known without all of these")
        elif place := _place(name, inherited):
            lines.append(f"{name} >= {version}: {place}")
        else:
            requirements.append(f'"{name}>={version}"')
    if requirements:
        image = judged.locked.image or "IMAGE"
        key = f"packages: [{', '.join(requirements)}]"
        lines.append(f"in definitions/{image}.yaml: {key}; then sifkit lock {image}, and build it again")
    return [printable(line) for line in lines]


def _place(name: str, inherited: Container[str]) -> str | None:
    """Where a version is chosen; None for a package that a requirement of the spec's own may raise."""
    if name in inherited:
        return "in the environment that the image starts from; then sifkit lock"
    if name in _WITH_TORCH:
        return "by torch.version in the spec; then sifkit lock"
    return "by llamafactory.version in the spec; then sifkit lock" if name == "llamafactory" else None
