import pytest
import torch

from electra_dist.config import files
from electra_dist.errors import UserError
from electra_dist.runtime.world import World
from electra_dist.train.build import make_engine


# Over the address space of any machine, over 64 bits of bytes, over 64 bits.
@pytest.mark.parametrize("power", [14, 18, 21])
def test_a_model_that_memory_can_not_hold_is_one_sentence(power: int) -> None:
    words = ["--model.hidden_size", str(10**power), "--model.vocab_size", "300"]
    config = files.load(None, words, recipe="tiny")
    with pytest.raises(UserError, match=f"model.hidden_size = 1{power * '0'}, .* do not fit") as e:
        make_engine(config, World.from_environment({}), torch.device("cpu"))
    assert "\n" not in str(e.value)
    assert "make the model smaller" in str(e.value)
