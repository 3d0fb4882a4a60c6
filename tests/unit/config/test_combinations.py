from typing import Any

import pytest

from electra_dist.config.files import from_dict
from electra_dist.errors import UserError

Sections = dict[str, dict[str, Any]]


def objective(name: str, **values: Any) -> Sections:
    return {"objective": {"name": name, **values}}


REFUSED: list[tuple[Sections, str, str]] = [
    (objective(name, **{knob: value}), f"objective.{knob} = {value!r}", why)
    for name, why in (
        ("mlm", "samples no replacements"),
        ("uniform_generator", "no generator to sample from"),
        ("electric", "adds log q to its logit"),
    )
    for knob, value in (
        ("temperature", 2.0),
        ("disallow_correct", True),
        ("sampling_dropout", False),
    )
]
REFUSED += [
    (objective(name) | {"model": {knob: value}}, f"model.{knob} = {value!r}", "one tower")
    for name in ("mlm", "uniform_generator")
    for knob, value in (
        ("untied_generator", False),
        ("untied_generator_embeddings", True),
        ("embedding_sharing", "gradient_disentangled"),
    )
]
REFUSED += [
    (
        objective("electric") | {"model": {"untied_generator": False}},
        "model.untied_generator = False",
        "causal towers",
    ),
    (
        objective("electric", mask_prob_end=0.3, mask_prob_anneal_steps=9),
        "objective.mask_prob_end = 0.3",
        "p is one number",
    ),
    (
        objective("mlm", temperature_end=0.5, temperature_anneal_steps=9),
        "objective.temperature_end = 0.5",
        "samples no replacements",
    ),
    (
        {"model": {"untied_generator": False, "untied_generator_embeddings": True}},
        "model.untied_generator_embeddings = True",
        "one set of tables",
    ),
    (
        {
            "model": {
                "untied_generator_embeddings": True,
                "embedding_sharing": "gradient_disentangled",
            }
        },
        "model.embedding_sharing = 'gradient_disentangled'",
        "keeps apart",
    ),
    (
        {"model": {"untied_generator": False, "embedding_sharing": "gradient_disentangled"}},
        "model.embedding_sharing = 'gradient_disentangled'",
        "needs two towers",
    ),
    (
        objective("electra", temperature_end=0.5),
        "objective.temperature_end = 0.5",
        "temperature_anneal_steps = None; give both",
    ),
    (
        objective("electra", mask_prob_anneal_steps=5),
        "objective.mask_prob_end = None",
        "mask_prob_anneal_steps = 5; give both",
    ),
    (
        objective("electra", mask_sampling="google", masking="span"),
        "objective.mask_sampling = 'google'",
        "objective.masking = 'span'",
    ),
]


@pytest.mark.parametrize(("sections", "field", "why"), REFUSED)
def test_knobs_that_exclude_each_other_are_refused_in_one_sentence(
    sections: Sections, field: str, why: str
) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(sections)
    message = str(caught.value)
    assert message.startswith(field)
    assert why in message
    assert "; " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "sections",
    [
        objective("electric") | {"model": {"embedding_sharing": "gradient_disentangled"}},
        objective("electric") | {"model": {"untied_generator_embeddings": True}},
        objective("electric", mask_sampling="google"),
        objective("mlm", mask_prob_end=0.4, mask_prob_anneal_steps=10, mask_sampling="google"),
        objective("uniform_generator", mask_prob_end=0.4, mask_prob_anneal_steps=10),
        objective("electra", disallow_correct=True, sampling_dropout=False, temperature=0.5),
    ],
)
def test_what_goes_together_is_taken(sections: Sections) -> None:
    from_dict(sections)


def test_slots_are_counted_for_the_largest_share() -> None:
    values = {"mask_prob": 0.3, "mask_prob_end": 0.15, "mask_prob_anneal_steps": 10}
    for section in (values, {**values, "mask_prob": 0.15, "mask_prob_end": 0.3}):
        assert from_dict({"objective": section}).max_masked == int(0.305 * 128)


def test_a_temperature_runs_from_its_start_to_its_end_in_a_line() -> None:
    values = {"temperature": 2.0, "temperature_end": 0.5, "temperature_anneal_steps": 10}
    objective = from_dict({"objective": values}).objective
    found = [objective.temperature_at(step) for step in (0, 1, 5, 10, 10**9)]
    assert found == pytest.approx([2.0, 1.85, 1.25, 0.5, 0.5])
    constant = from_dict({"objective": {"temperature": 2.0}}).objective
    assert constant.temperature_at(10**6) == 2.0
