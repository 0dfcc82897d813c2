"""Reading JSON of clients: only what can be stored and answered gets through."""

import json
import re
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser
from rest_framework.utils import json as strict_json

# How NUL, which PostgreSQL stores in no text, and half a pair of surrogates, which is no text at
# all, come in JSON. Nearly no body has them, and looking for them costs nothing.
_ESCAPED = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)
_ODD = re.compile("[\0\ud800-\udfff]")


def has_odd_text(value: Any) -> bool:
    """Whether some text in a JSON value, keys included, can't be stored."""
    if isinstance(value, str):
        return bool(_ODD.search(value))
    if isinstance(value, dict):
        return any(has_odd_text(key) or has_odd_text(one) for key, one in value.items())
    return isinstance(value, list) and any(has_odd_text(one) for one in value)


def mended(value: Any) -> Any:
    """A JSON value with odd characters replaced, and null for numbers that JSON doesn't have."""
    if isinstance(value, str):
        return _ODD.sub("\ufffd", value)
    if isinstance(value, dict):
        return {mended(key): mended(one) for key, one in value.items()}
    if isinstance(value, list):
        return [mended(one) for one in value]
    if isinstance(value, float) and value - value != 0:  # not finite
        return None
    return value


class JSONParser(BaseParser):
    """JSON, refused with 400 when it is malformed, nested too deep, or holds text that is none."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        text = _text(stream, parser_context)
        try:
            data = strict_json.loads(text)
            odd = _ESCAPED.search(text) is not None and has_odd_text(data)
        except ValueError as error:
            raise ParseError(f"JSON parse error - {error}") from None
        except RecursionError:
            raise ParseError("JSON parse error - it is nested too deep") from None
        if odd:
            raise ParseError("Texts can't hold NUL characters or half surrogate pairs.")
        return data


class MendingJSONParser(BaseParser):
    """JSON of nodes. What an engine prints must not keep a node from reporting: it is mended."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        try:
            return mended(json.loads(_text(stream, parser_context)))
        except (ValueError, RecursionError) as error:
            raise ParseError(f"JSON parse error - {error}") from None


def _text(stream: Any, parser_context: Any) -> str:
    encoding = (parser_context or {}).get("encoding", "utf-8")
    limit: int = settings.DATA_UPLOAD_MAX_MEMORY_SIZE  # which Django heeds for forms alone
    raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise RequestDataTooBig
    try:
        return str(raw, encoding)
    except (LookupError, ValueError) as error:
        raise ParseError(f"JSON parse error - {error}") from None
