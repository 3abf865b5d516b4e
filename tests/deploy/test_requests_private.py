"""What an attacker finds who can read a ledger, ask the target, change files, or start two calls at once."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from support.helpers import contents
from support.requested import EASY, copied

from unlearn import request
from unlearn.command import parse
from unlearn.config.schema import ConfigError
from unlearn.deploy.requests import actions, active
from unlearn.deploy.requests.actions import Request, add, erase, evaluate, undo
from unlearn.deploy.requests.chain import LedgerError, canonical, hash_of
from unlearn.deploy.requests.ledger import Ledger, begin, opened
from unlearn.deploy.requests.verify_ledger import hmac_of
from unlearn.deploy.serving.loading import load
from unlearn.deploy.serving.settings import Settings, checked
from unlearn.grid.rerun import open_run
from unlearn.runs.opened import Opened
from unlearn.runs.workbench import Workbench
from unlearn.store import runlog
from unlearn.store.files import read_json, sha256, write_json
from unlearn.store.identity import digest, run_identity

KEY, OTHER = "UNLEARN_TEST_LEDGER", "UNLEARN_TEST_OTHER"

# --- erased -----------------------------------------------------------------------------------------------------------


def numbers(value) -> set[float]:
    """All numbers of some JSON that have more digits than two."""
    if isinstance(value, dict | list):
        return {n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)}
    known = isinstance(value, float) and abs(value) < 1e6
    return {float(f"{value:.6g}")} if known and round(value, 2) != value else set()


def readable(ledger: Ledger) -> tuple[set[float], str]:
    """Every number in the files of a ledger, and all that they say."""
    files = contents(ledger.folder)
    said = [data.decode() for name, data in files.items() if not name.startswith("salts/")]
    parts = [part for text in said for part in ([text] if text.startswith("{\n") else text.splitlines())]
    return numbers([json.loads(part) for part in parts]), " ".join(said)


def test_whoever_can_ask_the_target_finds_no_erased_request_among_candidates(fused, tmp_path):
    """The attack: ask target, retrained and unlearned model about every candidate, and look the answers up."""
    ledger = copied(fused, tmp_path / "ledger")
    undo(ledger, "F1")
    runs = {id: open_run(ledger.run_of(id)) for id in ("R1", "R2")}
    asked = {id: numbers(runlog.evaluation(run.folder)) for id, run in runs.items()}
    asked = {id: found - asked[other] for id, found, other in (("R1", asked["R1"], "R2"), ("R2", asked["R2"], "R1"))}
    hashes = {id: plain_hashes(run) for id, run in runs.items()}
    for id in ("R1", "R2"):
        found, said = readable(ledger)
        assert len(found & asked[id]) > 5, "before the erasure the attack finds it"
        undo(ledger, id)
        erase(ledger, id)
        found, said = readable(ledger)
        assert found & asked[id] == set() and not [h for h in hashes[id] if h in said]
    assert request.main(["verify", f"ledger={ledger.folder}"]) == 0
    assert not list(ledger.salts.folder.glob("R*")) and not list((ledger.folder / "links").glob("R*"))


def plain_hashes(run: Opened) -> set[str]:
    """What a guess at the text gives whoever has the program and the rest of the data."""
    manifest, identity = runlog.manifest(run.folder), run_identity(run.cfg, run.job.data)
    files = {sha256(p) for p in run.folder.rglob("*") if p.is_file()}
    models = {v for k, v in manifest["models"].items() if k != "target"}
    return files | models | {run.folder.name, digest(identity, 64), digest(identity), run.job.data}


def test_an_erased_request_that_answers_goes_on_and_leaves_nothing_once_it_is_undone(fused, settings, tmp_path):
    ledger = copied(fused, tmp_path / "ledger")
    erase(ledger, "R1")
    assert not list((ledger.folder / "values").glob("R1*")) and not list((ledger.folder / "values").glob("F1*"))
    assert [a.id for a in active(ledger.folder)] == ["F1"]
    undo(ledger, "F1")
    assert [a.id for a in active(ledger.folder)] == ["R1", "R2"]
    evaluate(ledger, ["R1"])  # its verdict alone is kept
    assert ledger.state("R1").evaluated[-1]["body"]["values"] is None and ledger.state("R1").passed
    undo(ledger, "R1")
    left = {p.stem for name in ("salts", "links", "values") for p in (ledger.folder / name).iterdir()}
    assert left == {"R2", "R2@offset"} and [a.id for a in active(ledger.folder)] == ["R2"]


def test_values_that_were_changed_are_no_evidence(ledger):
    file = next((ledger.folder / "values" / "R1").iterdir())
    file.write_text(file.read_text().replace("0.0", "0.1"))
    for act in (["record", "R1"], ["list"], ["verify"]):
        assert request.main([*act, f"ledger={ledger.folder}"]) == 2


# --- forged -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hmacs(settings, tmp_path_factory) -> Path:
    """A ledger with HMACs, whose request is in effect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, "a key of some length")
        ledger = begin(tmp_path_factory.mktemp("hmacs") / "ledger", KEY)
        add(ledger, settings(1), Request(rule=EASY))
    return ledger.folder


@pytest.fixture
def signed(hmacs, tmp_path, monkeypatch) -> Ledger:
    monkeypatch.setenv(KEY, "a key of some length")
    return copied(hmacs, tmp_path / "signed")


def forged(ledger: Ledger, first: dict, key: bytes | None = None) -> None:
    """Write the whole chain anew, with another first entry and the request undone: nothing in it contradicts itself."""
    entries = [json.loads(line) for line in ledger.chain.lines()]
    entries[0]["body"] |= first
    entries.append(entries[-1] | {"n": len(entries), "kind": "undone", "body": {}})
    previous, lines = "0" * 64, []
    for entry in entries:
        entry = {k: v for k, v in entry.items() if k != "hmac"} | {"previous": previous}
        entry["hash"] = previous = hash_of(entry)
        lines.append(canonical(entry | ({"hmac": hmac_of(entry["hash"], key)} if key else {})) + b"\n")
    ledger.chain.path.write_bytes(b"".join(lines))


ACTS = (["list"], ["record", "R1"], ["head"], ["verify"], ["undo", "R1"], ["evaluate"], ["erase", "R1"])


@pytest.mark.parametrize("named", [False, True], ids=["named by the ledger", "named by the call"])
@pytest.mark.parametrize("forgery", ["no key", "another key", "a forged entry", "an unsigned chain", "a key of theirs"])
def test_with_a_named_key_no_key_or_a_wrong_hmac_is_a_refusal_wherever_a_ledger_is_read(
    signed, monkeypatch, forgery, named
):
    monkeypatch.setenv(OTHER, "a key that everybody knows")
    if forgery == "no key":
        monkeypatch.delenv(KEY)
    elif forgery == "another key":
        monkeypatch.setenv(KEY, "not the key it was made with")
    elif forgery == "a forged entry":
        forged(signed, {})
    elif not named:
        pytest.skip("whoever can write the folder can begin another ledger: the call must name the key")
    else:
        theirs = forgery == "a key of theirs"
        forged(signed, {"hmac": OTHER if theirs else None}, b"a key that everybody knows" if theirs else None)
    given, before = [f"hmac={KEY}"] if named else [], signed.chain.path.read_bytes()
    for act in ACTS:
        assert request.main([*act, f"ledger={signed.folder}", *given]) in (1, 2), act
    with pytest.raises(LedgerError, match="hmac"):
        active(signed.folder, KEY if named else None)
    with pytest.raises(ConfigError, match="hmac"):
        checked(parse(Settings, [f"ledger={signed.folder}", *given]))
    assert signed.chain.path.read_bytes() == before


# --- what an offset does ----------------------------------------------------------------------------------------------


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def resealed(run: Path) -> None:
    """Whoever changes a run's file can write its checksum into the manifest, too."""
    manifest = read_json(run / "manifest.json")
    sums = {name: sha256(run / name) for name in manifest["sealed_weights"]}
    results = {name: sha256(run / name) for name in manifest["sealed_results"]}
    write_json(run / "manifest.json", manifest | {"sealed_weights": sums, "sealed_results": results})


CHANGES = {
    "weights": lambda run: shutil.copy(run.parent / "other" / "offset" / "model.safetensors", run / "offset"),
    "activation": lambda run: edited(run / "offset" / "config.json", '"silu"', '"gelu"'),
    "rope": lambda run: edited(run / "offset" / "config.json", "10000.0", "20000.0"),
    "a file more": lambda run: (run / "offset" / "adapter_config.json").write_text("{}"),
    "template": lambda run: edited(run / "config.yaml", "prompt: '{question}'", "prompt: 'Now: {question}'"),
    "slope": lambda run: edited(run / "config.yaml", "slope: -1.0", "slope: -2.0"),
    "models": lambda run: edited(run / "manifest.json", '"anchor": "', '"anchor": "0'),
}


OFTEN = ("weights", "a file more", "template", "models")  # the others change the same files


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.nightly) for name in CHANGES]
)
def test_every_file_and_setting_that_decides_what_an_offset_does_is_bound_by_the_chain(ledger, tmp_path, change):
    """The attacker makes the run whole again: its checksums, its name, and the link to it."""
    run = Path(shutil.copytree(ledger.run_of("R1"), tmp_path / "requests" / ledger.run_of("R1").name))
    shutil.copytree(ledger.run_of("R2"), tmp_path / "requests" / "other")
    ledger.link("R1", run)
    assert active(ledger.folder)
    CHANGES[change](run)
    resealed(run)
    try:
        open_run(run)
    except ConfigError as error:  # its name is no longer that of its settings
        run = run.rename(run.with_name(re.search(r"now identify (\S+);", str(error))[1]))
        ledger.link("R1", run)
    with pytest.raises(LedgerError, match="R1: in .* is not what took effect: "):
        active(ledger.folder)
    assert request.main(["verify", f"ledger={ledger.folder}"]) == 1
    with pytest.raises(ConfigError, match="R1: in .* is not what took effect: "):
        load(checked(parse(Settings, [f"ledger={ledger.folder}"])))


def test_a_tokenizer_that_was_changed_in_the_store_is_not_served(ledger, monkeypatch):
    run = open_run(ledger.run_of("R1"))
    changed = copy.deepcopy(run.bench.encoder.tokenizer)
    changed.add_tokens(["new"])
    monkeypatch.setattr(run.bench.encoder, "tokenizer", changed)
    with pytest.raises(LedgerError, match="not what took effect: tokenizer"):
        ledger.active()[0].check(run)


def test_a_model_beside_the_offset_with_another_config_is_not_served(ledger, monkeypatch, tmp_path):
    """Its weights are the same: their fingerprint alone would not tell."""
    settings, real = checked(parse(Settings, [f"ledger={ledger.folder}"])), Workbench.folder
    load(settings)
    copies = {n: shutil.copytree(real(open_run(settings.run).bench, n), tmp_path / n) for n in ("target", "small")}
    edited(copies["small"] / "config.json", "10000.0", "20000.0")
    monkeypatch.setattr(Workbench, "folder", lambda self, name: copies.get(name) or real(self, name))
    with pytest.raises(LedgerError, match="R1: in .* is not what took effect: configs"):
        load(settings)


# --- two calls at once ------------------------------------------------------------------------------------------------


def test_two_calls_at_once_write_what_was_measured_once(ledger, settings, monkeypatch):
    """While the one measures, the other begins and ends."""

    def ask():
        return add(opened(ledger.folder), settings(1), Request(rule=EASY)).id

    def meanwhile(*given, real=actions.measured):
        monkeypatch.setattr(actions, "measured", real)
        others.append(ask())
        return real(*given)

    undo(ledger, "R1")
    erase(ledger, "R1")
    others: list[str] = []
    monkeypatch.setattr(actions, "measured", meanwhile)
    assert [ask(), *others] == ["R3", "R3"]
    kinds = [e["kind"] for e in ledger.chain.entries() if e["request"] == "R3"]
    assert kinds == ["asked", "effective", "evaluated"]
