"""The prompts that benchmarks give to all sides of a comparison."""

import pytest
from benchmarks.workload import NOTES, question_after_notes, sized_text
from support import loaded

from lit_debias.errors import UserError


@pytest.mark.parametrize("tokens", [40, 41, 42])
def test_prompts_have_exactly_the_tokens_asked_for(tokens, tiny_model):
    policy = loaded(tiny_model)
    assert policy.encode_prompts([sized_text(policy.prompt_ids, "w2", tokens)])[0].shape[1] == tokens
    with pytest.raises(UserError, match="--prompt-tokens 3: the chat template takes"):
        sized_text(policy.prompt_ids, "w2", 3)


def test_questions_follow_as_many_notes_as_fit(tiny_model):
    policy = loaded(tiny_model)

    def tokens(text):
        return len(policy.prompt_ids(text))

    question = "What is bread made of?"
    alone, with_note = tokens(question), tokens(f"{NOTES[0]} {question}")
    assert question_after_notes(policy.prompt_ids, question, alone) == question
    assert question_after_notes(policy.prompt_ids, question, with_note - 1) == question
    assert question_after_notes(policy.prompt_ids, question, with_note) == f"{NOTES[0]} {question}"
    twice = " ".join([*NOTES, *NOTES, question])
    assert question_after_notes(policy.prompt_ids, question, tokens(twice)) == twice
    with pytest.raises(UserError, match=rf"--prompt-tokens {alone - 1}: '.+' takes {alone}; write that or more"):
        question_after_notes(policy.prompt_ids, question, alone - 1)
