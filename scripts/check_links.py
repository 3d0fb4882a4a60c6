"""Every relative link in the Markdown files leads to a file, every #anchor to a heading."""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {".venv", ".git", "build", "node_modules", ".pytest_cache"}
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def markdown_files() -> Iterator[Path]:
    """Every .md of the project, not of what is installed or built in it."""
    for path in sorted(ROOT.rglob("*.md")):
        if not SKIPPED & set(path.relative_to(ROOT).parts):
            yield path


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors of a file's headings: lower case, hyphens, no punctuation, repeats numbered."""
    found: dict[str, int] = {}
    fenced_out = re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", path.read_text("utf-8"), flags=re.M | re.S)
    for title in HEADING.findall(fenced_out):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeats = found.get(slug, 0)
        found[slug] = repeats + 1
        if repeats:
            found[f"{slug}-{repeats}"] = 1
    return frozenset(found)


def broken_links(path: Path) -> Iterator[str]:
    """A sentence for each link of a file that leads nowhere; web addresses are not followed."""
    text = CODE.sub("", path.read_text("utf-8"))
    for target in LINK.findall(text) + REFERENCE.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file_part, _, anchor = unquote(target).partition("#")
        file = (path.parent / file_part) if file_part else path
        where = path.relative_to(ROOT)
        if not file.exists():
            yield f"{where}: {target}: no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.resolve()):
            yield f"{where}: {target}: no such heading"


def main() -> int:
    """Check them all; 1 where a link is broken."""
    files = list(markdown_files())
    broken = [sentence for file in files for sentence in broken_links(file)]
    print("\n".join(broken) or f"{len(files)} Markdown files, every link leads somewhere")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
