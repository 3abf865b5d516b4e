"""``python -m unlearn.request``: what it refuses; conditions of a rule, by hand."""

import pytest

from unlearn import request
from unlearn.deploy.requests import evidence


def test_conditions_against_values_by_hand():
    entry = {"a/b": 0.3, "c": 2.0, "intervals": {"a/b": [0.2, 0.4]}}
    for text, value, holds in (
        ("a/b<=0.3", 0.3, True), ("a/b<=0.29", 0.3, False), ("upper:a/b<=0.35", 0.4, False),
        ("lower:a/b>=0.2", 0.2, True),
        ("kept:c>=0.5", 0.5, True), ("kept:a/b>=0", None, False), ("c >= 2", 2.0, True), ("upper:c<=9", None, False),
        ("d<=1e-3", None, False),
    ):  # fmt: skip
        condition = evidence.condition(text)
        found = condition.value(entry, {"c": 4.0})
        assert found == value and condition.holds(found) is holds, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "frob: must be one of init, add"),
        (["list"], "ledger=FOLDER must be given"),
        (["list", "ledger=nowhere"], "no ledger; begin one"),
        (["undo", "ledger=x"], "takes 1 id of a request"),
        (["list", "ledger=x", "algo=npo"], "algo=npo: list takes ledger="),
        (["add", "ledger=x", "my_token=abc"], "a key or token belongs in the environment"),
        (["init", "ledger=x", "hmac=my secret key"], "must be the NAME of an environment variable"),
        (["init", "ledger=x", "hmac=UNLEARN_NOT_SET"], "must hold a key of 16 characters or more, and has 0"),
        (["verify", "ledger=nowhere"], "no ledger"),
    ],
)
def test_wrong_calls_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert request.main(arguments) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_ledger_is_begun_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert request.main(["init", "ledger=mine"]) == 0 and (tmp_path / "mine" / "ledger.jsonl").is_file()
    assert "begun: mine/ledger.jsonl" in capsys.readouterr().out
    assert request.main(["init", "ledger=mine"]) == 2
