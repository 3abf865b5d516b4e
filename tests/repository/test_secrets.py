"""Keys and tokens are never written or shown; ``make audit`` says what it could not look up."""

import importlib.util
import logging
import os

import pytest
from omegaconf import OmegaConf
from support.helpers import ROOT, command, job_of, raw, with_value
from support.privacy_page import PLANTED

from unlearn.config import redaction
from unlearn.config.redaction import in_logs, is_secret, redact, redacted, secret_in, visible
from unlearn.config.schema import ConfigError
from unlearn.data.rows import DataError
from unlearn.grid.rules import parse
from unlearn.store import runlog
from unlearn.store.identity import flatten


@pytest.fixture
def planted(monkeypatch):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def test_a_secret_on_the_command_line_is_refused_without_showing_it(tmp_path):
    keys = ("wandb.api_key", "+hf_token", "hydra.job.env_set.HF_TOKEN", "wandb.password")
    done = command("unlearn.run", *(f"{key}=verysecretvalue" for key in keys), cwd=tmp_path, check=False)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert [line.split(": a key or token belongs in the environment")[0] for line in done.stderr.splitlines()] == [
        "Refused before any work:", *(f"  {key}" for key in keys)
    ]  # fmt: skip
    assert "verysecretvalue" not in done.stdout + done.stderr


@pytest.mark.parametrize("value", [*PLANTED.values(), f"see-{PLANTED['MY_SERVICE_PASSWORD']}", "hf_" + "a1B2" * 8])
def test_a_config_that_holds_a_secret_is_refused_without_showing_it(planted, tiny, value):
    for key in ("study", "wandb.project", "data.template.system"):
        with pytest.raises(ConfigError, match=f"{key}: holds") as error:
            parse(with_value(tiny, key, value))
        assert value not in str(error.value)


def test_an_error_that_carries_a_secret_is_recorded_without_it(config, planted, monkeypatch, caplog):
    from unlearn import run
    from unlearn.runs import job as jobs

    job = job_of(config("algo=npo"))

    def failing(*_):
        logging.getLogger("urllib3").warning("asked with %s", PLANTED["HF_TOKEN"])
        raise OSError(f"401 for https://me:sesame1234@hub.example/x with token {PLANTED['HF_TOKEN']}")

    monkeypatch.setattr(jobs, "execute", failing)
    factory = logging.getLogRecordFactory()
    try:
        run.perform(job)
    finally:
        logging.setLogRecordFactory(factory)
    log = (job.folder / "log.txt").read_text()
    error = runlog.manifest(job.folder)["error"]
    assert "asked with ***" in log and "401 for https://***@hub.example/x with token ***" in log
    assert "Traceback" in log and "with token ***" in error
    for text in (log, error, caplog.text):
        assert PLANTED["HF_TOKEN"] not in text and "sesame" not in text


def test_the_command_of_a_manifest_is_redacted(planted, monkeypatch):
    given = ["run.py", "alpha=1", "eval.max_new_tokens=200", "x.api_key=abc", f"study={PLANTED['HF_TOKEN']}",
             "--token", "abc", "pair.tokenizer.kind=words", "a={SOME_TOKEN:abcdef,b:1}"]  # fmt: skip
    monkeypatch.setattr("sys.argv", given)
    monkeypatch.delenv(runlog.COMMAND, raising=False)
    assert runlog.environment()["command"] == [
        "run.py", "alpha=1", "eval.max_new_tokens=200", "x.api_key=***", "study=***", "--token", "***",
        "pair.tokenizer.kind=words", "a={SOME_TOKEN:***,b:1}",
    ]  # fmt: skip


def test_names_of_secrets_and_of_none():
    for name in ("WANDB_API_KEY", "HF_TOKEN", "token", "x.api_key", "--password", "AWS_SECRET_ACCESS_KEY", "dbPassword",
                 "HUGGING_FACE_HUB_TOKEN", "hydra.job.env_set.MY_SECRET", "apikey", "credentials", "OPENAI_API_KEY_2",
                 "HF_TOKEN2", "DB_PASSWORD_10"):  # fmt: skip
        assert is_secret(name), name
    for name in ("eval.max_new_tokens", "pair.tokenizer", "TOKENIZERS_PARALLELISM", "monkey", "data.columns.id",
                 "KEYBOARD", "trainer.keep", "hydra.job.env_set", "secretary", "-m", "monkey_2", "seed_1"):  # fmt: skip
        assert not is_secret(name), name


def test_no_setting_of_ours_is_named_like_a_secret():
    for data in ("bios", "tofu", "jsonl", "muse_news"):
        cfg = raw(f"data={data}")
        assert [k for k in flatten(OmegaConf.to_container(cfg, resolve=True)) if is_secret(k)] == []


def test_redaction_by_hand(planted):
    assert redact("a plain text, alpha=1: key figures") == "a plain text, alpha=1: key figures"
    assert redact(f"x {PLANTED['WANDB_API_KEY']} y") == "x *** y"
    assert redact('{"api_key": "abc", "n": 1}') == '{"api_key": "***", "n": 1}'
    assert redact("https://user:pass@host/x https://host/x") == "https://***@host/x https://host/x"
    assert redact("x=my_token=abc&y=1") == "x=my_token=***&y=1"
    assert redact("max_new_tokens=200 monkey=3 turkey: 4") == "max_new_tokens=200 monkey=3 turkey: 4"
    assert redact("Authorization: Bearer abcdefghijk") == "Authorization: Bearer ***"
    assert redact("OPENAI_API_KEY_2=abc HF_TOKEN3=def") == "OPENAI_API_KEY_2=*** HF_TOKEN3=***"
    for advice in (
        "use key=[value1,value2]",
        "quote the value: key='value1,value2'",
        "give key=value",
        "key={a:1,b:2}",
    ):
        assert redact(advice) == advice, "Hydra's advice is no secret"
    assert redact("key=AIzaSyD4x7 my_key=[abc,def]") == "key=*** my_key=***,def]"
    assert redacted(["token=a b c", "x"]) == ["token=***", "x"]
    assert secret_in("nothing") is None and secret_in("ghp_" + "a" * 36) == "what has the form of a token"
    path = "/disk-of-the-group-with-a-very-long-name/hf_checkpoints/task-with-a-name-of-more-than-thirty-letters"
    assert redact(path) == path
    commit = "79cc2b2f" * 5
    assert redact(commit) == commit, "a commit looks like some keys, and is none"


def test_control_characters_of_a_text_are_shown_and_command_no_terminal(caplog, monkeypatch):
    assert visible("a\x1b[31mred\x07\u202e\r\n\tend") == "a\\x1b[31mred\\x07\\u202e\\r\n\tend"
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    in_logs()
    logging.getLogger("unlearn").warning("it says %s", "\x1b]0;title\x07")
    assert "it says \\x1b]0;title\\x07" in caplog.text


def test_errors_of_settings_and_data_are_redacted(planted):
    for kind in (ConfigError, DataError):
        assert str(kind(f"x={PLANTED['HF_TOKEN']}")) == "x=***"


def test_short_values_are_no_secrets(monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "offline")
    assert "SHORT_TOKEN" not in redaction.variables() and redact("wandb offline") == "wandb offline"
    assert os.environ["SHORT_TOKEN"] == "offline"


# --- make audit -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    "packages, status, said",
    [([FINE], 0, "no known vulnerabilities"), ([FINE, BAD], 1, "b 2: PYSEC-1; fixed in: 3"),
     ([FINE, SKIPPED], 3, "NOT looked up (1): c"), ([SKIPPED, BAD], 1, "NOT looked up (1): c"), ([], 3, "0 of 0")],
)  # fmt: skip
def test_an_audit_says_what_it_could_not_look_up(audit, packages, status, said):
    found, lines = audit.verdict({"dependencies": packages})
    assert found == status and said in "\n".join(lines)
    assert ("no known vulnerabilities" in "\n".join(lines)) == (status == 0)


@pytest.mark.nightly
@pytest.mark.parametrize("answer", ["raise SystemExit('no route to host')", "import time; time.sleep(60)"])
def test_an_audit_without_a_network_fails_and_says_so(audit, answer, tmp_path, monkeypatch, capsys):
    (tmp_path / "pip_audit.py").write_text(answer)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(audit, "SECONDS", 5)
    assert audit.main() == 3
    assert "nothing was audited" in capsys.readouterr().err


def test_the_audit_is_no_part_of_what_ci_runs():
    assert "audit" not in (ROOT / ".ci" / "run").read_text()
    verbs = (ROOT / "Makefile").read_text()
    assert "audit" not in verbs.split("check: setup")[1].split("\n\n")[0]
