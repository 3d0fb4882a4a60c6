import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.errors import UserError
from electra_dist.finetune.encoding import TextEncoder, longest_first


def pop_one_by_one(length_a: int, length_b: int, budget: int) -> tuple[int, int]:
    """google-research/electra's _truncate_seq_pair."""
    while length_a + length_b > budget:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 60))
def test_longest_first_equals_popping_one_by_one(a: int, b: int, budget: int) -> None:
    assert longest_first(a, b, budget) == pop_one_by_one(a, b, budget)


def test_rows_of_single_texts_and_pairs(pretrained: Path) -> None:
    encoder = TextEncoder(pretrained, max_length=8)
    pieces = json.loads((pretrained / "tokenizer.json").read_text())["model"]["vocab"]

    def ids(text: str) -> list[int]:
        return [pieces[piece] for piece in text.split()]

    single = encoder.rows(["GOOD film", "one two three four one two three four", ""])
    assert single[0].ids == ids("[CLS] good film [SEP]")
    assert single[1].ids == ids("[CLS] one two three four one two [SEP]")
    assert single[2].ids == ids("[CLS] [SEP]")
    pair = encoder.rows(["good film"], ["one two three four unheard"])[0]
    assert pair.ids == ids("[CLS] good film [SEP] one two three [SEP]")
    assert pair.first_length == 4


def test_a_batch_is_as_long_as_its_longest_row(pretrained: Path) -> None:
    encoder = TextEncoder(pretrained, max_length=16)
    batch = encoder.collate(encoder.rows(["good", "bad film"], ["two", "a one"]))
    assert batch.input_ids.shape == (2, 7)
    assert batch.input_ids[0].tolist()[5:] == [encoder.pad_id] * 2
    assert batch.attention_mask.tolist() == [[1] * 5 + [0] * 2, [1] * 7]
    assert batch.token_type_ids.tolist() == [[0] * 3 + [1] * 2 + [0] * 2, [0] * 4 + [1] * 3]


def test_a_broken_or_missing_tokenizer_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no tokenizer\.json"):
        TextEncoder(tmp_path, max_length=8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        TextEncoder(tmp_path, max_length=8)


def test_a_special_token_must_be_in_the_vocabulary(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((pretrained / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"sep_token": "</s>"}))
    with pytest.raises(UserError, match="its vocabulary has no </s>"):
        TextEncoder(tmp_path, max_length=8)
