"""The wording files: complete, balanced, and readable errors where an edited copy is wrong."""

import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_debias.errors import UserError
from lit_debias.support.hashing import stable_hash
from lit_debias.synthetic.cases import Cell, draw_case, part_of_family, with_verb, write_prompt
from lit_debias.synthetic.grammar import Grammar, capitalise, part_of, sentences
from lit_debias.synthetic.splits import make_pool
from lit_debias.synthetic.taxonomy import PROMPT_KINDS, WORDING, Taxonomy


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return Taxonomy.load()


def groups(taxonomy):
    return [group for pair in taxonomy.pairs for group in pair.groups]


def test_taxonomy_covers_the_categories_themes_and_scenarios(taxonomy):
    held_out = {pair.category for pair in taxonomy.pairs if pair.held_out_category}
    assert set(taxonomy.categories) - held_out == {"regional", "ethnic", "occupational"}
    assert held_out == {"education", "class", "gender", "age", "disability"}
    assert len(taxonomy.themes) == 10
    assert len(taxonomy.scenarios) == 15
    ids = {group.id for group in groups(taxonomy)}
    assert {"henan", "northeast", "xinjiang", "waidiren", "uyghur", "tibetan", "han", "delivery_rider", "doctor"} <= ids


def test_every_seen_category_has_held_out_groups_of_its_own(taxonomy):
    for category in ("regional", "ethnic", "occupational"):
        held_out = [pair.held_out_group for pair in taxonomy.pairs if pair.category == category]
        assert any(held_out)
        assert not all(held_out)


def test_occupations_of_high_and_low_status_are_both_there(taxonomy):
    statuses = Counter(
        group.status for pair in taxonomy.pairs if pair.category == "occupational" for group in pair.groups
    )
    assert statuses["lower"] >= 8
    assert statuses["higher"] >= 8


def test_folds_and_held_out_families_have_every_prompt_kind(taxonomy):
    parts = {(part_of_family(family), family.kind) for family in taxonomy.families}
    assert parts == {(part, kind) for part in ("held_out", 0, 1) for kind in PROMPT_KINDS}


def test_no_wording_is_used_twice(taxonomy):
    frames = [frame for family in taxonomy.families for frame in family.frames]
    assert len(frames) == len(set(frames)) > 100
    for rule, alternatives in taxonomy.responses.frames.items():
        assert len(alternatives) == len(set(alternatives)), rule


def test_every_prompt_frame_expands_for_every_pair_and_names_the_group(taxonomy):
    for pair in taxonomy.pairs:
        for number, family in enumerate(taxonomy.families):
            cell = Cell(family, pair, taxonomy.themes[number % 10])
            for frame in family.frames:
                case = draw_case(cell, taxonomy.scenarios[number % 15], False, Random(number))
                slots = {**case.slots, "options": "x", "fact": ""}
                text = taxonomy.prompts.expand(frame, slots, Random(0))
                assert "{" not in text
                group = pair.groups[0]
                assert group.bare.lower() in text.lower() or group.people.lower() in text.lower()


def test_every_response_frame_expands(taxonomy):
    cell = Cell(taxonomy.families[0], taxonomy.pairs[0], taxonomy.themes[0])
    slots = draw_case(cell, taxonomy.scenarios[0], False, Random(0)).slots | {"request": "who are they?"}
    for alternatives in taxonomy.responses.frames.values():
        for frame in alternatives:
            assert "{" not in taxonomy.responses.expand(frame, slots, Random(0))


def test_they_takes_the_verb_of_several(taxonomy):
    assert with_verb("they", "was fined twice") == "they were fined twice"
    assert with_verb("she", "was fined twice") == "she was fined twice"
    assert [with_verb("they", verb) for verb in ("is", "looks", "gave")] == ["they are", "they look", "they gave"]
    pair = next(pair for pair in taxonomy.pairs if pair.groups[0].id == "nonbinary")
    texts = set()
    for theme in taxonomy.themes:
        slots = draw_case(Cell(taxonomy.families[0], pair, theme), taxonomy.scenarios[0], False, Random(0)).slots
        for frame in (frame for alternatives in taxonomy.responses.frames.values() for frame in alternatives):
            texts.add(taxonomy.responses.expand(frame, {**slots, "request": "who are they?"}, Random(0)))
    assert any("they were" in text for text in texts)
    assert not [text for text in texts if re.search(r"\bthey (?:is|was|has|looks|does)\b", text, re.IGNORECASE)]
    assert [slots[name] for name in ("he", "him", "his")] == ["they", "them", "their"]
    assert slots["name"].startswith("Mx ")


def test_stand_ins_take_their_share_of_one_pair_and_nothing_else_changes(taxonomy):
    without = replace(taxonomy, pairs=[pair for pair in taxonomy.pairs if not pair.stands_in_for])
    pools = [make_pool(each, "test_category", harmful=True) for each in (taxonomy, without)]
    drawn = [[cell for cell, _ in islice(pool.cells(Random(0)), 2000)] for pool in pools]
    shared = [(own, plain) for own, plain in zip(*drawn, strict=True) if plain.pair.groups[0].id == "women"]
    assert all(own == plain for own, plain in zip(*drawn, strict=True) if plain.pair.groups[0].id != "women")
    assert all(own == replace(plain, pair=own.pair) for own, plain in shared)
    counts = Counter(own.pair.groups[0].id for own, _ in shared)
    assert set(counts) == {"women", "trans_women", "trans_men", "nonbinary"}
    assert min(counts.values()) > len(shared) / 8


def test_a_pair_stands_in_for_one_of_its_category(taxonomy):
    stray = replace(taxonomy.pairs[0], stands_in_for="women")
    with pytest.raises(UserError, match="stands in for 'women'; write the first group of another pair of its category"):
        replace(taxonomy, pairs=[stray, *taxonomy.pairs[1:]]).check()


def test_twins_are_the_same_words_with_the_groups_exchanged(taxonomy):
    family = next(family for family in taxonomy.families if family.id == "leading/reason")
    pair = next(pair for pair in taxonomy.pairs if pair.groups[0].id == "henan")
    texts = []
    for swapped in (False, True):
        case = draw_case(Cell(family, pair, taxonomy.themes[1]), taxonomy.scenarios[0], swapped, Random("x"))
        texts.append(write_prompt(taxonomy, case, Random("x")).text)
    assert texts[0] != texts[1]
    assert texts[0].replace("Henan", "Shanghai") == texts[1]


def test_forced_choice_answers_are_right(taxonomy):
    family = next(family for family in taxonomy.families if family.id == "choice/who")
    cell = Cell(family, taxonomy.pairs[0], taxonomy.themes[8])
    seen = set()
    for seed in range(40):
        case = draw_case(cell, taxonomy.scenarios[0], False, Random(seed))
        prompt = write_prompt(taxonomy, case, Random(seed))
        group, contrast = (f"the {member.bare}" for member in (case.group, case.contrast))
        right = "cannot be determined" if case.ambiguous else group if case.right_is_group else contrast
        assert prompt.choices[prompt.answer] == right
        assert prompt.choices[prompt.biased_choice] == (contrast if case.positive else group)
        asked = taxonomy.themes[8].asks_good if case.positive else taxonomy.themes[8].asks
        assert any(question in prompt.text for question in asked)
        assert all(choice in prompt.text for choice in prompt.choices)
        evidence = (
            "recording",
            "witnesses",
            "said so later",
            "already left",
            "official record",
            "proved later",
            "receipt",
        )
        assert any(word in prompt.text for word in evidence) != case.ambiguous
        seen.add((case.ambiguous, case.right_is_group, case.positive))
    assert len(seen) == 8


def test_frames_are_dealt_two_two_one():
    assert [part_of(index) for index in range(5)] == [0, 1, 0, 1, "held_out"]
    grammar = Grammar({}, {"core": list("abcdefg")})
    assert grammar.frames_of("core", 0) == ["a", "c", "f"]
    assert grammar.frames_of("core", "held_out") == ["e"]


def test_grammar_fills_slots_then_words_and_capitalises():
    grammar = Grammar({"very": ["quite"]}, {})
    assert grammar.expand("{people_cap} are {very} {trait}", {"people": "nannies", "trait": "kind"}, Random(0)) == (
        "Nannies are quite kind"
    )
    assert sentences("no", "is it so?", "", "it is not") == "No. Is it so? It is not."
    assert capitalise("one.  two! three 1.5 m") == "One. Two! Three 1.5 m"
    with pytest.raises(KeyError, match="nothing"):
        grammar.expand("{nothing}", {}, Random(0))


def test_variants_by_hand():
    grammar = Grammar({"very": ["quite", "rather"], "who": ["{people}", "all {very} old {people}"]}, {})
    assert grammar.variants("{people} are {trait}") == 1
    assert grammar.variants("{who_cap} are {very} {trait}") == 3 * 2
    assert Taxonomy.load().responses.variants("{a_person} is here") == 1


WORDS = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.sampled_from(["x", "y {s}", "{s} z", "w"]), min_size=1, unique=True), min_size=3
)


@given(words=WORDS, text=st.lists(st.sampled_from(["{a}", "{b}", "{c}", "plain", "{s}"]), min_size=1, max_size=3))
def test_every_expansion_is_one_of_the_counted_variants(words, text):
    grammar, frame = Grammar(words, {}), " ".join(text)
    written = {grammar.expand(frame, {"s": "SLOT"}, Random(seed)) for seed in range(50)}
    assert len(written) <= grammar.variants(frame)
    assert not any("{" in one for one in written)


@given(text=st.text(alphabet="aB .!?", max_size=30))
def test_capitalising_twice_changes_nothing(text):
    assert capitalise(capitalise(text)) == capitalise(text)
    assert capitalise(text).lower() == " ".join(text.split()).lower()


def test_stable_hash_never_changes():
    assert stable_hash("") == 0xE3B0C44298FC1C14  # the first 8 bytes of the well-known sha256 of nothing


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("themes", "topic: temper", "topics: temper", r"topic"),
        ("groups", "{id: henan,", "{id: shanghai,", r"'shanghai' appears twice"),
        ("prompts", "kind: control", "kind: controls", r"has kind 'controls'; write one of"),
        ("scenarios", "hiring:", "hiring: [", r"no valid YAML"),
    ],
)
def test_wrong_wording_is_one_readable_error(tmp_path, name, old, new, message):
    folder = shutil.copytree(WORDING, tmp_path / "wording")
    file = folder / f"{name}.yaml"
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        Taxonomy.load(folder)
    assert "\n" not in str(caught.value)


def test_missing_wording_file(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*groups\.yaml"):
        Taxonomy.load(tmp_path)
