"""Our own HTTP: sessions that use the proxies and certificates that they are given.

requests itself looks at this process's environment, which knows nothing of the site file, and there lets
REQUESTS_CA_BUNDLE go before a session's own certificates.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import should_bypass_proxies
from urllib3.util.retry import Retry

_KINDS = ("http", "https", "all", "no")


def proxies_for(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The proxies for an address, by its scheme; none for what no_proxy names."""
    found = {name: environ.get(f"{name}_proxy") or environ.get(f"{name.upper()}_PROXY") for name in _KINDS}
    if should_bypass_proxies(url, no_proxy=found.pop("no") or ""):
        return {}
    return {name: value for name, value in found.items() if value}


class Adapter(HTTPAdapter):
    """Sends through the proxies of `environ`, and trusts `trusted`: a bundle, or a context of the caller's."""

    def __init__(
        self, environ: Mapping[str, str] | None, trusted: Path | ssl.SSLContext | None, retry: Retry | int = 0
    ) -> None:
        self._environ, self._trusted = environ, trusted
        super().__init__(max_retries=retry)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Called by requests."""
        super().init_poolmanager(*args, **(options | self._context()))

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Called by requests. The server behind a proxy has the same certificates."""
        return super().proxy_manager_for(proxy, **(options | self._context()))

    def _context(self) -> dict[str, Any]:
        return {"ssl_context": self._trusted} if isinstance(self._trusted, ssl.SSLContext) else {}

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """One request, to where it goes."""
        if self._environ is not None:
            options["proxies"] = proxies_for(request.url or "", self._environ)
        if isinstance(self._trusted, Path):
            options["verify"] = str(self._trusted)
        return super().send(request, *args, **options)
