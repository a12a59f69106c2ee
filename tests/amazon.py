"""Amazon's event stream as a server writes it: binary messages with headers, a JSON payload, and two checksums."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable
from typing import Any

CONTENT_TYPE = "application/vnd.amazon.eventstream"


def message(payload: bytes, **headers: str) -> bytes:
    """One message; the headers' names are written without their colon, and with underscores for dashes."""
    block = b""
    for name, value in headers.items():
        field, content = f":{name.replace('_', '-')}".encode(), value.encode()
        block += struct.pack("!B", len(field)) + field + struct.pack("!BH", 7, len(content)) + content
    prelude = struct.pack("!II", len(block) + len(payload) + 16, len(block))
    whole = prelude + struct.pack("!I", zlib.crc32(prelude)) + block + payload
    return whole + struct.pack("!I", zlib.crc32(whole))


def event_stream(events: Iterable[dict[str, Any]]) -> bytes:
    """Events, each ``{event type: payload}``, as one stream."""
    return b"".join(
        message(json.dumps(payload).encode(), event_type=kind, content_type="application/json", message_type="event")
        for event in events
        for kind, payload in event.items()
    )


def chunks(events: Iterable[Any]) -> bytes:
    """A provider's own events, as a stream of Bedrock's ``invoke``."""
    return event_stream(
        {"chunk": {"bytes": base64.b64encode(json.dumps(event).encode()).decode(), "p": "abcdef"}} for event in events
    )
