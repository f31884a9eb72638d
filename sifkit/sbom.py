"""A CycloneDX 1.6 bill of materials of an image. Pure: the same image and time give the same bytes.

Package URLs: github.com/package-url/purl-spec, types `pypi` and `deb`.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from sifkit.model import Debootstrap, Image, Inherited, LockedPackage, digest_of
from sifkit.provenance import DebianPackage


def sbom_of(
    image: Image,
    debian: Iterable[DebianPackage],
    python: Iterable[LockedPackage | Inherited],
    *,
    time: int,
    sifkit_version: str,
) -> str:
    """The image with its Debian and Python packages as JSON. `time`: in seconds, what it says of its making."""
    root = _image(image)
    vendor = _vendor(image)
    components = [*(_debian(package, vendor) for package in debian), *map(_python, python)]
    tool = Component(type=ComponentType.APPLICATION, name="sifkit", version=sifkit_version, bom_ref="sifkit")
    metadata = BomMetaData(
        component=root,
        tools=ToolRepository(components=[tool]),
        timestamp=datetime.datetime.fromtimestamp(time, datetime.timezone.utc),
    )
    bom = Bom(metadata=metadata, components=components, serial_number=_number(root, tool, components, time))
    bom.register_dependency(root, components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _number(root: Component, tool: Component, components: Iterable[Component], time: int) -> uuid.UUID:
    """What the bill holds gives its number, so that one image has one number wherever it is made."""
    held = [str(time), str(tool.version), root.name, *(f"{said.name} {said.value}" for said in root.properties)]
    for component in components:
        details = [
            *(f"{found.content}" for found in component.hashes),
            *(str(one.value) for one in component.properties),
        ]
        held.append(" ".join([str(component.bom_ref.value), *details]))
    return uuid.uuid5(uuid.NAMESPACE_URL, f"urn:sha256:{digest_of(sorted(held))}")


def _image(image: Image) -> Component:
    spec, lock = image.spec, image.lock
    facts = {
        "sifkit:base": image.base.name or image.base.source.bootstrap,
        "sifkit:python": spec.python,
        "sifkit:spec-digest": f"sha256:{spec.digest()}",
        "sifkit:lock-digest": f"sha256:{lock.digest()}",
    }
    return Component(
        type=ComponentType.CONTAINER,
        name=spec.name,
        version=spec.llamafactory.version,
        bom_ref="image",
        properties=[Property(name=name, value=value) for name, value in facts.items()],
    )


def _python(package: LockedPackage | Inherited) -> Component:
    purl = PackageURL("pypi", None, package.name, package.version)
    hashes, properties = [], [Property(name="sifkit:inherited", value="from the base's environment")]
    if isinstance(package, LockedPackage):
        hashes, properties = [_sha256(package.sha256)], [Property(name="sifkit:file", value=package.file)]
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=hashes,
        properties=properties,
    )


def _vendor(image: Image) -> str:
    """Whose packages they are: the same name and version is another file at Debian and at Ubuntu."""
    source = image.base.source
    said = source.suite if isinstance(source, Debootstrap) else getattr(source, "from_", "")
    return "ubuntu" if "ubuntu" in f"{image.base.name} {said}" else "debian"


def _debian(package: DebianPackage, vendor: str) -> Component:
    purl = PackageURL("deb", vendor, package.name, package.version, {"arch": package.architecture})
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[_sha256(package.sha256)] if package.sha256 else [],
    )


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
