r"""JSON lines that are longer than a document may be: their text is split, not dropped.

Such a line cannot be parsed as a whole in bounded memory. Its text field is looked for in what is
in memory, and the string that begins there goes on as several records, cut between characters
and between escapes such as \u00e9 or the two halves of \ud83d\ude00.
"""

import json
import re
from collections.abc import Iterator

from electra_dist.data import records
from electra_dist.data.pieces import ByteBuffer
from electra_dist.data.records import Piece

_TOKEN = re.compile(rb'\s*+(?:"(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s"{}\[\],:]++)', re.DOTALL)
_COLON_AND_QUOTE = re.compile(rb'\s*+:\s*+"')
_STRING = re.compile(rb'(?:[^"\\\n]++|\\u[0-9a-fA-F]{4}|\\[^u\n])*+')
_FIRST_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}$")


def split_record(buffer: ByteBuffer, text_field: str, limit: int) -> Iterator[Piece]:
    """The record that begins the buffer, in pieces of at most `limit` bytes of its text.

    What follows the text field in the record is not looked at.
    """
    start = _text_start(buffer.data, text_field)
    if start < 0:
        yield buffer.skip_line(records.RECORD_TOO_LARGE)
        return
    buffer.advance(start)
    head = b"{" + json.dumps(text_field).encode() + b': "'
    scanned = 0  # up to here the string is neither ended nor inside an escape
    while True:
        scanned = _end_of(_STRING, buffer.data, scanned)
        stop = buffer.data[scanned : scanned + 1]
        if scanned > limit:
            cut = _safe_cut(buffer.data, limit)
            yield buffer.take(cut, splits=True, head=head, tail=b'"}\n')
            scanned -= cut
        elif stop == b'"':
            yield buffer.take(scanned, head=head, tail=b'"}\n')
            buffer.skip_line("")
            return
        elif buffer.ended or stop == b"\n" or len(buffer.data) > scanned + 12:
            # The line or the file ends inside the string, or an escape is none.
            yield buffer.skip_line(records.NOT_JSON)
            return
        else:
            buffer.grow()


def _text_start(data: bytearray, text_field: str) -> int:
    """Where the string of the record's text field begins, -1 where that is not in `data`."""
    depth = position = 0
    key_may_follow = False
    while token := _TOKEN.match(data, position):
        word = bytes(token[0].strip())
        position = token.end()
        if depth == 1 and key_may_follow and word.startswith(b'"'):
            after = _COLON_AND_QUOTE.match(data, position)
            if after and json.loads(word) == text_field:
                return after.end()
        depth += (word in (b"{", b"[")) - (word in (b"}", b"]"))
        key_may_follow = word in (b"{", b",")
    return -1


def _safe_cut(data: bytearray, limit: int) -> int:
    """At most `limit`: after a blank in the second half, else between characters and escapes."""
    if (cut := data.rfind(b" ", limit // 2, limit) + 1) > 0:
        return cut
    cut = _end_of(_STRING, data[:limit], 0)
    if half := _FIRST_HALF.search(data[cut - 6 : cut]):
        cut -= len(half[0])
    while data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _end_of(pattern: re.Pattern[bytes], data: bytearray, start: int) -> int:
    match = pattern.match(data, start)
    assert match is not None, "the pattern matches the empty string"
    return match.end()
