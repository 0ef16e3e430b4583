"""Starts the server: finds what is served, takes the port, loads the backbone, and answers until it is stopped."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError, shortened
from attempt_cli.evaluation.models import find_model, records_of
from attempt_cli.server.settings import ServerSettings

if TYPE_CHECKING:
    from attempt_cli.server.engine import Engine
    from attempt_cli.server.upstream import Upstream
    from attempt_cli.session import Session
    from attempt_registry.records import Composition, Prompt

WAITING_CONNECTIONS = 1024  # that the system accepts before the server looks at them
NEEDED = ("fastapi", "uvicorn", "prometheus_client")  # the extra `serve`


@dataclass(frozen=True)
class Serving:
    """A server that has begun.

    Args:
        url: where it listens.
        backbone: its backbone's name.
        models: the names that requests can use.
        protected: whether it asks for a key.
        upstream: the address of the server that has the layers; None for none.
    """

    url: str
    backbone: str
    models: tuple[str, ...]
    protected: bool
    upstream: str | None = None

    def record(self) -> dict[str, Any]:
        """Returns it as JSON holds it."""
        found = {"url": self.url, "backbone": self.backbone, "models": len(self.models), "api_key": self.protected}
        return found if self.upstream is None else {**found, "upstream": self.upstream}


def run_server(
    session: Session, names: Sequence[str], settings: ServerSettings, started: Callable[[Serving], object]
) -> None:
    """Serves until SIGINT or SIGTERM; what was taken until then is answered.

    Args:
        session: says where the registry and the backbone are, and how much memory inputs may take.
        names: of prompts and compositions; without any, all of the backbone.
        settings: the server's.
        started: is told when it listens.

    Raises:
        AttemptError: the extra is missing, nothing can be served, prompts of several backbones, a port in use, or an
            upstream that does not answer or has another model.
    """
    needed = NEEDED if settings.upstream is None else (*NEEDED, "httpx")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise AttemptError(
            f"a server needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            "Install it: `pip install 'attempt-cli[serve]'`.",
        )
    settings.check()
    record = first_record(session, names)
    if not settings.is_local and settings.api_key is None:
        session.listener.note(
            f"Note: {settings.host} is open to other machines and no --api-key is set: whoever reaches it can ask."
        )
    make_engine = partial(_local_engine, session, record, settings)
    if settings.upstream is not None:
        from attempt_cli.server.upstream import find_upstream

        upstream = find_upstream(settings, session.store.backbone(record.fingerprint))
        make_engine = partial(_forwarding_engine, session, record, settings, upstream)
    with bound(settings) as taken:
        _serve(session, names, make_engine(), settings, taken, started)


def _local_engine(session: Session, record: Prompt | Composition, settings: ServerSettings) -> Engine:
    """Loads the backbone."""
    from attempt_cli.artefacts import check_backbone
    from attempt_cli.backbones.input_cache import RecentInputs
    from attempt_cli.byte_sizes import parse_size, total_memory
    from attempt_cli.server.engine import Engine

    budget = parse_size(str(session.input_cache)) if session.input_cache is not None else total_memory() // 4
    backbone = replace(session, input_cache=0).load_backbone([record])
    check_backbone(session.store, backbone, record)
    backbone.input_cache = None
    if budget and "after" in backbone.placements:
        backbone.input_cache = RecentInputs(budget, on_host=backbone.on_gpu)
    return Engine(backbone, max_tokens=settings.max_tokens, wait=settings.wait / 1000, queue=settings.max_queue)


def _forwarding_engine(
    session: Session, record: Prompt | Composition, settings: ServerSettings, upstream: Upstream
) -> Engine:
    """Loads the embeddings alone, and compares them with those of the server that has the layers."""
    from attempt_cli.server.forwarding import UpstreamEngine
    from attempt_cli.server.upstream import compare_tables

    table = session.load_table(record)
    compare_tables(upstream, table)
    return UpstreamEngine(table, upstream, queue=settings.max_queue)


def _serve(
    session: Session,
    names: Sequence[str],
    engine: Engine,
    settings: ServerSettings,
    taken: socket.socket,
    started: Callable[[Serving], object],
) -> None:
    from attempt_cli.server.app import create_app
    from attempt_cli.server.catalogue import Catalogue
    from attempt_cli.server.process import run

    catalogue = Catalogue(session, names, engine.backbone.fingerprint)
    app = create_app(catalogue, engine, settings)
    host, port = taken.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        taken.listen(WAITING_CONNECTIONS)
    except OSError as error:  # another took the port while the backbone was loaded
        raise _port_error(settings, error) from None
    engine.start()
    try:
        models = tuple(catalogue.all())
        serving = Serving(url, engine.backbone.name, models, settings.api_key is not None, settings.upstream)
        run(app, taken, settings.timeout, lambda: started(serving))
    finally:
        engine.stop()


def first_record(session: Session, names: Sequence[str]) -> Prompt | Composition:
    """Returns a record of the backbone that is served; nothing is loaded for that.

    Raises:
        RegistryError: a name that is not there.
        AttemptError: names of several backbones, or of another than is chosen; no names, and there is nothing to
            serve, or for several backbones.
    """
    store, chosen = session.store, session.backbone_name
    if names:
        records = records_of([find_model(session, name) for name in names])
        if len(records) < len(names):
            raise AttemptError("'none' is the bare backbone, not a prompt", "Name prompts and compositions.")
    else:
        records = [*store.compositions(backbone=chosen), *store.prompts(backbone=chosen)]
        if not records:
            of = f" for {chosen}" if chosen else ""
            raise AttemptError(
                f"there is no prompt to serve{of} in the registry {store.folder}",
                "Train one (`attempt train-source …`), or name another --registry or --backbone.",
            )
    known = {record.fingerprint: f"{record.backbone} ({record.fingerprint})" for record in records}
    if len(known) > 1:
        raise AttemptError(
            f"the registry has prompts for {len(known)} backbones: {shortened(known.values())}",
            "Choose one with --backbone, or name prompts of one.",
        )
    if names and chosen:
        for record in records:
            fitting = {one.fingerprint for one in store.backbones() if chosen in (one.name, one.fingerprint)}
            if record.backbone != chosen and record.fingerprint not in fitting:
                raise AttemptError(
                    f"'{record.ref}' was trained for {record.backbone}, the backbone chosen is {chosen}",
                    f"Name its own with --backbone {record.backbone}, or leave --backbone out.",
                )
    return records[0]


def bound(settings: ServerSettings) -> socket.socket:
    """Takes the port, before anything is loaded; who connects is refused until the server listens.

    Raises:
        AttemptError: the address is not this machine's, or the port is taken or reserved.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise AttemptError(
            f"'{settings.host}' is no address: {error}", "Give --host 127.0.0.1, or 0.0.0.0 for all."
        ) from None
    family, _, _, _, address = found[0]
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _port_error(settings, error) from None
    return taken


def _port_error(settings: ServerSettings, error: OSError) -> AttemptError:
    return AttemptError(
        f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}",
        "Give another --port (0 takes a free one), or an address of this machine as --host.",
    )
