import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from unittest import mock

import pytest
from report_material import (
    EVIL,
    HOSTILE,
    explain_arms,
    hostile,
    log_csv,
    many_arms,
    passage,
    record,
    text_of,
    write_evaluation,
)

from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.evaluation.records import save_arm, write_json
from lit_debias.evaluation.results import summarize
from lit_debias.report import report
from lit_debias.report.examples import side_by_side
from lit_debias.rewards.explanation import Explanation


class Elements(HTMLParser):
    """What a browser makes of a page: tags, attributes, links, scripts, and the policy of what may run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.links, self.scripts, self.policy = set(), set(), [], [], ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "script":
            self.scripts.append((attributes.get("type"), ""))
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.lasttag == "script" and self.cdata_elem == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)


def test_the_page_holds_everything(run):
    rows = [
        {"step": 2 * i, "rollout_step": i, "reward": 0.1 * i, "rewards/fair/mean": 0.2, "kl": 0.01} for i in range(3)
    ]
    log_csv(run / "logs" / "version_0", rows)
    (run / "logs" / "version_0" / "config.yaml").write_text("model:\n  class_path: GRPO  # <b>\n")
    page = report(str(run))
    assert page == run / "report.html"
    text = text_of(page)
    verdict = json.loads((run / "evaluation" / "results.json").read_text())["verdict"]["sentence"]
    assert verdict in text
    for title in (
        "Bias by category (judge)",
        "Bias by group (judge)",
        "Reward",
        "Rewards by name",
        "KL to the reference",
    ):
        assert re.search(rf"<h[23] id=[^>]+>{re.escape(title)}</h", text)
    for part in ("Twins side by side", "Largest improvements", "Worst regressions", "before 0 1", "after 3 0"):
        assert part in text
    assert "class_path: GRPO  # &lt;b&gt;" in text
    assert "0123abcd" in text
    assert "tiny &amp; small" in text
    assert "a part of the data" in text
    assert "no training curves" not in text
    whole = page.read_text()
    assert len(re.findall(r"plotly\.js v\d", whole)) == 1
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?http", whole)


def test_model_output_stays_text(run):
    page = report(str(run)).read_text()
    assert EVIL not in page
    assert "&lt;script&gt;alert(&#39;pwned&#39;)&lt;/script&gt;" in page
    assert "occupational</script>" not in page  # the name of a bar inside a figure


def test_names_and_settings_stay_text_too(tmp_path):
    hostile(tmp_path)
    page = report([str(tmp_path)])
    assert HOSTILE not in page.read_text()
    tree = Elements()
    tree.feed(page.read_text())
    assert tree.tags.isdisjoint({"img", "svg"})
    assert all(link.startswith("#") for link in tree.links)
    assert not any(name.startswith("on") for name in tree.attributes)
    drawn = [json.loads(text) for kind, text in tree.scripts if kind == "application/json"]
    assert len(drawn) > 3
    texts = [re.sub("<br>|</?i>|<extra></extra>", " ", text) for text in strings_in(drawn)]
    assert any("bold" in text for text in texts)
    assert not [text for text in texts if "<" in text or "bold%{" in text]


def strings_in(value):
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings_in(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return [value] if isinstance(value, str) else []


def test_only_the_pages_own_scripts_are_allowed_to_run(run):
    log_csv(run / "logs", [{"step": i, "rollout_step": i, "reward": 0.1 * i} for i in range(3)])
    tree = Elements()
    tree.feed(report(str(run)).read_text())
    allowed = re.search(r"script-src ([^;]+);", tree.policy)[1].split()
    run_by_the_browser = [text for kind, text in tree.scripts if kind is None]
    assert [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run_by_the_browser] == [
        source.removeprefix("'sha256-").removesuffix("'") for source in allowed
    ]
    assert len(allowed) == 2


def test_a_key_in_a_configuration_or_result_is_masked(tmp_path):
    many_arms(tmp_path)
    (tmp_path / "logs" / "config.yaml").write_text("logger:\n  api_key: hunter2\nmodel: https://me:hunter2@host/m\n")
    results = json.loads((tmp_path / "results.json").read_text())
    results["settings"] |= {"model": "https://me:hunter2@host/m", "judges": {"j": {"api_key": "hunter2"}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = text_of(report(str(tmp_path)))
    assert "hunter2" not in page
    assert page.count("REDACTED") >= 4


def test_missing_parts_are_noted(run):
    (run / "evaluation" / "arms" / "after.json").unlink()
    text = text_of(report(str(run), str(run / "elsewhere" / "page.html")))
    assert "no examples of &#39;after&#39;" in text
    assert "no training curves" in text
    assert "no training configuration" in text
    assert "Twins side by side" not in text
    assert "Rewards by name" not in text
    assert ">Measures</h2>" in text


def test_explanations_stand_with_their_figures(run, arms):
    assert "Why answers are biased" not in text_of(report(str(run)))
    why = Explanation(True, ("age",), (), (), "Because.", "")
    explain_arms(run / "evaluation", arms, why, "Judge <m>")
    text = text_of(report(str(run)))
    part = text.split('id="reasons">')[1].split('<h2 id="origin"')[0]
    assert "“Judge &lt;m&gt;” (template 0123456789ab)" in part
    figures = re.findall(r'rowheader">([^<]*)</th><td role="cell" data-of="[^"]*">\s*<span>([^<]*)</span>', part)
    assert figures == [
        ("biased", "0.667"),  # of each four answers two are, one is not, one has no explanation
        ("type: age", "0.667"),
        ("of two types or more", "0.000"),
        ("without a valid explanation", "0.250"),
        ("keywords that the response lacks", "\N{EN DASH}"),
        ("Cohen&#39;s kappa with judge", mock.ANY),
    ]
    assert part.count("<dt>reason</dt><dd>Because.</dd>") == 2
    assert "<dt>instead" not in part


def test_explanations_of_other_answers_are_left_out(run, arms):
    why = Explanation(True, ("age",))
    explain_arms(run / "evaluation", {"before": arms["before"], "after": arms["before"]}, why)
    text = text_of(report(str(run)))
    assert "8 explanations are of answers that are not those behind these figures" in text
    assert 'id="reasons"' in text
    explain_arms(run / "evaluation", {"after": arms["before"]}, why)
    assert 'id="reasons"' not in text_of(report(str(run)))
    (run / "evaluation" / "explanations.jsonl").write_text("{}\n")
    text = text_of(report(str(run)))
    assert "row 1: no line of `lit-debias explain`" in text
    assert 'id="reasons"' not in text


@pytest.mark.parametrize(
    ("rows", "twins", "said"),
    [
        (4, 0, "4 prompts,"),
        (1, 0, "1 prompt,"),
        (3, 1, "3 prompts (1 pair of twins among them),"),
        (8, 4, "(4 pairs of"),
    ],
)
def test_the_page_says_how_many_prompts_have_twins(run, rows, twins, said):
    file = run / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    results["prompts"] |= {"rows": rows, "twins": twins}
    file.write_text(json.dumps(results))
    assert said in text_of(report(str(run)))


def test_an_arm_of_another_evaluation_is_not_shown(run, arms):
    save_arm(run / "evaluation" / "arms" / "after.json", "another key", {}, arms["after"])
    assert "not the one behind these figures" in text_of(report(str(run)))


def test_a_clear_change_is_told_from_an_unclear_one(run):
    text = text_of(report(str(run)))
    measures = text.split(">Measures</h2>")[1]
    row = {name: measures.split(f"<summary>{name}")[1].split("</tr>")[0] for name in ("perplexity", "bias intensity")}
    assert 'class="clear"' not in row["perplexity"]  # the same in both arms
    assert '<span>0.400</span> <span class="clear">better</span>' in row["bias intensity"]


def test_checks_alone_judge(run):
    text = text_of(report(str(run))).split("</style>")[1]
    checks = text.split(">Checks</h2>")[1].split("</table>")[0]
    assert "✓ pass" in checks
    for sign in ("✓", "✗"):
        assert text.count(sign) == checks.count(sign)


def test_a_figure_has_its_n_and_a_term_its_meaning(run):
    text = text_of(report(str(run)))
    measures = text.split(">Measures</h2>")[1].split("</table>")[0]
    assert measures.count("<summary>") == len(re.findall('role="rowheader"><details', measures)) > 8
    row = measures.split("<summary>bias intensity (judge)")[1].split("</tr>")[0]
    assert "a reward model that nothing here was trained on" in row
    assert '<span class="interval">n = 8</span>' in row
    checks = text.split(">Checks</h2>")[1].split("</table>")[0]
    assert "<summary>distinct pairs of words: relative change</summary>Different pairs of neighbouring words" in checks
    tile = text.split('class="tile"')[2].split("</dl>")[0]
    assert "the model with the adapter runs/adapter" in tile
    assert '<span class="interval">n = 8</span>' in tile


def test_where_arms_differ_in_n_each_figure_has_its_own(run):
    file = run / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    results["arms"]["after"]["measures"]["length"]["n"] = 7
    file.write_text(json.dumps(results))
    row = text_of(report(str(run))).split("<summary>length, tokens")[1].split("</tr>")[0]
    assert re.findall(r"n = \d", row) == ["n = 8", "n = 7"]


def test_the_page_says_what_its_intervals_leave_out(run, tmp_path, arms):
    assert "Another seed, or another machine that rounds otherwise" in text_of(report(str(run)))
    write_evaluation(tmp_path / "base", {"before": arms["before"]})
    assert "Another seed" not in text_of(report(str(tmp_path / "base")))


def test_results_of_earlier_versions_have_meanings_too(run):
    file = run / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    for about in results["measures"].values():
        del about["meaning"]
    for check in results["verdict"]["checks"]:
        del check["measure"]
    file.write_text(json.dumps(results))
    text = text_of(report(str(run)))
    assert "Mean length of an answer" in text
    assert 'row">distinct pairs of words: relative change</th>' in text


def test_intensities_side_by_side_are_those_of_one_judge(run, arms):
    for records in arms.values():
        for each in records:
            each.judges = {"strict": 0.25, **each.judges}
    del arms["before"][7].judges["strict"]  # it had no opinion, which is not that of the other judge
    answers = [side["answers"]["before"]["intensity"] for pair in side_by_side(arms, 4) for side in pair]
    assert sorted(answers, key=str) == [*[0.75] * 7, None]
    assert "Bias intensity is that of “judge”." in text_of(report(str(run)))


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"of": "something else"}')
    with pytest.raises(UserError, match=r"no results.json of an evaluation"):
        report(str(tmp_path))
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"no valid JSON: .*; run `lit-debias evaluate` again"):
        report(str(tmp_path))
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr("lit_debias.report.page.find_spec", lambda name: None if name == "plotly" else object())
    with pytest.raises(UserError, match=r"pip install 'lit-debias\[report\]'"):
        report(str(tmp_path))


def test_the_command_line_draws_it(run, capsys):
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out


def test_prose_is_a_measure_and_no_prompt(tmp_path, arms):
    measured = {name: [*rows, *(passage(i, -4.0 - i) for i in range(3))] for name, rows in arms.items()}
    write_evaluation(tmp_path, measured)
    text = text_of(report(str(tmp_path)))
    assert re.search(r"perplexity on held-out prose.*?<td>.*?3\.490", text, re.DOTALL)  # exp(15 / 12)
    assert "8 prompts (4 pairs of twins among them)" in text
    assert "A passage of prose" not in text
    assert "Twins side by side" in text


def test_many_arms_have_a_column_each_and_figures_show_three(tmp_path):
    names = many_arms(tmp_path)
    text = text_of(report(str(tmp_path)))
    head = text.split(">Measures</h2>")[1].split("</thead>")[0]
    assert head.count('scope="col"') == 1 + len(names) + 1
    assert "GRPO, all &lt;rewards&gt;" in head
    assert "3 seeds" in head
    twins = text.split(">Twins side by side</h2>")[1].split("<h2")[0]
    assert set(re.findall(r"<b>(.*?)</b>", twins)) == {"base", "asked for fairness", "GRPO, all &lt;rewards&gt;"}
    assert 'rowheader">CrowS-Pairs&nbsp;<span class="soft">→ 50</span>' in text
    assert ">Benchmarks</span>" in text


def test_an_arm_of_several_seeds_shows_the_texts_of_the_first(run, arms):
    folder = run / "evaluation"
    second = [record(i, side, 0.3, f"second seed {i} {side}") for i in range(4) for side in (0, 1)]
    replicas = {"before": [arms["before"]], "prompt_only": [arms["before"]], "after": [arms["after"], second]}
    names = ["before", "prompt_only", "after.1", "after.2"]
    for name, records in zip(names, [records for of_arm in replicas.values() for records in of_arm], strict=True):
        save_arm(folder / "arms" / f"{name}.json", f"key of {name}", {}, records)
    results = {**json.loads((folder / "results.json").read_text()), **summarize(replicas, 50, 0)}
    results |= {"fingerprints": {name: f"key of {name}" for name in names}}
    results |= {"settings": {"adapter": ["runs/1", "runs/2"]}}
    write_json(folder / "results.json", results)
    text = text_of(report(str(run)))
    assert '<th scope="col">after <span class="interval">2 seeds</span></th>' in text
    assert "<strong>after <span" in text
    assert "after 3 0" in text
    assert "second seed" not in text
    assert text.count("Of an arm with several seeds, the texts are those of the first.") == 3
    assert "and over training seeds" in text
    assert "<li>after against asked for fairness: bias intensity (judge) -" in text
    assert ">runs/1, runs/2</td>" in text
    write_evaluation(run / "single", arms)
    assert "several seeds" not in text_of(report(str(run / "single")))


def test_only_the_base_was_measured(tmp_path, arms):
    write_evaluation(tmp_path, {"before": arms["before"]})
    text = text_of(report(str(tmp_path)))
    assert ">Measures</h2>" in text
    assert ">change" not in text
    assert "Twins side by side" not in text
