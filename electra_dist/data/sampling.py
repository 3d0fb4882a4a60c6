"""An even sample of the input, for training a vocabulary."""

from collections.abc import Callable, Iterator, Sequence

from electra_dist.data import sources
from electra_dist.data.parts import SourceInput, total_bytes


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
