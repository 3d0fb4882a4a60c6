from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from electra_dist.errors import UserError
from electra_dist.finetune.config import FinetuneConfig
from electra_dist.finetune.dataset import Dataset, read_dataset
from electra_dist.finetune.encoding import TextEncoder

Write = Callable[[str, str], Path]


@pytest.fixture
def read(pretrained: Path, write: Write) -> Callable[..., Dataset]:
    def read_files(train: str, dev: str, suffix: str = "tsv", **changes: Any) -> Dataset:
        if "task" not in changes:
            changes = {"text": "text", "label": "label"} | changes
        config = FinetuneConfig(
            model=pretrained,
            out=Path("unused"),
            train=write(f"train.{suffix}", train),
            dev=write(f"dev.{suffix}", dev),
            **changes,
        )
        return read_dataset(config, TextEncoder(pretrained, 16))

    return read_files


def test_labels_are_those_of_train_sorted(read: Callable[..., Dataset]) -> None:
    data = read("text\tlabel\nx\tno\ny\tyes\nz\tmaybe\n", "text\tlabel\nx\tyes\ny\tno\n")
    assert data.labels == ("maybe", "no", "yes")
    assert data.splits["dev"].truth.tolist() == [2.0, 1.0]
    assert data.task.kind == "classification"
    assert data.task.metrics == ("accuracy", "f1_macro")


def test_two_labels_are_scored_by_binary_f1(read: Callable[..., Dataset]) -> None:
    data = read("text\tlabel\nx\t1\ny\t2\n", "text\tlabel\nx\t2\n")
    assert (data.labels, data.task.metrics) == (("1", "2"), ("accuracy", "f1"))


def test_numbers_with_fractions_mean_regression(read: Callable[..., Dataset]) -> None:
    files = ("text\tlabel\nx\t1\ny\t4.5\n", "text\tlabel\nx\t9\n")
    data = read(*files)
    assert (data.task.kind, data.task.target_range) == ("regression", (1.0, 4.5))
    assert data.splits["dev"].truth.tolist() == [9.0]
    whole = ("text\tlabel\nx\t1\ny\t4\n", "text\tlabel\nx\t4\n")
    assert read(*whole).task.kind == "classification"
    assert read(*whole, kind="regression").task.target_range == (1.0, 4.0)


@pytest.mark.parametrize(
    ("train", "dev", "changes", "message"),
    [
        ("x\tno\ny\tyes", "x\tno\nz\tperhaps", {}, "dev.tsv, line 3: the label 'perhaps' is not"),
        ("x\tno\ny\tno", "x\tno", {}, "train.tsv: every example has the label 'no'"),
        ("x\tno\ny\t ", "x\tno", {}, "train.tsv, line 3: the label is empty"),
        ("x\t0.5\ny\t1", "x\ttwo", {}, "dev.tsv, line 2: the target 'two' is not a number"),
        ("x\t0.5\ny\tnan", "x\t1", {"kind": "regression"}, "train.tsv, line 3: the target 'nan'"),
        ("x\t0.5\ny\t0.5", "x\t1", {}, "train.tsv: every target is 0.5"),
    ],
)
def test_a_bad_label_is_named_with_file_and_line(
    read: Callable[..., Dataset], train: str, dev: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(f"text\tlabel\n{train}\n", f"text\tlabel\n{dev}\n", **changes)
    assert message in str(caught.value)


# The head of each task's usual file, with sentences of our own.
LAYOUTS = {
    "sst2": ("tsv", ["a fine film\t1", "a bad film\t0"]),
    "cola": ("tsv", ["src\t1\t\tThe film is long.", "src\t0\t*\tFilm the long is."]),
    "mrpc": (
        "tsv",
        [
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r",
            '1\t11\t12\tHe said "yes.\tHe agreed.\r',
            "0\t13\t14\tOne.\tTwo.\r",
        ],
    ),
    "rte": (
        "tsv",
        [
            "index\tsentence1\tsentence2\tlabel",
            "0\tA.\tB.\tnot_entailment",
            "1\tA.\tA.\tentailment",
        ],
    ),
    "stsb": (
        "tsv",
        [
            "index\tgenre\tfilename\tyear\told_index\tsentence1\tsentence2\tscore",
            "0\tg\tf\t2012\t1\tA plane.\tA jet.\t5.000",
            "1\tg\tf\t2012\t2\tA plane.\tA dog.\t0.400",
        ],
    ),
    "sick": (
        "txt",
        [
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment",
            "1\tA dog.\tA cat.\t3.2\tNEUTRAL",
            "2\tA dog.\tA dog.\t5\tENTAILMENT",
        ],
    ),
    "banking77": ("csv", ["text,category", "Where is it?,card", '"Late,', 'again",arrival']),
    "snips": ("jsonl", ['{"seq.in": "play", "label": "P"}', '{"seq.in": "book", "label": "B"}']),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_usual_file_of_each_named_task_is_read(read: Callable[..., Dataset], name: str) -> None:
    suffix, lines = LAYOUTS[name]
    content = "\n".join(lines)
    data = read(content, content, suffix, task=name)
    assert len(data.splits["train"].rows) == len(data.splits["dev"].rows) == 2
    expected = {"stsb": (0.0, 5.0), "sick": (1.0, 5.0)}
    assert data.task.target_range == expected.get(name)
    assert len(data.labels) == (0 if name in expected else 2)


def test_a_target_outside_the_named_tasks_range_is_refused(read: Callable[..., Dataset]) -> None:
    suffix, lines = LAYOUTS["sick"]
    content = "\n".join(lines)
    bad = content.replace("\t5\t", "\t5.5\t")
    with pytest.raises(UserError, match=r"dev\.txt, line 3: the target 5\.5 is outside 1 to 5"):
        read(content, bad, suffix, task="sick")
