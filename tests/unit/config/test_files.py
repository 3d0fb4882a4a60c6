import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from electra_dist.config import changes, files, overrides
from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError
from tests.unit.config.random_configs import CONFIGS


@given(CONFIGS)
@settings(max_examples=60, deadline=None)
def test_json_reads_back_to_the_same_value_and_the_same_types(config: RunConfig) -> None:
    text = files.to_json(config)
    read = files.from_dict(json.loads(text))
    assert read == config
    assert files.to_json(read) == text
    assert changes.fingerprint(read) == changes.fingerprint(config)
    before, after = changes.flatten(config), changes.flatten(read)
    assert [type(value) for value in before.values()] == [type(v) for v in after.values()]


@given(CONFIGS, CONFIGS)
@settings(max_examples=40, deadline=None)
def test_differences_name_what_changed_and_nothing_else(old: RunConfig, new: RunConfig) -> None:
    before, after = changes.flatten(old), changes.flatten(new)
    expected = [f"{n}: {before[n]!r} -> {after[n]!r}" for n in before if before[n] != after[n]]
    assert changes.differences(old, new) == expected
    assert changes.differences(old, old) == []
    forbidden = changes.forbidden_differences(old, new)
    assert set(forbidden) <= set(expected)
    assert bool(forbidden) == (changes.fingerprint(old) != changes.fingerprint(new))


def write(tmp_path: Path, text: str, name: str = "run.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_command_line_is_stronger_than_the_file_and_the_file_than_the_recipe(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path,
        'recipe = "base"\nseed = 3\n[batch]\nmicro_batch_size = 16\n[optim]\nlearning_rate = 1\n',
    )
    base = RECIPES["base"]()
    run = files.load(path)
    assert run.batch == replace(base.batch, micro_batch_size=16)
    assert (run.seed, run.optim.learning_rate, run.optim.beta1) == (3, 1.0, 0.9)
    assert type(run.optim.learning_rate) is float
    assert run.model == base.model
    run = files.load(path, ["--batch.micro-batch-size", "4", "--seed", "9"])
    assert (run.batch.micro_batch_size, run.batch.global_batch_size, run.seed) == (4, 256, 9)
    # --recipe is stronger than the file's own, and the file's fields stay over it.
    run = files.load(path, recipe="large")
    assert run.model == RECIPES["large"]().model
    assert (run.recipe, run.batch.micro_batch_size, run.seed) == ("large", 16, 3)


def test_without_a_file_or_a_recipe_it_is_small() -> None:
    assert files.load(None) == RECIPES["small"]()
    assert files.load(None, recipe="tiny") == RECIPES["tiny"]()


@pytest.mark.parametrize(
    "words",
    [
        ["--batch.micro_batch_size", "8"],
        ["--batch.micro-batch-size", "8"],
        ["--batch.micro-batch-size=8"],
        ["--batch.micro_batch_size=8"],
        ["--batch.micro_batch-size", "8"],
    ],
)
def test_options_may_be_spelled_with_dash_underscore_and_equals(words: list[str]) -> None:
    run = files.load(None, words, recipe="small")
    assert changes.differences(RunConfig(), run) == ["batch.micro_batch_size: 32 -> 8"]


def test_options_of_every_type_are_read() -> None:
    words = [
        "--optim.learning-rate=1e-4",
        "--model.vocab_size",
        "8192",
        "--engine.zero-stage",
        "3",
        "--engine.kind=deepspeed",
        "--data.corpus",
        "a folder/corpus",
        "--metrics.no-tensorboard",
        "--schedule.stop_step=50",
        "--engine.deterministic",
    ]
    assert changes.differences(RunConfig(), files.load(None, words)) == [
        "model.vocab_size: None -> 8192",
        "data.corpus: None -> 'a folder/corpus'",
        "optim.learning_rate: 0.0005 -> 0.0001",
        "schedule.stop_step: None -> 50",
        "engine.zero_stage: 2 -> 3",
        "engine.deterministic: False -> True",
        "metrics.tensorboard: True -> False",
    ]
    unset = files.load(None, ["--model.vocab-size", "None"], recipe="tiny")
    assert unset.model.vocab_size is None


def test_options_that_need_each_other_are_applied_together() -> None:
    run = files.load(None, ["--batch.global_batch_size", "30", "--batch.micro_batch_size", "10"])
    assert (run.batch.global_batch_size, run.batch.micro_batch_size) == (30, 10)


def test_flags_are_known_from_options_with_a_value() -> None:
    assert overrides.is_flag("--metrics.tensorboard")
    assert overrides.is_flag("--metrics.no-tensorboard")
    assert overrides.is_flag("--engine.deterministic")
    assert not overrides.is_flag("--batch.micro-batch-size")
    assert not overrides.is_flag("--data.corpus")


BAD_TOML = [
    (
        "[batch]\nmicro_batchsize = 8",
        r"batch\.micro_batchsize; did you mean batch\.micro_batch_size\?",
    ),
    ("[bach]\nmicro_batch_size = 8", r"unknown key bach; did you mean batch\?"),
    ("zzz = 1", "unknown key zzz; known are .*seed"),
    ("batch = 3", r"batch = 3 must be a section; write \[batch\]"),
    ('[batch]\nmicro_batch_size = "8"', r"batch\.micro_batch_size = '8' .*must be int"),
    ("[batch]\nmicro_batch_size = 8.0", r"batch\.micro_batch_size = 8\.0 .*must be int"),
    ("[batch]\nmicro_batch_size = true", r"batch\.micro_batch_size = True .*must be int"),
    ("seed = true", "seed = True .*must be int"),
    ("[metrics]\ntensorboard = 1", r"metrics\.tensorboard = 1 .*must be bool"),
    ("[optim]\nlearning_rate = [1.0]", r"optim\.learning_rate = \[1\.0\] .*must be float"),
    ("[engine]\nzero_stage = 4", r"engine\.zero_stage = 4 .*must be one of 0, 1, 2, 3"),
    ("[engine]\nzero_stage = true", r"engine\.zero_stage = True .*must be one of 0, 1, 2, 3"),
    ('[engine]\nkind = "horovod"', r"engine\.kind = 'horovod' .*one of deepspeed, reference"),
    ("[model]\nvocab_size = 1.5", r"model\.vocab_size = 1\.5 .*must be int or None"),
    ('recipe = "huge"', "recipe = 'huge' is unknown; choose one of tiny, small"),
    ('recipe = ["tiny"]', r"recipe = \['tiny'\] is unknown; choose one of"),
    ("[optim]\nlearning_rate = inf", r"optim\.learning_rate = inf"),
    ("[batch", "not a readable TOML file"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TOML)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        files.load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


BAD_OPTIONS = [
    (
        ["--batch.micro_batchsize", "8"],
        r"unknown option --batch\.micro_batchsize; did you mean --batch\.micro_batch_size\?",
    ),
    (["--batch", "8"], "unknown option --batch; known are "),
    (["8"], "unexpected word '8'"),
    (["--seed"], "--seed: does not fit; the value must be int"),
    (["--seed", "1.5"], r"--seed 1\.5: does not fit; the value must be int"),
    (["--seed", "1", "2"], "--seed 1 2: does not fit"),
    (
        ["--engine.zero-stage=4"],
        "--engine.zero-stage=4: does not fit; the value must be one of 0, 1",
    ),
    (
        ["--data.corpus", "--seed", "3"],
        r"--data\.corpus: does not fit; the value must be str or None",
    ),
    (["--metrics.tensorboard", "False"], r"takes no value: write .*--metrics\.no_tensorboard"),
    (["--optim.learning_rate", "-1"], r"optim\.learning_rate = -1\.0: must be above 0"),
    (["--batch.micro_batch_size", "10"], r"set batch\.micro_batch_size to 8"),
    # The first two fit only together; the third is to blame.
    (
        ["--batch.global_batch_size=30", "--batch.micro_batch_size=10", "--optim.beta1", "abc"],
        r"--optim\.beta1 abc: does not fit; the value must be float",
    ),
]


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS)
def test_a_mistake_in_an_option_is_named(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        files.load(None, words)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the parser's own panel stays unseen


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml does not exist; .*--recipe NAME"):
        files.load(tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="not a readable TOML file"):
        files.load(tmp_path)


def test_the_config_of_a_run_is_read_whole(tmp_path: Path) -> None:
    config = files.load(None, ["--seed", "4", "--data.corpus", "x"], recipe="tiny")
    path = write(tmp_path, files.to_json(config), "config.json")
    assert files.load(path) == config
    assert files.load(path, ["--seed", "5"]) == replace(config, seed=5)
    with pytest.raises(UserError, match=r"--recipe base would change nothing.*leave --recipe out"):
        files.load(path, recipe="base")


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"batch": 3}', '{"model": null}', '{"a": 1}']
)
def test_a_damaged_config_json_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        files.load(write(tmp_path, text, "config.json"))


def test_a_blend_and_skips_are_a_table_and_a_list_and_many_words(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[data]\nskips = [[0, 5], [7, 9]]\n[data.blend]\n"corpora/wiki" = 3\n"../web v1.2" = 1\n',
    )
    run = files.load(path)
    assert run.data.blend == {"corpora/wiki": 3, "../web v1.2": 1}
    assert run.data.folders == ("corpora/wiki", "../web v1.2")
    assert run.data.skips == ((0, 5), (7, 9))
    words = ["--data.blend", "a.b", "2", "c", "1", "--seed", "3", "--data.skips", "4", "8"]
    changed = files.load(path, words)  # a table that is given replaces the file's
    assert changed.data == replace(run.data, blend={"a.b": 2, "c": 1}, skips=((4, 8),))
    assert changed.seed == 3
    assert files.load(path, ["--data.skips"]).data.skips == ()
    saved = write(tmp_path, files.to_json(changed), "config.json")
    assert files.load(saved) == changed
    assert files.load(saved, ["--data.blend", "moved", "2", "c", "1"]).data.blend["moved"] == 2
    assert list(files.load(saved).data.blend) == ["a.b", "c"]  # their order counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data.blend]\n"x" = 1.5', r"data\.blend = \{'x': 1\.5\} .*a table of str = int"),
        ("[data]\nblend = 3", r"data\.blend = 3 .*a table of str = int"),
        ("[data]\nskips = [3, 4]", r"data\.skips = \[3, 4\] .*a list of \[int, int\]"),
        ("[data]\nskips = [[3, 4, 5]]", r"data\.skips = .*a list of \[int, int\]"),
        ("[data]\nskips = [[3, true]]", r"data\.skips = .*a list of \[int, int\]"),
        ("[data]\nskips = 3", r"data\.skips = 3 .*a list of \[int, int\]"),
    ],
)
def test_a_mistake_in_a_table_or_a_list_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        files.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.skips", "3"], r"--data\.skips 3: does not fit; .*a list of \[int, int\]"),
        (["--data.blend", "x"], r"--data\.blend x: does not fit; .*a table of str = int"),
        (["--data.blend", "x", "y"], r"--data\.blend x y: does not fit"),
    ],
)
def test_a_mistake_in_many_words_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        files.load(None, words)
