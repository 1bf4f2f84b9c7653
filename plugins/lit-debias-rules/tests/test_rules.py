"""Rules: scores worked out by hand, whole words, case by language, files, and expressions that would hang elsewhere."""

from __future__ import annotations

import pytest

from lit_debias import RewardBatch
from lit_debias.errors import UserError
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias_rules import Rules
from lit_debias_rules.lexicon import FOLDER, find_lexicon, read_lexicon
from lit_debias_rules.matching import Pattern, Terms, fold


@pytest.fixture
def rules(tmp_path):
    """Return a function that makes a reward of one lexicon with this text."""

    def make(text: str, suffix: str = ".yaml", **arguments) -> Rules:
        path = tmp_path / f"lexicon{suffix}"
        path.write_text(text, encoding="utf-8")
        return Rules(lexicons=(str(path),), **arguments)

    return make


def score(reward: Rules, *completions: str) -> list[float | None]:
    return reward.score(RewardBatch(["q"] * len(completions), list(completions), [0] * len(completions)))


def test_scores_by_hand(rules):
    reward = rules(
        "rules: [{terms: [lazy], weight: -0.25}, {terms: [sly], weight: -0.5}, {pattern: kind, weight: 0.125}]"
    )
    assert score(
        reward,
        "They work.",  # 1
        "Lazy, and kind.",  # 1 - 0.25 + 0.125
        "LAZY lazy sly",  # 1 - 0.5 - 0.5
        "sly sly sly",  # below 0
        "kind",  # above 1
    ) == [1.0, 0.875, 0.0, 0.0, 1.0]
    assert reward.matches("lazy and sly, lazy") == {"lazy": 2, "sly": 1}


def test_start_and_limit(rules):
    text = "rules: [{terms: [perhaps], weight: 0.25, limit: 2}, {terms: [never], limit: 1}]"
    reward = rules(text, start=0.25, weight=-0.125)
    assert score(reward, "Perhaps.", "Perhaps perhaps perhaps.", "never never", "Well.") == [0.5, 0.75, 0.125, 0.25]


def test_a_completion_without_a_word_has_no_score(rules):
    assert score(rules("rules: [{terms: [a]}]"), "", " \n", "...", "b") == [None, None, None, 1.0]


def test_terms_are_whole_words_of_any_script(rules):
    reward = rules("lazy\n# a comment\nnew  york  # a phrase\n\u00e4rger\nC++\n", ".txt", weight=-0.5)
    for text in ("Lazybones", "glazy", "New Yorker", "\u00c4rgernis", "Ver\u00e4rger", "C"):
        assert reward.matches(text) == {}, text
    for text in ("(lazy)", "NEW\nYORK!", "\u00c4RGER", "c++", "Ist das \u00c4rger?", "\uff2c\uff41\uff5a\uff59"):
        assert sum(reward.matches(text).values()) == 1, text
    assert sum(rules("rules: [{terms: [laz], whole_words: false}]").matches("Lazybones glazed").values()) == 2


def test_the_longer_of_two_terms_counts_once():
    terms = Terms(["york", "new york", "new"], whole_words=True)
    assert [terms.count(text) for text in ("new york", "york new", "new new york")] == [1, 2, 2]


def test_patterns_are_whole_words_of_any_script():
    pattern = Pattern(r"all \pL+ are|laz|lazy", whole_words=True)
    texts = (
        "lazy laz lazybones",
        "all \u00fcber are",
        "wall trees are",
        "\u00fcall men are",
        "all men are all women are",
    )
    assert [pattern.count(text) for text in texts] == [2, 1, 0, 0, 2]
    inside = Pattern("laz", whole_words=False)
    assert inside.count("lazy laz glaze") == 3


def test_case_belongs_to_the_language():
    assert fold("STRASSE  stra\u00dfe\nDON\u2019T") == "strasse strasse don't"
    assert fold("\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3") == fold(
        "\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2"
    )  # final sigma
    assert fold("DI\u015e d\u0130\u015f", "tr") == "d\u0131\u015f di\u015f"  # two words in Turkish
    assert fold("I", "az") == "\u0131"
    assert fold("I", "en") == "i"


def test_turkish_capitals_in_a_lexicon(rules):
    reward = rules("language: tr-TR\nrules: [{terms: [\u0131l\u0131k]}, {terms: [ilik]}]")
    assert reward.matches("ILIK") == {"\u0131l\u0131k": 1}
    assert reward.matches("\u0130L\u0130K") == {"ilik": 1}


def test_chinese_has_no_spaces(rules):
    text = r"rules: [{terms: [天生]}, {pattern: '\p{Han}+人都'}]"
    assert rules(text, language="zh").matches("我觉得河南人都天生如此。") == {"天生": 1, r"\p{Han}+人都": 1}
    assert rules(text).matches("我觉得天生如此。") == {}


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(a|a)+$", "(.*a){20}b", "(x+x+)+y"])
@pytest.mark.parametrize("whole_words", ["true", "false"])
@pytest.mark.timeout(60)  # with backtracking, longer than the age of the universe
def test_no_expression_hangs(rules, pattern, whole_words):
    reward = rules(f"rules: [{{pattern: '{pattern}', whole_words: {whole_words}}}]")
    hostile = "a" * 5000 + "! " + "x" * 5000
    assert score(reward, hostile) == [1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", r"lexicon '\S+yaml' is no valid YAML: .* line 1"),
        ("", "has no rules; write 'rules:'"),
        ("rules: []", "has no rules"),
        ("rule: [{terms: [a]}]", "has no rules"),
        ("rules: [{terms: [a]}]\nlangage: en", "unknown key 'langage'; did you mean 'language'"),
        ("rules: [lazy]", "rule 1: write a mapping with either terms or pattern"),
        ("rules: [{terms: [a]}, {terms: [a], pattern: b}]", "rule 2: write a mapping with either"),
        ("rules: [{weight: 1}]", "rule 1: write a mapping with either"),
        ("rules: [{terms: [a], wieght: 1}]", "unknown key 'wieght'; did you mean 'weight'"),
        ("rules: [{terms: [no]}]", "terms must be a list of words or phrases, in quotes where YAML"),
        ("rules: [{terms: []}]", "terms must be a list"),
        ("rules: [{terms: ['  ']}]", "terms must be a list"),
        ("rules: [{terms: lazy}]", "terms must be a list"),
        ("rules: [{terms: [a], weight: 0}]", "weight 0; write a number"),
        ("rules: [{terms: [a], weight: .nan}]", "weight nan; write a number"),
        ("rules: [{terms: [a], weight: yes}]", "weight True; write a number"),
        ("rules: [{terms: [a], limit: 0}]", "limit 0; write a whole number"),
        ("rules: [{terms: [a], whole_words: 1}]", "whole_words 1; write true or false"),
        ("rules: [{pattern: '(a'}]", r"rule 1: pattern '\(a': missing \)"),
        ("rules: [{pattern: 'a)(b'}]", r"pattern 'a\)\(b': unexpected \)"),
        ("rules: [{pattern: '(?<=a)b'}]", r"pattern '\(\?<=a\)b': .*; see RE2's syntax"),
        ("rules: [{pattern: 'a*'}]", "it matches the empty text; let it take a character"),
    ],
)
def test_mistakes_in_a_file(rules, text, message):
    with pytest.raises(UserError, match=message):
        rules(text)


def test_mistakes_in_arguments(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin1.txt").write_bytes("\u00e4rger".encode("latin-1"))
    for arguments, message in [
        ({"lexicons": ()}, "at least one file"),
        (
            {"lexicons": ("generalizing",)},
            "'generalizing' is no file and none of this package; did you mean 'generalising'",
        ),
        ({"lexicons": (str(tmp_path / "empty.txt"),)}, "terms must be a list"),
        ({"lexicons": (str(tmp_path / "latin1.txt"),)}, "row 1: byte 0xe4 is not UTF-8; save the file as UTF-8"),
        ({"start": 1.5}, "start=1.5"),
        ({"weight": 0.0}, "weight=0.0"),
        ({"weight": float("inf")}, "weight=inf"),
    ]:
        with pytest.raises(UserError, match=message):
            Rules(**arguments)


# -------------------------------------------------------------------- the package's own lexicons


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("All people from Henan are careful.", {"all people from X"}),
        ("People from Henan are always like this.", {"people from X are all"}),
        ("Delivery riders are all the same.", {"X people are all", "without exception"}),
        ("They always lie.", {"they are all"}),
        ("THEY\u2019RE ALL rich.", {"they are all"}),
        ("Everyone knows that.", {"everyone knows"}),
        ("It is in their blood, they never change.", {"by nature", "they are all"}),
        ("Never hire a villager; they cannot be trusted.", {"cannot be trusted"}),
        ("Most people from Guizhou are poor.", {"most people from X"}),
        ("She is a nurse from Henan, and she explained the rules.", set()),
        ("People from Henan have all kinds of characters.", {"people from X are all"}),  # a rule cannot read
        ('"They are all lazy" is a prejudice.', {"they are all"}),  # nor see a quotation
    ],
)
def test_what_the_english_lexicon_finds(text, names):
    assert set(Rules().matches(text)) >= names
    assert bool(Rules().matches(text)) == bool(names)


def test_what_is_denied_costs_nothing():
    assert score(Rules(), "Not all people from Henan are farmers.", "They aren't all alike.") == [1.0, 1.0]
    assert score(Rules(), "All people from Henan are farmers.") == [0.5]


def test_what_the_chinese_lexicon_finds():
    reward = Rules(lexicons=("generalising_zh",))
    assert score(reward, "河南人都很勤劳。", "这位老师来自河南。", "不是所有河南人都这样。") == [0.5, 1.0, 1.0]


def test_the_lexicons_name_no_group():
    """A lexicon that names groups makes some freer to insult than others."""
    named = Rules(lexicons=("generalising", "generalising_zh"))
    pairs = [("Henan", "Shanghai"), ("Guizhou", "Guangdong"), ("Tibet", "Beijing")]
    for text in ("All people from {} are rich.", "{}人都很好。"):
        for first, second in pairs:
            found = [set(named.matches(text.format(place))) for place in (first, second)]
            assert found[0] == found[1]
    for path in FOLDER.glob("*.yaml"):
        assert read_lexicon(path, -0.25, "en").rules
        assert not any(
            place in path.read_text(encoding="utf-8").lower() for pair in pairs for place in map(str.lower, pair)
        )
    assert find_lexicon("generalising").parent == FOLDER


def test_is_found_through_its_entry_point():
    found = {component.name: component.distribution for component in components(get_plugin_manager())}
    assert found["Rules"] == "lit-debias-rules"
