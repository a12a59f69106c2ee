"""The endpoint that the code under test is pointed at: exported to it, and started where it is the bundled server."""

from __future__ import annotations

import os
from typing import Any

from pytest_llm_determinism.settings import REFERENCE, SettingError

BASE_URL = "OPENAI_BASE_URL"
API_KEY = "OPENAI_API_KEY"
PLACEHOLDER_KEY = "placeholder-no-key-is-needed"


class Endpoint:
    """Open from the start of the session to its end.

    Attributes:
        url: the base URL in force, None if the SDK's own environment decides.
        origins: see `shapes.recognise`: the bundled server has another port in each session.
    """

    def __init__(self) -> None:
        self.url: str | None = None
        self.origins: dict[str, str] = {}
        self._server: Any = None
        self._before: dict[str, str | None] = {}

    def open(self, setting: str | None, given: str | None) -> None:
        """Export the endpoint.

        Args:
            setting: the base URL or ``reference``.
            given: the address of a server that the controlling process has started already.

        Raises:
            SettingError: the bundled server cannot be started.
        """
        if setting is None:
            return
        if setting == REFERENCE:
            from pytest_llm_determinism.reference import FINGERPRINT

            self.url = given or self._start()
            self.origins[self.url.removesuffix("/v1")] = f"{REFERENCE}:{FINGERPRINT}"
        else:
            self.url = setting
        self._export(BASE_URL, self.url)
        if not os.environ.get(API_KEY):
            self._export(API_KEY, PLACEHOLDER_KEY)

    def close(self) -> None:
        """Stop the server, if one was started, and take back what was exported."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before.clear()

    def _start(self) -> str:
        from pytest_llm_determinism.reference.process import ReferenceUnavailable, start_reference_server

        try:
            self._server = start_reference_server()
        except ReferenceUnavailable as error:
            raise SettingError(f"endpoint={REFERENCE}: {error}") from None
        url: str = self._server.url
        return url

    def _export(self, name: str, value: str) -> None:
        self._before.setdefault(name, os.environ.get(name))
        os.environ[name] = value
