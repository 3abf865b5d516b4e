"""What surrounds the jobs of one call: refuse bad settings before the first job, and sum up after the last.

Hydra's basic launcher runs on after a failing job but shows only the first error, and calls no hook at the end of a
failed sweep; so the jobs of a call are listed at its start, and their manifests are read at its end.
"""

import copy
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from unlearn.config.redaction import redact, redacted
from unlearn.config.schema import Config, ConfigError, conf_dir, help_text
from unlearn.config.setting import unusable
from unlearn.data.readers import read
from unlearn.data.rows import DataError
from unlearn.grid import fitting, launchers, queue, refusal, together
from unlearn.grid.refusal import (
    REFUSED,
    as_before,
    came_from_hydra,
    flags_first,
    printable,
    raising,
    refuse,
    said,
    secrets,
)
from unlearn.grid.rules import as_typed, parse, unknown_overrides
from unlearn.runs import stopping
from unlearn.store import locks, runlog
from unlearn.store.identity import Job
from unlearn.store.progress import progress
from unlearn.store.runlog import job


@dataclass
class Call:
    """The jobs of this command, filled by the callback at its start."""

    jobs: list[Job] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # that Hydra gives them
    report: bool = True  # a table of its runs at its end; and it ends at once when every run is done
    launcher: str = "basic"
    began: float = 0.0  # seconds since the epoch
    started: bool = False

    def begin(self, configs: Sequence[DictConfig]) -> None:
        """Check every job before any of them starts; one bad value refuses the whole call with exit status 2."""
        self.began = time.time()
        os.environ[launchers.JOBS] = str(len(configs))
        errors: list[Exception] = []
        listed: dict[str, Job] = {}  # by its config: 0.5 and .5 are one job
        for number, config in enumerate(configs):
            try:
                asked = _listed(parse(config))
            except (ConfigError, DataError) as error:
                errors.append(error)
                continue
            if asked.cfg.retry != "failed" or launchers.to_repeat(asked):
                if listed.setdefault(repr(asked.cfg), asked) is asked:
                    self.numbers.append(number)
        self.jobs = [replace(job, number=n) for n, job in enumerate(listed.values(), 1)]
        os.environ[launchers.TO_DO] = str(sum(not each.was_done for each in self.jobs))
        if not errors and not self.jobs:
            print(f"retry=failed: of {len(configs)} runs asked for none failed or was interrupted")
        problems = [line for error in errors for line in str(error).splitlines()]
        problems += together.problems([each.cfg for each in self.jobs], self.launcher)
        problems = problems or _problems(self.jobs)
        if problems:
            raise SystemExit(refuse("\n".join(dict.fromkeys(problems)), errors[0] if errors else None))
        as_before()
        self.started = True

    def summed_up(self) -> int:
        """Print the table of the call's runs, and log their studies; exit status 1 if one is not done."""
        if not (self.started and self.report and self.jobs):
            return 0
        from unlearn.grid import table

        for each in self.jobs:
            launchers.mark_killed(each)
        failed = table.report(self.jobs)
        if any(not j.was_done for j in self.jobs):
            from unlearn.grid.overview import log_studies

            log_studies(self.jobs)
        return 1 if failed else 0

    def job_of(self, config: DictConfig) -> Job:
        """The job of a composed config: the one listed at the start; a launcher's worker, which saw none, makes it."""
        cfg = parse(config)
        listed = next((j for j in self.jobs if j.cfg == cfg), None)
        return listed or job(cfg, read(cfg).fingerprint())


class Grid(Callback):
    """Hydra's hook into the start of a run or grid (named in conf/config.yaml).

    Hydra makes it and hands it to nobody, so the call that it fills, of which a process has one, stands on the class.
    """

    call: ClassVar[Call] = Call()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _fatal():
            _check_files(config)
            self.call.begin([_without_hydra(config)])
            queue.begin(self.call.jobs)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _fatal():
            _check_files(config)
            self.call.launcher = config.hydra.runtime.choices["hydra/launcher"]
            self.call.begin(_sweep(config))
            if self.call.launcher == "submitit_slurm":
                from unlearn.grid import slurm

                slurm.install(self.call.jobs, self.call.numbers)
            queue.begin(self.call.jobs)
        if self.call.report and all(j.was_done for j in self.call.jobs):
            raise SystemExit(0)  # composing every job twice more, only to skip it, takes Hydra seconds


@contextmanager
def _fatal() -> Iterator[None]:
    """End the call at an exception, which Hydra would turn into a warning in a callback."""
    try:
        yield
    except REFUSED as error:  # a choice, key or type that Hydra refuses, or a file that cannot be read
        raise SystemExit(refuse(said(error), error)) from None
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        raise SystemExit(1) from None


def _check_files(config: DictConfig) -> None:
    """Refuse a user's YAML file that has the name of one of ours: Hydra would take ours in silence."""
    ours = Path(conf_dir())
    for source in OmegaConf.select(config, "hydra.runtime.config_sources") or ():
        own = Path(source.path)
        if source.schema != "file" or source.provider == "main" or own.resolve() == ours.resolve():
            continue
        names = sorted(path.relative_to(ours) for path in ours.rglob("*.yaml"))
        for name in (name for name in names if (own / name).is_file()):
            other = name.with_stem(f"my_{name.stem}").with_suffix("")
            raise ConfigError(f"{own / name}: unlearn has a {name} itself; give yours another name, e.g. {other}")


def _without_hydra(config: DictConfig) -> DictConfig:
    plain = copy.deepcopy(config)
    with open_dict(plain):
        plain.pop("hydra", None)
    return plain


def _sweep(config: DictConfig) -> list[DictConfig]:
    """Configs of all jobs of a grid, expanded as Hydra's basic sweeper does it.

    Hydra composes every job from its files, a quarter of a second each. Jobs that choose the same files are composed
    once here, and their values are set in the same order.
    """
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)  # what is interpolated is each job's own
    ours = given["hydra"]  # --config-dir and the search path: folders with more groups
    axes: dict[str, list[Override]] = {}
    params = config.hydra.sweeper.get("params") or {}  # a grid written in an experiment's YAML
    for o in parser.parse_overrides([*(f"{k}={v}" for k, v in params.items()), *given["task"]]):
        texts = o.sweep_string_iterator() if o.is_sweep_override() else [o.get_value_element_as_str()]
        axes[o.get_key_element()] = parser.parse_overrides([f"{o.get_key_element()}={text}" for text in texts])

    @cache
    def composed(*overrides: str) -> DictConfig:
        return _without_hydra(loader.load_sweep_config(config, list(overrides)))

    @cache
    def is_group(key: str) -> bool:
        if "." in key:  # a path into the config; asking Hydra takes it a twentieth of a second for each key
            return False
        return bool(loader.get_group_options(key, config_name=config.hydra.job.config_name, overrides=ours))

    def only_a_value(override: Override) -> bool:
        """Whether it sets a value, and does not choose the files that are composed: Hydra's own rule."""
        key = override.key_or_group
        return not override.is_hydra_override() and (isinstance(override.value(), dict) or not is_group(key))

    found = []
    for overrides in itertools.product(*axes.values()):
        values = [o for o in overrides if only_a_value(o)]
        changed = copy.deepcopy(composed(*(o.input_line for o in overrides if o not in values)))
        there = not any(o.package is not None or o.is_add() or o.is_force_add() or o.is_delete() for o in values)
        try:
            for o in values if there else ():
                OmegaConf.update(changed, o.key_or_group, o.value(), merge=True)
        except OmegaConfBaseException:
            there = False
        # any other value Hydra itself must add, remove or refuse
        found.append(changed if there else composed(*(o.input_line for o in overrides)))
    return found


def check(cfg: Config) -> Job:
    """The job of a config; ``ConfigError`` if it would not start: what ``parse`` cannot tell without its files."""
    asked = _listed(cfg)
    if problems := _problems([asked]):
        raise ConfigError("\n".join(problems))
    return asked


def _listed(cfg: Config) -> Job:
    """The job of a config, whose folders can be used or made, and whose data can be read."""
    if problems := list(_places(cfg, write=False)):
        raise ConfigError("\n".join(problems))
    return job(cfg, read(cfg).fingerprint())


def _places(cfg: Config, write: bool) -> Iterator[str]:
    for key in ("runs", "store"):
        yield from unusable(f"paths.{key}", getattr(cfg.paths, key), write)


def _problems(jobs: Sequence[Job]) -> list[str]:
    """Why jobs would fail, if any has work to do: folders that cannot be written, and what only torch can tell."""
    if all(j.was_done for j in jobs):
        return []
    print(f"checking settings and data (jobs: {len(jobs)})", file=sys.stderr, flush=True)
    if shut := [problem for j in jobs for problem in _places(j.cfg, write=True)]:
        return shut
    configs = [j.cfg for j in jobs]
    if found := [*fitting.problems(configs)] or [*_unlocked(Path(j.cfg.paths.store) for j in jobs)]:
        return found
    with progress(None, "checking models and data"):
        from unlearn.grid import inspection  # imports torch and transformers, which takes seconds

        return [*inspection.problems(configs), *_unlocked(j.folder.parent for j in jobs)]


def _unlocked(folders: Iterable[Path]) -> Iterator[str]:
    """Where work could be done twice, since locks do not hold. Told late: folders are made for it."""
    for folder in dict.fromkeys(folders):
        try:
            locks.lock(folder / locks.LOCKS, "probe")
        except OSError as error:
            yield str(error)


def supervise(
    task: Callable[[DictConfig], None], perform: launchers.Perform | None = None, report: bool = True, about: str = ""
) -> int:
    """Let Hydra call ``task``, then print the table of the call's jobs; the exit status is 0 only if all are done.

    ``perform`` does one job: those that a launcher lost with a process that was killed. ``about`` opens the help.
    """
    if {"--help", "-h"} & set(sys.argv):
        refusal.print_help(f"{about}{help_text()}")
        return 0
    if "--version" in sys.argv:
        print(f"unlearn {version(runlog.NAME)}")
        return 0
    printable()
    call = Grid.call = Call(report=report)
    if problems := secrets(sys.argv[1:]):  # Hydra shows a command line where it refuses it
        return refuse("\n".join(problems))
    if (status := together.one_process()) is not None:
        return status
    command = [Path(sys.argv[0]).name, *redacted(sys.argv[1:])]
    os.environ[runlog.COMMAND] = json.dumps(command)  # that of workers is another
    sys.argv[1:] = [as_typed(argument) for argument in flags_first(sys.argv[1:])]
    status = 0
    try:
        with stopping.listening():
            status = _hydra(task, call)
            left = call.jobs
            if status == 1 and call.started and perform is not None and call.launcher in launchers.RESUMED:
                left = launchers.resume(perform, left, call.began)  # what killed its process is not done in this
                status = 0
            if status == 0 and call.started and perform is not None and call.launcher in ("basic", "joblib"):
                if left := [job for job in left if queue.is_left(job)]:
                    launchers.log_as_jobs()
                    queue.share(perform, left)
    except KeyboardInterrupt as stop:
        print(f"stopped by {str(stop) or 'SIGINT'}; rerun the same command to resume", file=sys.stderr)
        status = stop.status if isinstance(stop, stopping.Stopped) else 130
    queue.end()
    failed = call.summed_up()
    return status or failed


def _hydra(task: Callable[[DictConfig], None], call: Call) -> int:
    """The exit status of Hydra's main, which composes the configs and starts the jobs."""
    try:
        with raising():
            hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")(task)()
    except SystemExit as stop:
        return 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if not call.started and came_from_hydra(error):  # a config that Hydra itself refuses
            return refuse("\n".join(unknown_overrides(sys.argv[1:])) or said(error), error)
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        return 1
    return 0
