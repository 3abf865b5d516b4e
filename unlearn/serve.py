"""Serve an unlearned model behind OpenAI's HTTP interface.

python -m unlearn.serve run=FOLDER
  run=FOLDER            a trained run, or an export with target=FOLDER_OR_NAME (and base=…, if its card names one)
  offsets=[FOLDER,…]    more of them, trained beside the same target and small pair: all their offsets are added
  ledger=FOLDER         instead of both: the offsets that a ledger of deletion requests says are in effect; hmac=NAME:
                        the environment variable with the key that its entries must be signed with
  alpha=1               for all, or alpha=[1,0.5]: one for run and each of offsets (default: each run's own)
  per_request=true      lets a request choose alpha and offsets: whoever can, can ask the target itself (alpha=0)
  host=127.0.0.1 port=8000 name=NAME            port=0: a free one; name: what the model is called
  hosts=[NAME,…]        by which clients may call it (default: on a loopback address its own names, else any)
  key_env=NAME admin_key_env=NAME               environment variables with the keys for all, and for /v1/offsets
  max_batch=16 max_waiting=256 max_choices=128 max_tokens=1024 max_logprobs=-1      limits (docs/serving.md)
  max_connections=512
  patience=60           seconds that a request may take to come, a client to read on, the engine for a step
  exact=true            decides near ties alone in half precision, too: slow there
  grace=30              seconds that running requests have to finish when the server is stopped

  May be given for a run, too: trainer.device, trainer.threads, paths.store, data.path; for an export: trainer.device.
  Needs the extra:  pip install -c constraints.txt -e .[serve]
"""

import logging
import signal
import socket
import sys
from importlib.util import find_spec

from unlearn.command import verb
from unlearn.config.schema import ConfigError
from unlearn.deploy.serving.settings import LOOPBACK, Settings, checked
from unlearn.grid.refusal import Failed

log = logging.getLogger(__name__)


@verb(Settings)
def main(keys: Settings) -> None:
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigError("python -m unlearn.serve needs FastAPI: pip install -c constraints.txt -e .[serve]")
    settings = checked(keys)
    with _listen(settings) as place:
        _serve(settings, place)


def _listen(settings: Settings) -> socket.socket:
    """Before the models are loaded: a port that is taken should not be found out minutes later."""
    place = None
    try:
        kind, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(kind, socket.SOCK_STREAM)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except OSError as error:
        if place is not None:
            place.close()
        why = f"cannot bind ({error.strerror or error}); choose another port, or port=0 for any free port"
        raise ConfigError(f"host={settings.host} port={settings.port}: {why}") from None
    return place


def _serve(settings: Settings, place: socket.socket) -> None:
    """Until SIGTERM or SIGINT: then nothing new is taken, and what runs may finish within the grace."""
    import uvicorn

    from unlearn.deploy.serving.app import create
    from unlearn.deploy.serving.connections import AT_ONCE, Server, bounded
    from unlearn.deploy.serving.engine import Engine
    from unlearn.deploy.serving.loading import load

    loaded = load(settings)
    host, port = place.getsockname()[:2]
    engine = Engine(loaded.blend, loaded.encoder, settings.max_batch, settings.max_waiting, settings.exact).start()
    try:
        app = create(engine, settings)
        if settings.host not in LOOPBACK and settings.key_env is None:
            log.warning("host=%s without key_env: whoever reaches the port may ask", settings.host)
        for part in loaded.blend.parts.values():
            log.info("offset %s: α=%g, weights %s", part.name, part.alpha, part.weights)
        name = f"[{host}]" if ":" in host else host
        place.listen()  # whoever reads the address below may connect at once
        log.info("http://%s:%d/v1 (target %s)", name, port, engine.blend.target.fingerprint)
        config = uvicorn.Config(
            app, http=bounded(settings), backlog=AT_ONCE, ws="none", log_config=None, log_level="error",
            access_log=False, proxy_headers=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=max(1, round(settings.grace)),
        )  # fmt: skip
        before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}  # uvicorn sends it on
        try:
            Server(config).run(sockets=[place])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        if not engine.close(max(1, settings.grace)):
            raise Failed(f"the engine did not end within {settings.grace:g} s: its step has taken {engine.busy:.0f} s")
    log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
