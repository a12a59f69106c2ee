"""Credentials that a server echoes are hidden before anything is kept or said."""

from __future__ import annotations

from pytest_llm_determinism.observe.secrets import credentials, hidden, hidden_bytes


def test_credentials_are_found_in_headers_and_url() -> None:
    headers = [("Authorization", "Bearer sk-live-12345"), ("X-API-Key", "key-67890"), ("accept", "application/json")]

    found = credentials(headers, "https://host/v1/chat/completions?key=query-secret&api-version=2024-10-21")

    assert found == ("sk-live-12345", "key-67890", "query-secret")


def test_placeholders_are_no_secrets() -> None:
    assert credentials([("authorization", "Bearer none")], "https://host/?key=x") == ()


def test_what_is_echoed_is_hidden() -> None:
    assert hidden("Incorrect key: sk-live-12345.", ["sk-live-12345"]) == "Incorrect key: [secret]."
    assert hidden_bytes(b'{"key":"sk-live-12345"}', ["sk-live-12345"]) == b'{"key":"[secret]"}'
