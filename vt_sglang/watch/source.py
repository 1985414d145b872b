# SPDX-License-Identifier: Apache-2.0
"""What is asked of a server: `/metrics` and `/server_info`; and what it is told."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 5.0
"""/server_info passes through the scheduler, which answers between two forwards."""


class AddressError(ValueError):
    """No address that a server could have."""


class NoAnswerError(Exception):
    """The server does not answer, or not with what was asked for."""


def normalized(url: str) -> str:
    """The address of a server, with its scheme, without a trailing slash or path of a metric. AddressError."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise AddressError(f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise AddressError(f"{url} is no address of a server; give it as http://HOST:PORT")
    if not (parts.path.isascii() and parts.path.isprintable()) or " " in parts.path:
        raise AddressError(f"{url}: a path is of printable ASCII; write other characters as %XX")
    path = parts.path.rstrip("/")
    for known in ("/metrics", "/server_info"):
        path = path.removesuffix(known)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


class Source:
    """One server."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """api_key: that the server was started with. AddressError if the address is none."""
        self.url = normalized(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise AddressError("the API key holds characters, a line end perhaps, that no key can have")
        self.api_key = api_key
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout_s = timeout_s
        # Neither a proxy of the environment nor anything but the server itself is asked.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def metrics(self) -> str | None:
        """The text of /metrics; None where the server has none. NoAnswerError."""
        answer = self._get("/metrics")
        return None if answer is None else answer.decode(errors="replace")

    def info(self) -> dict[str, Any] | None:
        """What /server_info says; None where the server has none. NoAnswerError."""
        answer = self._get("/server_info")
        if answer is None:
            return None
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise NoAnswerError(f"{self.url}/server_info is not JSON; is this the server of an SGLang?")
        return found

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers to this one. NoAnswerError, also where there is nothing at this path."""
        headers = self._headers | {"Content-Type": "application/json"}
        answer = self._ask(path, urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))
        try:
            return json.loads(answer or b"")
        except ValueError:
            raise NoAnswerError(f"{self.url}{path} does not answer as an SGLang server does") from None

    def _get(self, path: str) -> bytes | None:
        """The body; None if there is nothing at this path."""
        return self._ask(path, urllib.request.Request(self.url + path, headers=self._headers))

    def _ask(self, path: str, request: urllib.request.Request) -> bytes | None:
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 405):
                return None
            if error.code in (401, 403):
                raise NoAnswerError(f"{self.url}{path} asks for a key: give it with --api-key") from None
            raise NoAnswerError(f"{self.url}{path} answers with status {error.code}") from None
        except urllib.error.URLError as error:
            raise NoAnswerError(f"no server answers at {self.url}: {error.reason}") from None
        except TimeoutError:
            raise NoAnswerError(f"{self.url}{path} gave no answer within {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{self.url}{path}: {error or type(error).__name__}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_options: Any) -> None:
        """Nothing beyond the address that was given is asked: a redirection is an error like any other status."""
