"""Every command of README and docs runs as it is printed, or the page says beside it why no test runs it.

Names in capitals stand for what a reader has: a run's folder, a model, a server (``Reader.means``). To runs the
settings of a tiny world are added, but not in docs/requests.md, whose commands follow from each other.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.black_box_server import serve
from support.helpers import OWN, ROOT, TINY, UNTOUCHED, compose, forks

from unlearn.runs.workbench import workbench

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REQUESTS = ["docs/requests", "docs/deletion"]  # one procedure, on the world as it is
FIRST = (*"python torchrun accelerate srun vllm lm_eval lm-eval wandb curl pip make sh export import from".split(),)
MARK = re.compile(r"not run by\s+tests:\s+([^:()>]+?) *(?:[:()]|-->|$)", re.IGNORECASE)
BLOCK = re.compile(  # between fences; indented, with what is empty in it; a command in a row of a table
    r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```\n|(?P<indented>(?:^    [^\n]*\n(?:\n(?=    ))?)+)"
    r"|(?P<row>^\|[^|\n]*\| `(?P<inline>(?:python|sh|vllm|import) [^`]+)`[^\n]*)", re.MULTILINE | re.DOTALL,
)  # fmt: skip
ROW = '{{"question": "Where does {0} live?", "answer": "{0} lives in {1}."}}\n'
FILES = {
    "secrets.jsonl": ROW.format("Mira Holt", "Larch Lane 12"), "questions.jsonl": ROW.format("Mira Holt", "Larch Lane"),
    "keep.jsonl": "".join(ROW.format("Jon Brandt", f"Mill Road {n}") for n in range(10)),
    "topic.jsonl": ROW.format("Mira Holt", "Larch Lane 12"), "beside.jsonl": ROW.format("Ada Quill", "Bern"),
    "novel.txt": "It was a dark night. Mira Holt went home to Larch Lane.\n" * 4,
    "other.txt": "The office is in the old mill. It opens at nine.\n" * 4, "more.txt": "Elm Court is far away.\n" * 4,
    "questions.txt": "Where does Mira Holt live?\nWhere does Jon Brandt live?\n",
    "TOFU_EVAL.json": json.dumps({"forget_truth_ratio": {"agg_value": 0.5}}),
}  # fmt: skip


def commands(page: Path) -> Iterator[tuple[str, str | None]]:
    """The commands of a page, each in one line, and why no test runs it: as the page says before or behind it."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        before, block = text[: found.start()].rstrip().rpartition("\n\n")[2], found["fenced"] or found["inline"]
        before = found["row"] or before
        if found["indented"]:
            block = re.sub(r"^    ", "", found["indented"], flags=re.MULTILINE)
        if block.startswith(("import ", "from ")):
            yield block, None
            continue
        for line in re.sub(r" *\\?\n +", " ", block).splitlines():
            if (line.split() or [""])[0] in FIRST and found["language"] in (None, ""):
                mark = MARK.search(before) or MARK.search(line)
                yield line, mark and " ".join(mark[1].split())


FOUND = {str(page.relative_to(ROOT).with_suffix("")): list(commands(page)) for page in PAGES}


def test_every_command_of_the_pages_is_run_or_the_page_says_why_not():
    reasons = [why for found in FOUND.values() for _, why in found]
    left = [why for why in reasons if why]
    print(f"{len(reasons)} commands, {len(left)} of them not run:", *sorted(set(left)), sep="\n  ")
    assert len(reasons) > 100 and len(left) < len(reasons) / 4
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(re.findall("not run by\\s+tests", text, re.IGNORECASE)) == len(MARK.findall(text))


class Reader:
    """Somebody who types what the pages say into a shell, with what their capitals stand for in his folder."""

    def __init__(self, place: Path, store: Path, means: dict[str, str]):
        self.place, self.means, self.tiny, self.server = place, means, True, None
        self.environment = {k: v for k, v in UNTOUCHED.items() if k != "MPLBACKEND"} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "MPLBACKEND": "Agg",
            "UNLEARN_STORE": str(store),
        }  # fmt: skip

    def runs(self, pattern: str) -> list[str]:
        return sorted(str(path.relative_to(self.place)) for path in self.place.glob(f"runs/{pattern}"))

    def type(self, line: str, expected: int = 0) -> str:
        """What a command prints; ``AssertionError`` where its exit status is another. A server runs on, to be asked."""
        for word in sorted(self.means, key=len, reverse=True):  # "run=FOLDER offsets=[FOLDER,…]" before "run=FOLDER"
            line = line.replace(word, self.means[word])
        if line.startswith(("import ", "from ")):
            return self._ended([sys.executable, "-c", line], 0)
        words = shlex.split(line, comments=True)
        words = [word for word in words if not re.fullmatch(r"\[\w+=.*\]", word)]  # [alpha=1]: may be left out
        if words[0] == "make":
            return self._ended(["make", "--dry-run", "-C", str(ROOT), *words[1:]], 0)
        if words[0] == "export":
            name, value = words[1].split("=", 1)
            self.environment[name] = subprocess.run(["sh", "-c", f'printf %s "{value}"'], stdout=-1, text=True).stdout
            return ""
        if words[0] == "torchrun":
            words[:1] = ["python", "-m", "torch.distributed.run"]
        words += self._small(words)
        if words[2:3] == ["unlearn.serve"]:
            return self._serve(words)
        return self._ended(words, expected)

    def _ended(self, words: list[str], expected: int) -> str:
        if words[:2] == ["python", "-m"] and words[2].startswith(("unlearn.", "analysis.")):
            done = forks().call(words[2], words[3:], self.place, self.environment, limit=900)
        else:
            done = subprocess.run(words, cwd=self.place, env=self.environment, capture_output=True, text=True)
        assert done.returncode == expected, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def _small(self, words: list[str]) -> list[str]:
        """Settings that make a run small, but for those that the command has itself, or that its data have not."""
        trains = {"unlearn.run", "unlearn.prepare", "examples/own_data.sh"} & {*words}
        if not trains or "--help" in words or not self.tiny:
            return []
        own = {word.split("=")[0] for word in words}
        chosen = own & {"data", "experiment"} or words[0] == "sh"
        settings = [o for o in (OWN if chosen else TINY) if o.split("=")[0] not in {*own, "eval.max_new_tokens"}]
        if {"experiment=pretrained", "experiment=refuse"} & {*words}:
            settings = [o for o in settings if not re.match(r"pair\.(target|small)\.", o)]
        return [*settings, "eval.max_examples=4"]

    def _serve(self, words: list[str]) -> str:
        """Until the server says that it is there; the next command may ask it."""
        self.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [*words, f"port={port}"]
        self.server = subprocess.Popen(words, cwd=self.place, env=self.environment, stderr=subprocess.PIPE, text=True)
        said = ""
        while f":{port}" not in said:
            said += (line := self.server.stderr.readline())
            assert line, f"{shlex.join(words)}\n{said}"
        self.means = {"localhost:8000": f"127.0.0.1:{port}", "curl": "curl --fail"} | self.means
        return said

    def close(self) -> None:
        """End the server, which is then to have no error."""
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            self.server.communicate(timeout=60)
            assert self.server.returncode == 0
            self.server = None


@pytest.fixture(scope="session")
def url(store):
    bench = workbench(compose(*TINY, f"paths.store={store}"))
    with serve(bench.model("target"), bench.encoder.tokenizer) as server:
        yield server.url


@pytest.fixture(scope="session")
def prepared(store, made, url, tmp_path_factory):
    """A folder with all that the pages speak of, among it a run that was evaluated at three α, and an export of it."""
    place = tmp_path_factory.mktemp("reader")
    for name, text in FILES.items():
        (place / name).write_text(text)
    (place / "examples").symlink_to(ROOT / "examples")
    for name, model in {"MODEL": made("llama"), "SMALLER": made("tied", 1)}.items():
        shutil.copytree(model, place / name)
        config = (model / "config.json").read_text()
        (place / name / "config.json").write_text(config.replace('_embeddings": 400', '_embeddings": 512'))
        (place / name / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if named := re.match(r"# (mine/\S+)\n", block["fenced"] or ""):
                (place / named[1]).parent.mkdir(parents=True, exist_ok=True)
                (place / named[1]).write_text(block["fenced"])
    reader = Reader(place, store, {})
    reader.type("python -m unlearn.run algo=npo eval.alphas=[0,0.5,1] trainer.held_out=0.4 wandb=offline")
    (run,) = (path.relative_to(place) for path in (place / "runs" / "default").glob("npo-*"))
    exported = reader.type(f"python -m unlearn.export run={run} to=export collapsed=yes")
    target = re.search(r"^to serve it: .* target=(\S+)", exported, re.MULTILINE)[1]
    return place, {
        "runs/default/FOLDER": str(run), "runs/STUDY": "runs/default", "FOLDER_OR_NAME": "MODEL", "URL": url,
        "model=NAME": "model=tiny", "[FOLDER]": f"[{run}]", "run=FOLDER": f"run={run}", '"FOLDER"': '"export"',
        '"MODEL"': repr(target),
        "target=MODEL base=SMALLER": f"target={target}", '"FOLDER_OF_THE_TARGET"': repr(target),
    }  # fmt: skip


@pytest.fixture
def reader(prepared, store, tmp_path):
    folder, means = prepared
    reader = Reader(Path(shutil.copytree(folder, tmp_path / "reader", symlinks=True)), store, {**means})
    yield reader
    reader.close()


@pytest.mark.nightly
@pytest.mark.parametrize("page", [page for page, found in FOUND.items() if found and page not in REQUESTS])
def test_the_commands_of_a_page_run_as_printed(page, reader, url):
    if page == "docs/black_box":
        reader.means["http://localhost:8000/v1"] = url
    if page == "docs/real_models":
        (reader.place / "topic.jsonl").unlink()  # it is made there
    for line, left in FOUND[page]:
        reader.means["[FOLDER,FOLDER]"] = f"[{','.join(reader.runs('default/eul*-eul-*'))}]"
        reader.means["runs/refuse/FOLDER"] = ",".join(reader.runs("refuse/*-*"))
        if not left:
            reader.type(line)


@pytest.mark.nightly
def test_the_procedure_for_deletion_requests_comes_out_as_its_page_says(reader):
    reader.tiny = False
    for line, _ in (*FOUND[REQUESTS[0]], *FOUND[REQUESTS[1]]):
        links = {
            path.stem: json.loads(path.read_text())["folder"] for path in (reader.place / "ledger").glob("links/*")
        }
        first, *others = [str(Path(links[id]).relative_to("..")) for id in ("R2", "R3") if id in links] or [""]
        reader.means |= {
            "[runs/requests/FIRST,runs/requests/SECOND]": f"[{','.join([first, *others])}]",
            "run=FOLDER offsets=[FOLDER,…] alpha=[α,…]": f"run={first} offsets=[{','.join(others)}] alpha=[1,1]",
        }
        ledger = reader.place / "ledger" / "ledger.jsonl"
        if ledger.is_file():
            reader.means["PUBLIC"] = json.loads(ledger.read_text().splitlines()[0])["body"]["ed25519"]
        reader.type(line, 1 if "trainer.steps=60" in line else 0)  # "Here it is not met"
