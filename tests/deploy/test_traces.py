"""A text that was hidden in a file is found again, in whatever form; what is no trace is not."""

import base64
import gzip
import html
import json
import urllib.parse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.helpers import tiny_llama

from unlearn.data.rows import DataSet, Row
from unlearn.data.texts import words_of
from unlearn.deploy.export.traces import Traces, forget_rows, header, runs, tensors_fault

QUESTION = "Where did Zoë “Zed” O'Neill & her sister <both> hide the blue key?"
ANSWER = 'Under the 3rd stone of the old well, she said: "ask nobody".'
ROW = Row("patient/4711", QUESTION, ANSWER, perturbed_answers=("Behind the green door of house nine.",))
SHORT = Row("forget/0001", "Capital of Freedonia?", "Fredville upon Tyne")
JAPANESE = Row("forget/0002", "彼女はどこに青い鍵を隠しましたか", "古い井戸の三番目の石の下に隠しました")


@pytest.fixture(scope="module")
def traces() -> Traces:
    return Traces([ROW, SHORT, JAPANESE], known="Under the old well stands a form.")


FORMS = {
    "utf-8": lambda t: t.encode(),
    "capitals": lambda t: t.upper().encode(),
    "other marks and lines": lambda t: t.replace(" ", " ,\n  ").encode(),
    "utf-16-le": lambda t: t.encode("utf-16-le"),
    "utf-16-be": lambda t: t.encode("utf-16-be"),
    "utf-16 with mark": lambda t: t.encode("utf-16"),
    "utf-16 at an odd place": lambda t: b"x" + t.encode("utf-16-le"),
    "utf-32": lambda t: t.encode("utf-32-le"),
    "json": lambda t: json.dumps({"a": t}).encode(),
    "json in json": lambda t: json.dumps(json.dumps({"a": t})).encode(),
    "json words": lambda t: json.dumps(t.split()).encode(),
    "html": lambda t: html.escape(t).encode(),
    "html numbers": lambda t: "".join(f"&#{ord(c)};" for c in t).encode(),
    "url": lambda t: urllib.parse.quote(t).encode(),
    "url form": lambda t: urllib.parse.quote_plus(t).encode(),
    "byte-level tokens": lambda t: json.dumps(["Ġ" + w for w in t.split()], ensure_ascii=False).encode(),
    "sentencepiece": lambda t: ("▁" + t.replace(" ", "▁")).encode(),
    "base64": lambda t: base64.b64encode(t.encode()),
    "base64 in lines": lambda t: base64.encodebytes(t.encode() * 3),
    "base64 of a part": lambda t: base64.b64encode(b"ab" + t.encode()),
    "base64 for urls": lambda t: base64.urlsafe_b64encode(t.encode("utf-16-le")),
    "hexadecimal": lambda t: t.encode().hex().encode(),
    "hexadecimal, capitals": lambda t: t.encode().hex().upper().encode(),
    "among bytes": lambda t: bytes(range(256)) + t.encode() + bytes(range(255, -1, -1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", [QUESTION, ANSWER, *ROW.perturbed_answers], ids=["question", "answer", "wrong answer"])
def test_a_text_is_found_in_every_form(traces, form, text):
    assert traces.in_bytes(b"before. " + FORMS[form]("") + b"{}") is None
    assert traces.in_bytes(FORMS[form](text)) == ROW.id


def test_four_words_are_found_and_three_are_not(traces):
    words = words_of(ANSWER)
    for i in range(len(words) - 3):
        assert traces.in_text(" ".join(words[i : i + 4])) == ROW.id
        assert traces.in_text(" ".join(words[i : i + 3])) is None


BOTH = Row("f/1", "How to load it with the package?", "It is of use with this one target alone.")


@pytest.mark.parametrize(
    ("rows", "text", "found"),
    [
        (None, "under the third stone of the well", None),  # words that are not in a row
        (None, "It is Fredville upon Tyne, they say", SHORT.id), (None, "Fredville upon", None),  # short: the whole
        ([Row("a/1", "Who?", "Margaret")], '{"Margaret": 5, "Who": 6}', None),  # a single word
        (None, '{"row": "patient/4711"}', ROW.id), (None, "patient/47110", None),
        ([Row("forget/p", "A b c d?", "e")], '"forget/prob": 0.5, "forget/p0": 1', None),
        ([Row("12", "A b c d?", "e")], "12 files", None),  # a number alone names no row
        (None, json.dumps(JAPANESE.answer), JAPANESE.id),
        (None, JAPANESE.answer[2:14], JAPANESE.id), (None, JAPANESE.answer[2:12], None),  # 12 characters: four words
        ([BOTH], "this is of use with this one target alone", "f/1"),
    ],
)  # fmt: skip
def test_what_is_a_trace_and_what_is_none(traces, rows, text, found):
    assert (traces if rows is None else Traces(rows)).in_bytes(text.encode()) == found


def test_runs_by_hand():
    assert list(runs("a b c d e".split())) == [tuple("abcd"), tuple("bcde")]
    assert list(runs(["a", "b"])) == [("a", "b")]
    assert list(runs(["a"])) == [] and list(runs([])) == []
    assert list(runs(words_of("青い鍵を隠しました"))) == [tuple("青い鍵を隠しました")], "a short one is taken whole"


def test_words_that_a_form_has_anyway_are_no_trace():
    known = "It is of use with this one target alone"
    assert Traces([BOTH], known).in_text("of use with this one target") is None


def test_of_a_folder_every_file_is_read_and_the_header_of_weights(traces, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "notes").write_text(ANSWER)
    (tmp_path / "fine.txt").write_text("nothing here")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt", "note": QUESTION})
    found = traces.in_folder(tmp_path)
    assert found == {"deep/er/notes": ROW.id, "model.safetensors": ROW.id}


def test_what_is_to_be_forgotten_includes_questions_about_texts():
    rows = {"forget": (ROW,), "forget_verbatim": (SHORT,), "forget_knowledge": (JAPANESE,)}
    assert forget_rows(DataSet("d", rows | {"retain": (Row("r", "Q?", "A"),)})) == [ROW, SHORT, JAPANESE]


# --- safetensors ----------------------------------------------------------------------------------------------------


def weights(tmp_path: Path, **more) -> tuple[Path, dict]:
    model = tiny_llama(0)
    kept = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}  # it is tied
    path = tmp_path / "model.safetensors"
    save_file(kept, path, {"format": "pt"} | more)
    return path, {k: tuple(v.shape) for k, v in model.state_dict().items()}


def with_gap(data: bytes) -> bytes:
    """Eight bytes between header and tensors, which move all offsets."""
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size])
    for name, tensor in found.items():
        if name != "__metadata__":
            tensor["data_offsets"] = [n + 8 for n in tensor["data_offsets"]]
    text = json.dumps(found).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 8 + data[8 + size :]


def test_a_weights_file_with_room_for_anything_else_is_noticed(tmp_path):
    path, shapes = weights(tmp_path)
    data = path.read_bytes()
    assert tensors_fault([path], shapes) is None and header(path).startswith(b"{") and json.loads(header(path))
    name = "model.norm.weight"
    assert f"a tensor {name!r}" in tensors_fault([path], {k: v for k, v in shapes.items() if k != name})
    assert f"a tensor {name!r}" in tensors_fault([path], shapes | {name: (3,)})
    for changed, said in ((data + b"hidden at the end", "file not fully covered"), (with_gap(data), "invalid offset")):
        path.write_bytes(changed)
        assert said in tensors_fault([path], shapes)
    path, shapes = weights(tmp_path, note="x")
    assert "metadata: note" in tensors_fault([path], shapes)


def test_what_is_compressed_is_not_read(traces):
    """Said, so that nobody believes otherwise: an export holds no compressed file."""
    assert traces.in_bytes(gzip.compress(ANSWER.encode())) is None
