"""What surrounds the jobs of one call: refuse bad settings before the first job, and sum up after the last.

Hydra's basic launcher runs on after a failing job but shows only the first error, and calls no hook at the end of a
failed sweep; so the jobs of a call are listed at its start, and their manifests are read at its end.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from unlearn.config.redaction import is_secret, redact, redacted
from unlearn.config.schema import Config, ConfigError
from unlearn.data.readers import read
from unlearn.data.rows import DataError
from unlearn.grid import ended, places, rest
from unlearn.grid.refusal import REFUSED, as_before, came_from_hydra, raising, refuse, said
from unlearn.grid.rules import parse, unknown_overrides
from unlearn.runs import stopping
from unlearn.store import runlog
from unlearn.store.identity import Job
from unlearn.store.runlog import job

log = logging.getLogger(__name__)


@dataclass
class Call:
    """The jobs of this command, filled by the callback at its start."""

    jobs: list[Job] = field(default_factory=list)
    configs: list[DictConfig] = field(default_factory=list)  # of the jobs, as composed
    launcher: str = "basic"
    began: float = 0.0  # seconds since the epoch
    started: bool = False
    skip_done: bool = True  # end at once when every run is done


call = Call()


class Grid(Callback):
    """Hydra's hook into the start of a run or grid (named in conf/config.yaml)."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _fatal():
            _check_and_list([config])

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _fatal():
            call.launcher = config.hydra.runtime.choices["hydra/launcher"]
            _check_and_list(_sweep(config))
        if call.skip_done and all(j.was_done for j in call.jobs):
            raise SystemExit(0)  # composing every job twice more, only to skip it, takes Hydra seconds


@contextmanager
def _fatal() -> Iterator[None]:
    """Hydra turns an exception in a callback into a warning and goes on; here it ends the call."""
    try:
        yield
    except REFUSED as error:  # a choice, key or type that Hydra refuses, or a file that cannot be read
        raise SystemExit(refuse(said(error), error)) from None
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        raise SystemExit(1) from None


def _sweep(config: DictConfig) -> list[DictConfig]:
    """Configs of all jobs of a grid, expanded as Hydra's basic sweeper does it.

    Hydra composes every job from its files, a quarter of a second each. Jobs that choose the same files are composed
    once here; their values are set as Hydra sets them, in the same order.
    """
    loader = GlobalHydra.instance().config_loader()
    params = config.hydra.sweeper.get("params") or {}  # a grid written in an experiment's YAML
    arguments = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=loader)
    batches = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
    ours = list(config.hydra.overrides.hydra)  # --config-dir and the search path: folders with more groups
    _, files = loader._parse_overrides_and_create_caching_repo(config.hydra.job.config_name, ours)
    composed: dict[tuple[str, ...], DictConfig] = {}
    found = []
    for overrides in (parser.parse_overrides(o) for batch in batches for o in batch):
        values = [o for o in overrides if _only_a_value(o, files)]
        choices = tuple(o.input_line for o in overrides if o not in values)
        if choices not in composed:
            composed[choices] = loader.load_sweep_config(config, list(choices))
        job = copy.deepcopy(composed[choices])
        loader._apply_overrides_to_config(values, job)
        found.append(job)
    return found


def _only_a_value(override: Override, files: IConfigRepository) -> bool:
    """Whether it sets a value, and does not choose the files that are composed. Hydra's own rule."""
    if override.is_hydra_override():
        return False
    return isinstance(override.value(), dict) or not files.group_exists(override.key_or_group)


def _check_and_list(configs: list[DictConfig]) -> None:
    """Check every job before any of them starts; one bad value refuses the whole call with exit status 2."""
    problems: dict[str, None] = {}
    call.began = time.time()
    first: Exception | None = None
    for config in configs:
        plain = copy.deepcopy(config)
        with open_dict(plain):
            plain.pop("hydra", None)
        try:
            cfg = parse(plain)
            _check_places(cfg, write=False)
            data = read(cfg).fingerprint()
        except (ConfigError, DataError) as error:
            problems |= dict.fromkeys(str(error).splitlines())
            first = first or error
            continue
        asked = job(cfg, data)
        if cfg.retry == "failed" and not ended.to_repeat(asked):
            continue
        call.jobs.append(asked)
        call.configs.append(plain)
    if not problems and not call.jobs:
        print(f"retry=failed: of {len(configs)} runs asked for none failed or was stopped")
    if not problems and not all(j.was_done for j in call.jobs):
        problems |= _objective_problems([j.cfg for j in call.jobs])
    if problems:
        raise SystemExit(refuse("\n".join(problems), first))
    as_before()
    call.started = True


def _objective_problems(configs: list[Config]) -> dict[str, None]:
    """What matters only where there is work, and what only torch can tell, which takes seconds to import: folders that
    cannot be written, terms that do not exist or do not fit, a device that is not there, models and rows that do not
    fit each other, too many rows.
    """
    problems: dict[str, None] = {}
    for cfg in configs:
        try:
            _check_places(cfg, write=True)
        except ConfigError as error:
            return {str(error): None}
    from unlearn.grid.inspection import Inspection, _fitting, _too_large
    from unlearn.learning.loop import device

    inspection = Inspection()
    for cfg in configs:
        try:
            device(cfg.trainer.device)
            _fitting(cfg)
            inspection.check(cfg)
            problems |= dict.fromkeys(_too_large(cfg))
        except ValueError as error:
            problems[str(error)] = None
    return problems


def check(cfg: Config) -> None:
    """Raise ``ConfigError`` for a config whose job would not start: what ``parse`` cannot tell without its files."""
    _check_places(cfg, write=False)
    if not job(cfg, read(cfg).fingerprint()).was_done:
        problems = _objective_problems([cfg])
        if problems:
            raise ConfigError("\n".join(problems))


def _check_places(cfg: Config, write: bool) -> None:
    """Raise ``ConfigError`` unless the folders of runs and store can be read or made; and written, if asked."""
    for key in ("runs", "store"):
        for problem in places.problems(f"paths.{key}", getattr(cfg.paths, key), write):
            raise ConfigError(problem)


def supervise(run: Callable[[], None], perform: rest.Perform | None = None, report: bool = True) -> int:
    """Run Hydra's main, then print the table of the call's jobs; the exit status is 0 only if all are done.

    ``perform`` does one job: those that a launcher lost with a process that was killed.
    """
    call.skip_done = report
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print("a run is one process: start this command itself, not through accelerate or torchrun", file=sys.stderr)
        return 2
    secrets = [name for name in (a.split("=")[0] for a in sys.argv[1:]) if is_secret(name)]
    if secrets:  # others see a command line, and Hydra shows it where it refuses it
        rule = "a key or token belongs in the environment (WANDB_API_KEY, HF_TOKEN), never on a command line"
        print("\n".join(f"{name}: {rule}" for name in secrets), file=sys.stderr)
        return 2
    command = [Path(sys.argv[0]).name, *redacted(sys.argv[1:])]
    os.environ[runlog.COMMAND] = json.dumps(command)  # that of workers is another
    # Hydra's parser takes no flag between two overrides, and -m is what people add in the middle of a command.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    stopping.listen()
    try:
        status = _jobs(run, perform)
    except KeyboardInterrupt as stop:
        print(f"interrupted ({stop or 'SIGINT'}); the same command goes on from here", file=sys.stderr)
        status = stop.status if isinstance(stop, stopping.Stopped) else 130
    if not (call.started and report and call.jobs):
        return status
    for each in call.jobs:
        ended.bury(each)
    from unlearn.grid import table

    failed = table.report(call.jobs)
    if any(not j.was_done for j in call.jobs):
        from unlearn.grid.overview import log_studies

        log_studies(call.jobs)
    return status or (1 if failed else 0)


def _jobs(run: Callable[[], None], perform: rest.Perform | None) -> int:
    """Hydra's main and what is left of its jobs where the launcher gave up; the exit status so far."""
    try:
        with raising():
            run()
        return 0
    except SystemExit as stop:
        status = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if not call.started and came_from_hydra(error):  # a config that Hydra itself refuses
            return refuse("\n".join(unknown_overrides(sys.argv[1:])) or said(error), error)
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        status = 1
    if status != 1 or not call.started or perform is None or call.launcher not in rest.LAUNCHERS:
        return status
    rest.go_on(perform, list(zip(call.configs, call.jobs, strict=True)), call.began)
    return 0
