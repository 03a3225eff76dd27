"""Questions, the scorer and the study: which answers are right, and what is compared with what."""

import json

import pandas as pd
import pytest

import swarmkv_lab as lab
import swarmkv_studies as studies
from swarmkv_lab.files import ROOT
from swarmkv_studies.answers import quality
from swarmkv_studies.answers.questions import Question, parts, sections
from swarmkv_studies.answers.score import passage, verdict
from swarmkv_studies.answers.study import INSTRUCTION, asked_hash
from swarmkv_studies.answers.wording import normalise, pattern

QUESTIONS = studies.load_questions()
TEXT = lab.load_document("dossier")
LABELLED = pd.read_csv(ROOT / "tests" / "labelled_answers.csv", keep_default_na=False)


@pytest.mark.parametrize(("text", "expected"), [
    ("EUR 67,400 in February.", "eur 67400 in february"), ("7, 100 and 12,3", "7 100 and 12 3"),
    ("It isn\u2019t HS256!", "it is not hs 256"),
    ("exp=2024-06-30T18:00:00Z", "exp 30 june 2024 t 18:00:00 z"),
    ("November 30th, 2024", "30 november 2024"), ("at 02:10", "at 2:10"), ("Eight hours", "8 hours"),
    ("99.0 % of 0.60", "99 of 0.6"), ("request No. 18", "request 18"), ("AGPL-3.0-only", "agpl 3 only"),
])  # fmt: skip
def test_one_form_for_what_means_the_same(text, expected):
    assert normalise(text) == expected


def question(name="q", asked="How much?", level="easy", **how):
    return Question(name, "cost", level, asked, **how)


@pytest.mark.parametrize(("how", "answer", "why"), [
    ({"answers": [["67,400"]]}, "EUR 67400", ""),
    ({"answers": [["67,400"]]}, "EUR 65,370", "does not say 67,400"),
    ({"answers": [["Redis"], ["RabbitMQ"]]}, "Redis", "does not say RabbitMQ"),
    ({"answers": [["AGPL", "pdfcarve"]]}, "pdfcarve's", ""),
    ({"answers": [["24"]], "rejects": ["18"]}, "24 or 18 months", "also says 18"),
    ({"answers": [["24"]], "rejects": ["18"]}, "24, not 18 months", ""),
    ({"answers": [["400"]]}, "It was not 400 minutes, it was 400.", ""),
    ({"answers": [["400"]]}, "It lasted 4000 minutes.", "does not say 400"),
    ({"answers": [["AGPL"]]}, "It is not under the AGPL.", "does not say AGPL"),
    ({"answers": [["VPN"]]}, "It is not enforced for the VPN.", ""),
    ({"answers": [["GPL"]]}, "licensed under the LGPL-2.1", "does not say GPL"),
    ({"answers": [["re:9 (hours|h)"]]}, "It takes about nine hours.", ""),
    ({"answers": [["24"]]}, "It is not stated, but perhaps 24.", "says that it is not stated"),
    *(({}, f"{said}.", "") for said in ("It is not stated", "The text does not say it", "I don't know")),
    *(({}, said, "does not say that it is not stated") for said in ("Certificates are not checked.", "EUR 12.")),
    *((how, " \n", "no answer") for how in ({}, {"answers": [["24"]]})),
])  # fmt: skip
def test_why_an_answer_is_wrong(how, answer, why):
    assert verdict(question(**how), answer) == why


def test_the_scorer_agrees_with_people():
    scored = studies.score(LABELLED)
    assert len(LABELLED) >= 40
    assert LABELLED.model.nunique() == 2
    assert 0.2 < LABELLED.by_hand.mean() < 0.8  # else a scorer that always says the same would agree
    assert (scored.right == LABELLED.by_hand.astype(bool)).mean() >= 0.95


@pytest.mark.parametrize("one", QUESTIONS, ids=lambda one: one.id)
def test_the_document_decides(one):
    """Accepted answers stand in the sections that are named; what is not stated, nowhere."""
    by_number = sections(TEXT)
    texts = [by_number[number] for number in one.sections]
    assert texts
    said = []
    for wordings in one.answers:
        places = [pattern(wording).search(normalise(text)) for wording in wordings for text in texts]
        assert any(places), wordings
        assert all(any(pattern(wording).search(normalise(text)) for text in texts) for wording in wordings)
        said.append(next(place.group() for place in places if place))
    assert bool(one.absent) == (one.level == "not stated") == (not one.answers)
    assert not any(pattern(word).search(normalise(TEXT)) for word in one.absent)
    assert not verdict(one, ". ".join(said) or "Not stated.")
    assert verdict(one, one.question)  # who only repeats the question has not answered it
    assert verdict(one, f"{one.question} {INSTRUCTION}")
    assert (len(one.sections) > 1) == (one.level == "two places")


def test_sections_hold_what_is_below_them():
    text = "# T\nfirst\n## 1. One\na\n### 1.1 Sub\nb\n# no heading in code\n## Notes\nc\n## Appendix A. Logs\nd\n"
    found = sections(text)
    assert list(found) == ["1", "1.1", "Notes", "A"]
    assert found["1"] == "## 1. One\na\n### 1.1 Sub\nb\n# no heading in code\n"
    assert found["A"].endswith("d\n")


def test_parts_are_the_text_cut_at_headings():
    for n in (1, 2, 4, 6):
        cut = parts(TEXT, n)
        assert len(cut) == n
        assert "".join(cut) == TEXT
        assert all(part.startswith("## ") for part in cut[1:])
        assert max(map(len, cut)) < 2 * len(TEXT) / n
    with pytest.raises(lab.SwarmKVError, match=r"\b1\b.*\b9\b"):
        parts("## 1. A\n## 2. B\n", 9)
    with pytest.raises(lab.SwarmKVError, match="Notes"):
        sections("## Notes\n## Notes\n")


_WHOLE = {"id": "a", "kind": "b", "level": "c", "question": "d"}


@pytest.mark.parametrize("rows", [
    {}, [], [{"id": "a"}], [_WHOLE, _WHOLE],
    *([_WHOLE | change] for change in (
        {"answer": "e"}, {"id": 1}, {"answers": ["e"]}, {"answers": [[]]}, {"rejects": "e"},
        {"answers": [["-"]]},  # no words: every answer would say it
        {"rejects": ["re:("]}, {"rejects": ["re:AGPL"]},  # capitals: normalised text has none
    )),
])  # fmt: skip
def test_a_file_that_holds_no_questions(tmp_path, rows):
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    with pytest.raises(lab.SwarmKVError):
        studies.load_questions(tmp_path / "mine.json")


def test_score_takes_a_run_a_mapping_or_a_frame(twin, document):
    asked = [question(answers=[["24"]])]
    (row,) = studies.score({"q": "24 months"}, asked).to_dict("records")
    assert row == {"id": "q", "answer": "24 months", "kind": "cost", "level": "easy", "right": True, "why": ""}
    frame = pd.DataFrame({"id": ["q", "q"], "answer": ["24", None], "arm": ["a", "b"]})
    assert list(studies.score(frame, asked).right) == [True, False]
    assert list(studies.score(frame, asked).arm) == ["a", "b"]
    run = lab.fan_out(twin, document, {"q": document[:5]}, max_tokens=3)
    assert list(studies.score(run, asked).answer) == list(run.answers.values())
    with pytest.raises(lab.SwarmKVError):
        studies.score({"cost": "1", "r": "2"}, asked)


# -- what a study is compared by


def scored(rows):
    columns = ["model", "arm", "repeat", "id", "token_hash", "right"]
    return pd.DataFrame([("m", *row) for row in rows], columns=columns)


def test_differences_from_naive():
    rows = [("naive", 0, f"q{i}", "same", i < 3) for i in range(6)]
    rows += [("shared", *row[1:]) for row in rows[::-1]]  # in any order
    rows += [("packed", 0, f"q{i}", "other" if i else "same", i in (0, 4, 5)) for i in range(6)]
    frame = quality.differences(scored(rows)).set_index("arm")
    assert frame.loc["shared"].to_list()[1:] == [6, 0, 0, 0, 1.0]
    assert frame.loc["packed"].to_list()[1:] == [6, 5, 2, 2, 1.0]
    again = [("shared", 1, *row[2:]) for row in rows[:6]]  # answers of a second time are not counted twice
    assert quality.differences(scored(rows + again)).n.tolist() == [6, 6]
    with pytest.raises(lab.SwarmKVError):
        quality.differences(scored(rows[6:]))


def test_right_answers_have_wilsons_interval():
    (row,) = quality.quality(scored([("naive", 0, f"q{i}", "", i < 8) for i in range(10)])).to_dict("records")
    assert (row["n"], row["right"]) == (10, 8)
    assert (row["low"], row["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # known values
    assert quality.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


@pytest.mark.parametrize(("better", "worse", "p"), [
    (0, 0, 1), (1, 1, 1), (0, 5, 0.0625), (1, 8, 0.0390625), (10, 2, 0.0385742),
])  # fmt: skip
def test_mcnemars_exact_test(better, worse, p):
    assert quality.mcnemar(better, worse) == pytest.approx(p, abs=1e-6)
    assert quality.mcnemar(worse, better) == pytest.approx(p, abs=1e-6)


# -- the study itself, on a model that speaks


@pytest.fixture
def few(tmp_path):
    text = "## 1. One\nThe key is red.\n## 2. Two\nThe fee is 24 euros. The door is open.\n"
    (tmp_path / "text.md").write_text(text)
    asked = [
        question("key", "Which colour has the key?", answers=[["red"]], sections=["1"]),
        question("fee", "How high is the fee?", answers=[["24"]], sections=["2"]),
        question("door", "Is the door open?", answers=[["open"]], sections=["2"]),
    ]
    how = {"document": tmp_path / "text.md", "n_parts": 2, "max_tokens": 2}
    return asked, how


def test_the_arms_answer_as_they_should(speaker, few, tmp_path):
    asked, how = few
    frame = studies.study(speaker, asked, **how)
    assert len(frame) == 9 * 3
    naive = frame[frame.arm == "naive"].set_index("id")
    assert list(naive.part) == [1, 2, 2]
    for arm in ("swarmkv", "pooled", "shared"):
        assert frame[frame.arm == arm].set_index("id").token_hash.equals(naive.token_hash)
    frame.to_csv(tmp_path / "study.csv", index=False)
    pd.testing.assert_frame_equal(frame, quality.read_study(tmp_path / "study.csv"), check_dtype=False)
    assert set(studies.score(frame, asked).columns) >= {"right", "why"}


def test_early_agents_read_to_the_end_of_their_section(speaker, few):
    asked, how = few
    frame = studies.study(speaker, asked, arms=["naive", "early"], **how | {"n_parts": 1}).set_index(["arm", "id"])
    tokens = speaker.read(how["document"].read_text())
    assert (frame.loc["naive"].n_prefix == len(tokens)).all()
    assert frame.loc[("early", "fee"), "n_prefix"] == len(tokens)
    read = speaker.detokenize(tokens[: int(frame.loc[("early", "key"), "n_prefix"])])
    assert "red." in read
    assert "fee" not in read


def test_accepted_answers_can_be_mended_without_asking_again():
    asked = asked_hash([question(answers=[["24"]], sections=["1"])])
    assert asked == asked_hash([question(level="hard", answers=[["25"]], sections=("1",), rejects=["24"])])
    assert asked != asked_hash([question(asked="How high?", answers=[["24"]], sections=["1"])])


def test_what_cannot_be_studied(speaker, few, tmp_path):
    asked, how = few
    nowhere = [question(answers=[["1"]], sections=["77"])]  # no part of the text has this section
    for which, wrong in ((asked, {"arms": ["magic"]}), (asked, {"n_parts": 0}), (asked, {"repeats": 0}), (nowhere, {})):
        with pytest.raises(lab.SwarmKVError):
            studies.study(speaker, which, **how | wrong)
    (tmp_path / "study.csv").write_text("model,repeat\nm,zero\n")
    with pytest.raises(lab.SwarmKVError):
        quality.read_study(tmp_path / "study.csv")


def test_the_passage_that_decides():
    by_id = {one.id: one for one in QUESTIONS}
    assert passage(by_id["token algorithm"], TEXT) == 'return jwt.encode(claims, SIGNING_KEY, algorithm="HS256")'
    assert "4 critical" in passage(by_id["critical faults"], TEXT)
    assert passage(by_id["labelling bureau"], TEXT).count(" … ") == 1
    assert passage(by_id["insurance"], TEXT) == "(the document does not say)"
