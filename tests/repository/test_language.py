"""Plain words: phrases that a reader has to decode, or cannot search for, are flagged; messages are short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.helpers import ROOT

SAY = {  # phrase: what to write
    r"\b(?:go|goes|gone|went|going) on\b": "resume, continue",
    r"\b(?:be|is|was|were|are|been) had\b": "available",
    r"\b(?:tell|tells|telling|told) (?:\w+ )?apart\b": "distinguish",
    r"\bin (?:the|its|their) place of\b": "instead of, replaces",
    r"\bat work\b": "active, running",
    r"\banew\b": "again",
    r"\bwhat (?:it|they|each|a run) (?:took|takes)\b": "cost, time, arguments",
    r"\b(?:is|are|was) no (?:\w+ )?numbers?\b": "NaN or infinite",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more|other|such|less|way|need|better|smaller|fault|change)\w+":
        "is not a …",
    r"\bof whom\b": "of which, whose",
    r"\bwithout a word\b": "silently",
    r"\bas (?:it|they) stands?\b": "as printed, itself",
    r"\bon and on\b": "further",
    r"\bha(?:s|ve) (?:it|them) not\b": "does not have",
    r"\bmend(?:s|ed|ing)\b": "fix",
    r"\bfor good\b": "permanently",
    r"\bg(?:i|a)ves? up\b": "abort",
    r"\bcame to no end\b": "was interrupted",
}  # fmt: skip
GENERATED = ("CHANGELOG.md", "settings.md")  # history, and comments that are read where they stand
LONGEST, WITH_HINT = 120, 240  # characters of a message without its hint, and of all that is literal in it


def texts() -> Iterator[tuple[str, int, str]]:
    """Lines of the front page, the pages, the examples and the program, with its configs and templates."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").iterdir()]
    code = (
        p for top in ("unlearn", "analysis", "conf") for p in (ROOT / top).rglob("*") if "__pycache__" not in str(p)
    )
    for path in (*pages, *code):
        if path.suffix in (".md", ".py", ".yaml", ".txt", ".sh", ".j2") and path.name not in (
            "CHANGELOG.md",
            "settings.md",
        ):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield str(path.relative_to(ROOT)), number, line


def test_no_page_docstring_comment_or_message_has_a_phrase_that_must_be_decoded():
    flagged = [
        f"{place}:{number}: {match.group()}: {better}"
        for place, number, line in texts()
        for phrase, better in SAY.items()
        for match in re.finditer(phrase, line, re.IGNORECASE)
    ]
    assert not flagged, "\n".join(flagged)


@pytest.mark.parametrize(("line", "count"), [
    ("the same command goes on from there", 1), ("what cannot be had", 1), ("the run is no folder", 1),
    ("there is no folder", 0), ("it is no longer there", 0), ("resumes from its checkpoint", 0),
], ids=range(6))  # fmt: skip
def test_the_list_finds_what_it_is_for(line, count):
    assert sum(bool(re.search(phrase, line, re.IGNORECASE)) for phrase in SAY) == count


def literal(node: ast.expr) -> str:
    """What is literal in an expression of text; eight characters for each value that is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "12345678" for part in node.values)
    return literal(node.left) + literal(node.right) if isinstance(node, ast.BinOp) else ""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Literal messages of what is raised, and of rules, which yield theirs."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            yield node.lineno, literal(node.exc.args[0])
        elif isinstance(node, ast.Yield) and node.value is not None:
            yield node.lineno, literal(node.value)


def test_a_message_says_what_is_wrong_in_120_characters_and_gives_a_hint_after_that():
    found = [(path, n, text) for top in ("unlearn", "analysis") for path in (ROOT / top).rglob("*.py")
             for n, text in messages(path) if text]  # fmt: skip
    assert len(found) > 400
    first = {f"{path.relative_to(ROOT)}:{n}": re.split(r"\n|; ", text)[0] for path, n, text in found}
    assert [place for place, text in first.items() if len(text) > LONGEST] == []
    assert [f"{path}:{n}" for path, n, text in found if len(text) > WITH_HINT] == []
