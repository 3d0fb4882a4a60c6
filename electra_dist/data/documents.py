"""From the text of a piece to its documents: sentences found, limits kept."""

from collections.abc import Iterator, Sequence

from electra_dist.data import records
from electra_dist.data.cleaning import DOCUMENT_END, clean, join_texts
from electra_dist.data.records import Document, ParsedPiece, Piece, SourceOptions
from electra_dist.data.sentences import SPLITTERS

# Texts that are cleaned together. Each call costs 4 us, which short texts share; but one emoji
# makes Python hold all that it is joined to in four bytes a character.
_BLOCK_CHARACTERS = 16 << 10


def add_texts(
    parsed: ParsedPiece, texts: Sequence[str], piece: Piece, options: SourceOptions
) -> None:
    """Adds one document for each text, in order; a text without words gives an empty one."""
    block: list[str] = []
    num_characters = 0
    for text in texts:
        block.append(text)
        num_characters += len(text)
        if num_characters >= _BLOCK_CHARACTERS:
            _add_block(parsed, block, piece, options)
            block, num_characters = [], 0
    if block:
        _add_block(parsed, block, piece, options)


def add_documents(parsed: ParsedPiece, text: str, piece: Piece, options: SourceOptions) -> None:
    """Adds the documents of a cleaned text, in which `DOCUMENT_END` stands between them."""
    split = SPLITTERS[options.splitter]
    for part in text.split(DOCUMENT_END):
        sentences = tuple(filter(None, map(str.strip, split(part))))
        if _may_exceed(part, options.max_sentence_bytes) and any(
            _may_exceed(sentence, options.max_sentence_bytes) for sentence in sentences
        ):
            cut = [s for whole in sentences for s in _cut(whole, options.max_sentence_bytes)]
            _note(parsed, "split_sentences", len(cut) - len(sentences), piece)
            sentences = tuple(cut)
        if _may_exceed(part, options.max_document_bytes):
            documents = list(_grouped(sentences, options.max_document_bytes))
            _note(parsed, "split_documents", len(documents) - 1, piece)
            parsed.documents.extend(documents)
        else:
            parsed.documents.append(Document(sentences))


def _may_exceed(text: str, max_bytes: int) -> bool:
    return len(text) * 4 > max_bytes  # a character has at most 4 bytes


def note_continued(parsed: ParsedPiece, piece: Piece) -> None:
    """Names and counts the split that a piece begins with, if it does."""
    if piece.continues:
        _note(parsed, "split_documents", 1, piece)


def _add_block(
    parsed: ParsedPiece, texts: Sequence[str], piece: Piece, options: SourceOptions
) -> None:
    joined = join_texts(texts, parsed.cleaning)
    add_documents(parsed, clean(joined, parsed.cleaning), piece, options)


def _note(parsed: ParsedPiece, what: str, number: int, piece: Piece) -> None:
    if number > 0:
        parsed.cleaning[what] += number
        parsed.bad_records.append(piece.record(piece.offset, records.SPLITS[what], kept=True))


def _cut(sentence: str, max_bytes: int) -> Iterator[str]:
    """The sentence in parts of at most `max_bytes` of UTF-8, cut at white space where there is."""
    if not _may_exceed(sentence, max_bytes) or len(sentence.encode()) <= max_bytes:
        yield sentence
        return
    size = max_bytes // 4  # in characters: simple, and still a long sentence
    start = 0
    while len(sentence) - start > size:
        end = sentence.rfind(" ", start + size // 2, start + size) + 1 or start + size
        if part := sentence[start:end].strip():
            yield part
        start = end
    if part := sentence[start:].strip():
        yield part


def _grouped(sentences: Sequence[str], max_bytes: int) -> Iterator[Document]:
    """Consecutive sentences in documents of at most `max_bytes`; no sentences: one, empty."""
    group: list[str] = []
    num_bytes = 0
    for sentence in sentences:
        size = len(sentence.encode())
        if group and num_bytes + size > max_bytes:
            yield Document(tuple(group))
            group, num_bytes = [], 0
        group.append(sentence)
        num_bytes += size
    yield Document(tuple(group))
