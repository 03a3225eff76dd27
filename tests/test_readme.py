"""Every number of the README is held to data/, and one command writes them all."""

import re

import pytest
from readme import GIVEN, README, Span, all_spans, loose_numbers, refreshed, say

SPANS = all_spans()
PAGE = README.read_text(encoding="utf-8")


@pytest.mark.parametrize("span", SPANS, ids=lambda span: span.template[:60].strip())
def test_the_page_says_what_the_data_say(span):
    assert [(said, text) for _, said, text in span.differences(PAGE)] == [], "make readme writes the numbers"


def test_no_number_is_without_data():
    assert loose_numbers(PAGE, SPANS) == [], (
        "give it a place in tests/readme.py, or say in GIVEN that it is no measurement"
    )


def test_a_number_that_nobody_holds_is_found():
    line = "`shared` is 38x as fast, says nobody."
    assert loose_numbers(f"{PAGE}\n{line}\n", SPANS) == [line]
    assert loose_numbers(f"{PAGE}\n`n_ctx=4096`, f16, Q8_0, [a link](data/1.csv), Qwen2.5-7B\n", SPANS) == []


def test_what_is_given_stands_in_the_page():
    words = " ".join(PAGE.split())
    assert [phrase for phrase in GIVEN if phrase not in words] == []


def test_the_command_writes_every_number_again():
    """From a page on which each of them is wrong."""
    spoilt = PAGE
    places = [match.span(i) for span in SPANS for match in [span.find(PAGE)] for i in range(1, len(span.values) + 1)]
    for start, end in sorted(places, reverse=True):
        spoilt = spoilt[:start] + re.sub(r"\d", "7", spoilt[start:end]).replace("all", "none") + spoilt[end:]
    assert spoilt.count("7") > 100 + PAGE.count("7")
    assert refreshed(spoilt, SPANS).split() == PAGE.split()


def test_a_sentence_that_is_gone_is_missed():
    with pytest.raises(LookupError, match="0 times in README"):
        Span("It is {:.1f} times as fast as light", (2.0,)).differences(PAGE)
    assert refreshed("It takes\n3.0 s, or less.", [say("takes {:.1f} s, {}.", 2.04, "or more")]) == (
        "It takes\n2.0 s, or more."
    )
