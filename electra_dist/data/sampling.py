"""How large is the input, and an even sample of it for training a vocabulary."""

from collections.abc import Callable, Iterator, Sequence

from electra_dist.data import sources
from electra_dist.data.parts import SourceInput


def total_bytes(inputs: Sequence[SourceInput]) -> int | None:
    """Bytes of all files as they are stored; None where a store does not say."""
    sizes = [file.num_bytes for source in inputs for file in source.files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def sample_sentences(
    inputs: Sequence[SourceInput], max_bytes: int, report: Callable[[int], None]
) -> Iterator[str]:
    """Sentences of pieces that hold `max_bytes` of text at most, and a piece more.

    Pieces are taken so that the sample grows with the place in the input, evenly from end to end;
    where sizes are unknown they are the first ones. `report` is told the bytes taken.
    """
    total = total_bytes(inputs) or 0
    seen = taken = 0
    for source in inputs:
        for index, file in enumerate(source.files):
            for piece in sources.pieces(source.kind, file, index, source.options):
                is_due = taken * total <= seen * max_bytes if total else True
                seen += piece.num_bytes
                if taken >= max_bytes:
                    return
                if not is_due:
                    continue
                taken += len(piece.payload)
                report(taken)
                for document in sources.parse(source.kind, piece, source.options).documents:
                    yield from document.sentences
