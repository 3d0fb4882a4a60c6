"""Files of lines, plain text and JSON lines: cutting them into pieces, parsing the pieces.

Cutting is a search in bytes only, so that one parent feeds many workers. A piece is then decoded,
cleaned and split as a whole: each step is one pass of C code over about 1 MiB.
"""

import json
import re
from collections.abc import Iterator

from electra_dist.data import records
from electra_dist.data.cleaning import DOCUMENT_END, clean, join_texts
from electra_dist.data.documents import add_documents, add_texts
from electra_dist.data.input_files import InputFile
from electra_dist.data.long_records import split_record
from electra_dist.data.pieces import open_buffer
from electra_dist.data.records import ParsedPiece, Piece, SourceOptions

# Blank lines in bytes, the common kinds first: a literal first byte is searched 20 times as fast.
# "\r\n" is one line end, not two: it is a blank inside the first, and atomic in the last.
_BLANKS = rb"(?:[ \t\f\v]|\xc2\xa0|\xe3\x80\x80)*+"
_LINE_END = rb"(?>\r\n|[\n\r]|\xc2\x85|\xe2\x80[\xa8\xa9])"
_BLANK_LINE_KINDS = (
    re.compile(rb"\n(?:[ \t\f\v\r]|\xc2\xa0|\xe3\x80\x80)*+\n"),
    re.compile(rb"\r(?!\n)" + _BLANKS + rb"[\n\r]"),
)
_RARE_BLANK_LINE = re.compile(_LINE_END + _BLANKS + _LINE_END)
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n)+")


class _BadText(Exception):
    """Why a JSON record holds no text."""


def text_pieces(file: InputFile, file_index: int, options: SourceOptions) -> Iterator[Piece]:
    """Cuts plain text at blank lines; a document over max_document_bytes at white space."""
    limit = max(options.max_document_bytes, records.PIECE_BYTES)
    with open_buffer(file, file_index) as buffer:
        searched = 0
        while not buffer.ended:
            cut = _last_document_end(buffer.data, searched)
            if cut == 0 and len(buffer.data) > limit:
                cut = _rare_document_end(buffer.data)
            if cut:
                yield buffer.take(cut)
            elif len(buffer.data) > limit:
                yield buffer.take(_split_point(buffer.data, limit), splits=True)
            else:
                searched = _before_trailing_blanks(buffer.data)
                buffer.grow()
                continue
            searched = 0
            buffer.grow()
        yield from buffer.rest()


def jsonl_pieces(file: InputFile, file_index: int, options: SourceOptions) -> Iterator[Piece]:
    """Cuts JSON lines at line ends; the text of a line over max_document_bytes is split."""
    limit = max(options.max_document_bytes, records.PIECE_BYTES)
    with open_buffer(file, file_index) as buffer:
        searched = 0
        while not buffer.ended:
            if cut := buffer.data.rfind(b"\n", searched) + 1:
                yield buffer.take(cut)
            elif len(buffer.data) > limit:
                yield from split_record(buffer, options.text_field, limit)
            else:
                searched = len(buffer.data)
                buffer.grow()
                continue
            searched = 0
            buffer.grow()
        yield from buffer.rest()


def parse_text(piece: Piece, options: SourceOptions) -> ParsedPiece:
    """Plain text: lines are split into sentences; blank lines separate documents."""
    parsed = ParsedPiece()
    try:
        text = _without_bom(piece, parsed).decode()
    except UnicodeDecodeError:
        text = _decode_lines(piece, parsed, options.max_sentence_bytes)
    text = clean(join_texts([text], parsed.cleaning), parsed.cleaning).strip()
    text = _BLANK_LINES.sub(DOCUMENT_END, text)
    if text:
        parsed.num_records += text.count("\n") + text.count(DOCUMENT_END) + 1
    add_documents(parsed, text, piece, options)
    parsed.documents = [document for document in parsed.documents if document.sentences]
    return parsed


def parse_jsonl(piece: Piece, options: SourceOptions) -> ParsedPiece:
    """JSON lines: each line is a document; the lines of its text field are split into sentences."""
    parsed = ParsedPiece()
    payload = _without_bom(piece, parsed)
    offset = piece.offset + len(piece.payload) - len(payload)
    texts = []
    for line in payload.split(b"\n"):
        if line and not line.isspace():
            parsed.num_records += 1
            try:
                texts.append(_record_text(line, options.text_field))
            except _BadText as bad:
                parsed.bad_records.append(piece.record(offset, str(bad)))
        offset += len(line) + 1
    add_texts(parsed, texts, piece, options)
    return parsed


def _record_text(line: bytes, text_field: str) -> str:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise _BadText(records.NOT_UTF8) from None
    except (ValueError, RecursionError):  # RecursionError: a line of a million brackets
        raise _BadText(records.NOT_JSON) from None
    if not isinstance(record, dict):
        raise _BadText(records.NOT_AN_OBJECT)
    if text_field not in record:
        raise _BadText(records.NO_FIELD)
    text = record[text_field]
    if not isinstance(text, str):
        raise _BadText(records.FIELD_NOT_A_STRING)
    if b"\\u" in line:
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON may say "\ud800", which no tokenizer and no file can take
            raise _BadText(records.NOT_UNICODE) from None
    return text


def _without_bom(piece: Piece, parsed: ParsedPiece) -> bytes:
    if piece.offset == 0 and piece.payload.startswith(b"\xef\xbb\xbf"):
        parsed.cleaning["bom"] += 1
        return piece.payload[3:]
    return piece.payload


def _decode_lines(piece: Piece, parsed: ParsedPiece, max_line_bytes: int) -> str:
    """The lines that are UTF-8; the others are named. A very long line counts as several."""
    lines = []
    offset = piece.offset
    for line in piece.payload.splitlines(keepends=True):
        for part in _parts(line, max_line_bytes):
            try:
                lines.append(part.decode())
            except UnicodeDecodeError:
                parsed.bad_records.append(piece.record(offset, records.NOT_UTF8))
                parsed.num_records += 1
            offset += len(part)
    return "".join(lines)


def _parts(line: bytes, max_bytes: int) -> Iterator[bytes]:
    while len(line) > max_bytes:
        cut = _split_point(line, max_bytes)
        yield line[:cut]
        line = line[cut:]
    yield line


def _last_document_end(data: bytearray, start: int) -> int:
    """The end of the last blank line from `start` on, or of another late one, or 0."""
    found = data.rfind(b"\n\n", start)
    found = max(found, data.rfind(b"\n\r\n", max(found, start)))
    if found >= 0:
        return data.index(b"\n", found + 1) + 1
    for kind in _BLANK_LINE_KINDS:
        if end := _last_match_end(kind, data, start):
            return end
    return 0


def _before_trailing_blanks(data: bytearray) -> int:
    """From where a blank line may begin that only the next bytes complete."""
    end = data[-4096:]
    return len(data) - len(end) + len(end.rstrip())


def _rare_document_end(data: bytearray) -> int:
    """The same for Unicode's line ends: looked for only where a document would be split else."""
    return _last_match_end(_RARE_BLANK_LINE, data, 0)


def _last_match_end(pattern: re.Pattern[bytes], data: bytearray, start: int) -> int:
    end = 0
    for match in pattern.finditer(data, start):
        end = match.end()
    return end


def _split_point(data: bytes | bytearray, limit: int) -> int:
    """At most `limit`: after a line end or a blank in the second half, else between characters."""
    for mark in (b"\n", b" "):
        if (cut := data.rfind(mark, limit // 2, limit) + 1) > 0:
            return cut
    cut = limit
    while cut > limit - 4 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
