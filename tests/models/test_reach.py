"""How far attention reaches and how long texts may be: configurations, masks, and texts that are too long."""

import pytest
import torch
from support import loaded, perturb, plain_logprobs, save_tiny_model
from transformers import LlamaConfig

from lit_debias.errors import UserError
from lit_debias.models.attention_windows import Reach, longest_window, reaches
from lit_debias.models.positions import unchanged_length
from lit_debias.packing.groups import pack
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch


def test_reaches_windows_and_contexts_by_hand():
    kinds = ["full_attention", "sliding_attention", "chunked_attention", "conv"]
    config = LlamaConfig(layer_types=kinds, num_hidden_layers=4, sliding_window=7, attention_chunk_size=9)
    assert reaches(config) == {
        "full_attention": Reach(),
        "sliding_attention": Reach(window=7),
        "chunked_attention": Reach(chunk=9),
    }
    assert longest_window(config) == 9
    assert reaches(LlamaConfig(sliding_window=7)) == {"full_attention": Reach(window=7)}
    assert longest_window(LlamaConfig(use_sliding_window=True, max_window_layers=99)) == 0


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [2.0] * 4,
    "short_factor": [1.0] * 4,
    "original_max_position_embeddings": 28,
}


@pytest.mark.parametrize(("rope", "longest"), [(DYNAMIC, 40), (LONG, 28)], ids=["dynamic", "longrope"])
def test_texts_for_which_rotations_change_are_refused_and_shorter_ones_are_right(tmp_path, rope, longest):
    assert unchanged_length(LlamaConfig()) is None
    assert unchanged_length(LlamaConfig(index_topk=7)) == 7
    policy = loaded(save_tiny_model(tmp_path, rope_parameters=rope, max_position_embeddings=40))
    assert policy.positions == longest
    perturb(policy)
    prompt = PromptBatch(["the rider was late"])
    room = longest - len(policy.prompt_ids(prompt.texts[0]))
    sampled = LocalEngine(room).generate(policy, prompt, 2, seed=1)
    torch.testing.assert_close(sampled.logprobs, plain_logprobs(policy, sampled).detach(), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=f"has {longest} positions, .*change with the length"):
        LocalEngine(room + 2).generate(policy, prompt, 2, seed=1)


def test_masks_of_windows_and_chunks_go_by_positions():
    prompt = torch.ones(1, 3, dtype=torch.long)
    completion = torch.ones(1, 2, 3, dtype=torch.long)
    rows = pack(prompt, prompt.bool(), completion, completion.bool()).rows()
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4]]
    seen = rows.mask(window=2)[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    chunks = rows.mask(chunk=3)[0, 0].int().tolist()
    assert chunks[2:] == [
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_sequences_by_hand():
    prompts, mask = torch.tensor([[0, 11, 12], [21, 22, 23]]), torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()
    completions = torch.tensor([[[13, 14, 0], [15, 0, 0]], [[24, 25, 26], [0, 0, 0]]])
    counted = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [0, 0, 0]]]).bool()
    found = pack(prompts, mask, completions, counted).sequences()
    assert [(one.ids.tolist(), one.first, one.size) for one in found] == [
        ([11, 12, 13], 1, 2),
        ([11, 12], 1, 1),
        ([21, 22, 23, 24, 25], 2, 3),
    ]
