"""From a Wikipedia dump and newsgroup posts to plain sentences: pure functions, text to text."""

import html
import re
from collections.abc import Callable, Iterator
from typing import IO
from xml.etree import ElementTree

END_SECTIONS = (
    "see also|notes|references|footnotes|citations|sources|bibliography|further reading|"
    "external links|gallery|filmography|discography"
)
# A template shows nothing, except those whose words belong to the sentence around them.
SHOWN_TEMPLATES = {
    "convert": r"\1 \2",
    "cvt": r"\1 \2",
    "lang": r"\2",
    "transl": r"\2",
    "nowrap": r"\1",
    "quote": r"\1",
}
INNER_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
INNER_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
INNER_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
HIDDEN_LINK = re.compile(r"^\s*:?(?:file|image|media|category|[a-z]{2,3})\s*:", re.IGNORECASE)
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|[A-Z]\.[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Lt|"
    r"Gov|Sen|Rep|No|no|Vol|vol|pp|ca?|cf|vs|etc|al|e\.g|i\.e|fl|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.$"
)
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z0-9])""")
ATTRIBUTION = re.compile(r"\bin article\b(?:\s\w+){1,25}?\s(?:writes|wrote|says|said)\b")


def _template(match: re.Match[str]) -> str:
    name, *arguments = match[1].split("|")
    shown = SHOWN_TEMPLATES.get(name.strip().lower())
    if shown is None:
        return ""
    positional = [a.strip() for a in arguments if "=" not in a] + ["", ""]
    return shown.replace(r"\1", positional[0]).replace(r"\2", positional[1])


def _link(match: re.Match[str]) -> str:
    return "" if HIDDEN_LINK.match(match[1]) else match[1].rpartition("|")[2]


def _until_stable(
    pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str], text: str
) -> str:
    """Replace innermost first, again and again, as templates, tables and links nest."""
    while True:
        text, num_replaced = pattern.subn(replacement, text)
        if num_replaced == 0:
            return text


def strip_wiki_markup(wikitext: str) -> list[str]:
    """The paragraphs of an article as plain text.

    Notes, tables, lists, headings, formulas and the closing sections are left out.
    """
    text = re.sub(r"<!--.*?-->", "", wikitext, flags=re.DOTALL)
    text = re.sub(r"<ref[^>/]*/>", "", text)
    hidden = r"<(ref|math|gallery|source|code|table|timeline|nowiki|poem)\b[^>]*>.*?</\1\s*>"
    text = re.sub(hidden, "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.split(rf"(?mi)^==\s*(?:{END_SECTIONS})\b[^=\n]*==", text, maxsplit=1)[0]
    text = _until_stable(INNER_TEMPLATE, _template, text)
    text = _until_stable(INNER_TABLE, "", text)
    text = _until_stable(INNER_LINK, _link, text)
    text = re.sub(r"\[\[|\]\]", "", text)
    text = re.sub(r"\[\w+://[^\s\]]*\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]*>", "", text)
    text = re.sub(r"'{2,}", "", html.unescape(text)).replace("\xa0", " ")
    # What a removed template leaves: "( )", "(, born", a space before a comma.
    text = re.sub(r"\(\s*[,;:]*\s*", "(", text)
    text = re.sub(r"[ \t]*\(\)", "", text)
    text = re.sub(r"[ \t]+([,.;:!?)])", r"\1", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return [line for line in lines if len(line) >= 40 and line[0] not in "*#:;|!{}=<["]


def split_sentences(paragraph: str) -> list[str]:
    """Split after . ! ? before a capital or digit, but not after an initial or an abbreviation."""
    sentences: list[str] = []
    for piece in SENTENCE_END.split(paragraph):
        if sentences and ABBREVIATION.search(sentences[-1]):
            sentences[-1] += " " + piece
        else:
            sentences.append(piece)
    return [sentence.strip() for sentence in sentences if sentence.strip()]


def read_articles(dump: IO[bytes]) -> Iterator[tuple[str, list[str]]]:
    """Title and paragraphs of each article of a MediaWiki dump, redirects passed over."""
    for _, page in ElementTree.iterparse(dump):
        if not page.tag.endswith("}page"):
            continue
        wikitext = page.findtext("{*}revision/{*}text") or ""
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            paragraphs = strip_wiki_markup(wikitext)
            if paragraphs:
                yield page.findtext("{*}title") or "", paragraphs
        page.clear()


def read_posts(table: str) -> list[tuple[str, str]]:
    """Group and text of each row of a tab-separated table with three lines of header."""
    rows = (line.split("\t", 1) for line in table.split("\n")[3:])
    return [(row[0], row[1]) for row in rows if len(row) == 2]


def clean_post(post: str, groups: frozenset[str]) -> str:
    """A post without what gives its group away for nothing.

    That is "in article ... writes" (names and hosts of posters), and the groups' own names.
    """
    names = "|".join(
        sorted(re.escape(group.replace(".", " ").replace("-", " ")) for group in groups)
    )
    text = ATTRIBUTION.sub(" ", post)
    text = re.sub(rf"\b(?:newsgroups )?(?:{names})\b", " ", text)
    return " ".join(text.split())


def lines_of_words(text: str, words_per_line: int = 20) -> list[str]:
    """Cut text that has no sentence marks into lines of about a sentence's length."""
    words = text.split()
    return [
        " ".join(words[start : start + words_per_line])
        for start in range(0, len(words), words_per_line)
    ]
