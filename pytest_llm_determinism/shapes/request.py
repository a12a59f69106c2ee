"""What identifies a request: its canonical form, without what is no part of the question."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pytest_llm_determinism.shapes.answer import Family
from pytest_llm_determinism.shapes.hooked import Hook

SCHEMA = 2
"""Part of every key: a change of what identifies a request must not find the samples of another meaning."""

SECRET_PARAMETERS = frozenset(
    [
        "key",
        "api_key",
        "apikey",
        "api-key",
        "access_token",
        "auth_token",
        "token",
        "code",
        "sig",
        "signature",
        "secret",
        "password",
        "subscription-key",
    ]
)

_CONVERSATION_FIELDS = frozenset(("messages", "input", "contents", "chat_history", "tool_results"))
"""Fields of a body in which the application sends back what the provider said."""

# Ids and signatures that the provider made and the application sends back. They differ in every run without being part
# of the question, so they are renamed by order of appearance.
_ID_FIELDS = frozenset(
    (
        "id",
        "tool_call_id",
        "call_id",
        "tool_use_id",
        "toolUseId",
        "item_id",
        "signature",
        "thoughtSignature",
        "thought_signature",
        "encrypted_content",
        "encrypted_index",
        "encrypted_stdout",
        "redactedContent",
    )
)

# Where an application's own data stands in a conversation: an id in it is one of its own, and part of the question.
_DATA_FIELDS = frozenset(("args", "arguments", "input", "response", "json", "parameters", "output"))


class CannotOverride(ValueError):
    """An override that cannot be set in this request, with the reason."""


@dataclass(frozen=True, eq=False, slots=True)
class Rules:
    """What a session and its settings make of requests. Equal only to itself, so that it is cheap to look up by.

    Attributes:
        origins: names for origins (``http://127.0.0.1:4711``) whose address changes from session to session although
            the server behind it is the same.
        ignore: paths in the body (``metadata.trace_id``, ``messages[0].name``, ``messages[*].name``) that are no part
            of the question.
        override: values set in the body, by dotted path; ``model`` is set in the URL where an API has it there.
        output: reads the output of APIs that we do not know.
    """

    origins: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    override: Mapping[str, Any] = field(default_factory=dict)
    output: Hook | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One recognised request.

    Attributes:
        family: the API family.
        key: SHA-256 (hex) of the canonical request.
        canonical: the canonical request as JSON text: schema, API, method, URL without secrets, body.
        stream: whether a streamed answer was asked for.
        url, body: as the request is to be sent; another than the application's only where settings override it.
        rewritten: whether they are.
        previous: the provider's name for the answer that this request goes on from, which then is no part of the
            canonical request.
        hook: reads the answer, where the family is not one of ours.
    """

    family: Family
    key: str
    canonical: str
    stream: bool
    url: str
    body: bytes
    rewritten: bool = False
    previous: str | None = None
    hook: Hook | None = None

    def after(self, previous: str) -> ModelCall:
        """The call with what it goes on from as part of what identifies it."""
        return replace(self, key=_digest(f"{self.key}\n{previous}"), previous=None)

    def plainly(self, question: str, tokens: int | None) -> ModelCall | None:
        """A call of the same model at the same address that asks this question; None where none can be made.

        Args:
            tokens: of the longest answer; None where the request may not limit it further.
        """
        plain = self.family.plain
        body = None if plain is None else plain(json.loads(self.body), question, tokens)
        if body is None:
            return None
        return replace(
            self,
            key="",
            canonical="",
            stream=self.family.streams(urlsplit(self.url).path, body),
            body=json.dumps(body).encode(),
            rewritten=True,
            previous=None,
        )


def model_call(family: Family, url: str, body: bytes, content: dict[str, Any], rules: Rules) -> ModelCall:
    """A request of a family that was told by its route and body.

    Raises:
        CannotOverride: a setting that overrides something which this request does not let be overridden.
    """
    sent_url, sent = url, content
    if rules.override:
        sent_url, sent = _overridden(family, url, content, rules.override)
    rewritten = sent_url != url or sent != content
    question = sent
    for path in rules.ignore:
        question = without(question, path)
    previous = question.get("previous_response_id")
    if isinstance(previous, str):
        question = {name: value for name, value in question.items() if name != "previous_response_id"}
    try:
        canonical = _canonical(family, public_url(sent_url, rules.origins), question)
    except RecursionError:
        canonical = _canonical(family, public_url(sent_url, rules.origins), _unread(body))
    return ModelCall(
        family=family,
        key=_digest(canonical),
        canonical=canonical,
        stream=family.streams(urlsplit(sent_url).path, sent),
        url=sent_url,
        body=json.dumps(sent, ensure_ascii=False).encode("utf-8", "surrogatepass") if rewritten else body,
        rewritten=rewritten,
        previous=previous if isinstance(previous, str) else None,
    )


def model_of(family: Family, url: str, body: Mapping[str, Any]) -> str | None:
    """The model that a request asks, as its body or its URL names it."""
    if family.model_in_body and isinstance(body.get("model"), str):
        return str(body["model"])
    found = family.model_path.search(urlsplit(url).path) if family.model_path is not None else None
    return unquote(found["model"]) if found is not None else None


def unknown_call(family: Family, url: str, body: bytes, rules: Rules) -> ModelCall:
    """A request of an API that only a hook knows, with any body."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        call = model_call(family, url, body, content, rules)
    else:
        if rules.override:
            raise CannotOverride("its body is no JSON object")
        canonical = _canonical(family, public_url(url, rules.origins), _unread(body))
        call = ModelCall(family, _digest(canonical), canonical, False, url, body)
    return replace(call, hook=rules.output)


def _unread(body: bytes) -> dict[str, Any]:
    """What stands for a body that is no JSON object, or is nested deeper than Python recurses."""
    return {"sha256": hashlib.sha256(body).hexdigest()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# The URL


def public_url(url: str, origins: Mapping[str, str]) -> str:
    """The URL without user, password, fragment and the values of parameters that carry secrets."""
    split = urlsplit(url)
    host = split.hostname or ""
    origin = f"{split.scheme}://{f'[{host}]' if ':' in host else host}{f':{split.port}' if split.port else ''}"
    query = [
        (name, "" if name.lower() in SECRET_PARAMETERS else value)
        for name, value in parse_qsl(split.query, keep_blank_values=True)
    ]
    suffix = "?" + urlencode(sorted(query)) if query else ""
    # HTTP libraries differ in which characters of a path they quote.
    path = quote(unquote(split.path), safe="/:@!$&'()*+,;=~")
    return origins.get(origin, origin) + path.rstrip("/") + suffix


# Overriding


def _overridden(
    family: Family, url: str, content: dict[str, Any], override: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    changed: dict[str, Any] = json.loads(json.dumps(content))
    for name, value in override.items():
        if name != "model":
            _set(changed, family.places.get(name, name).split("."), value)
            continue
        split = urlsplit(url)
        found = family.model_path.search(split.path) if family.model_path is not None else None
        if found is not None:
            if not isinstance(value, str):
                raise CannotOverride(f"the URL names the model, and {value!r} is no name")
            start, end = found.span("model")
            url = urlunsplit(split._replace(path=split.path[:start] + quote(value, safe="") + split.path[end:]))
        elif not family.model_in_body:
            raise CannotOverride(f"{family.name} has the model in its URL, and it is not found in {split.path}")
        if family.model_in_body and (found is None or "model" in changed):
            changed["model"] = value
    return url, changed


def _set(content: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise CannotOverride(f"{'.'.join(path)} cannot be set, since {name} is no JSON object in it")
        content = inner
    content[last] = value


# Ignoring

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\*)\]")


def path_steps(path: str) -> list[str | int | None]:
    """The steps of a path such as ``messages[0].name``: names, indices, None for ``[*]``.

    Raises:
        ValueError: it is no such path.
    """
    text = path.removeprefix("$.").removeprefix("$")
    steps: list[str | int | None] = []
    at = 0
    while at < len(text):
        if steps and text[at] == ".":
            at += 1
        found = _STEP.match(text, at)
        if found is None:
            raise ValueError(f"not a path: {path!r}")
        steps.append(found[1] or (None if found[2] == "*" else int(found[2])))
        at = found.end()
    if not steps or not isinstance(steps[0], str) or text.endswith("."):
        raise ValueError(f"not a path: {path!r}")
    return steps


def without(content: Any, path: str) -> Any:
    """A JSON value without what stands at a path; itself where nothing does."""
    return _without(content, path_steps(path))


def _without(value: Any, steps: list[str | int | None]) -> Any:
    step, *rest = steps
    if isinstance(value, dict) and step in value:
        inner = {name: part for name, part in value.items() if name != step}
        return {**inner, step: _without(value[step], rest)} if rest else inner
    if isinstance(value, list) and not isinstance(step, str):
        numbers = range(len(value)) if step is None else [step] if step < len(value) else []
        if rest:
            return [_without(part, rest) if number in numbers else part for number, part in enumerate(value)]
        return [part for number, part in enumerate(value) if number not in numbers]
    return value


# The canonical form


def _canonical(family: Family, url: str, body: dict[str, Any]) -> str:
    names: dict[str, str] = {}
    renamed = {
        field: _rename_ids(value, names) if field in _CONVERSATION_FIELDS else _plain(value)
        for field, value in body.items()
    }
    return json.dumps(
        {"schema": SCHEMA, "api": family.name, "method": "POST", "url": url, "body": renamed},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )


def question(canonical: str) -> str:
    """SHA-256 (hex) of what a canonical request asks, whichever server it asks: all of it but the URL's origin."""
    request = json.loads(canonical)
    return _digest(json.dumps({**request, "url": _ORIGIN.sub("", request["url"])}, sort_keys=True))


_ORIGIN = re.compile("[^/]*(//[^/]*)?")


def _rename_ids(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        if value.get("type") == "redacted_thinking":
            # Its data is encrypted, and another in every run.
            value = {**value, "data": {"id": value.get("data")}}
        return {field: _renamed(field, part, names) for field, part in value.items()}
    if isinstance(value, list):
        return [_rename_ids(part, names) for part in value]
    return _plain(value)


def _renamed(field: str, value: Any, names: dict[str, str]) -> Any:
    if field in _ID_FIELDS and isinstance(value, str):
        return names.setdefault(value, f"id-{len(names) + 1}")
    return _plain(value) if field in _DATA_FIELDS else _rename_ids(value, names)


def _plain(value: Any) -> Any:
    """Numbers in one form: SDKs write 0 and 0.0 for the same temperature."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {field: _plain(part) for field, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
