"""Pulls a prompt or a composition from the hub: fetches only files known to be data, then adds all or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from attempt_cli.exchange.folders import PROVENANCE
from attempt_cli.exchange.importing import Options, import_path
from attempt_cli.hub import Place, unknown_repository
from attempt_cli.sharing import repository
from attempt_cli.sharing.files import ADAPTER, BUNDLE

if TYPE_CHECKING:
    from attempt_cli.session import Session
    from attempt_registry import Attention, Composition, Prompt

# bytes; a prompt has kilobytes, a composition with a large attention some megabytes
LARGEST = {BUNDLE: 1 << 30, ADAPTER[0]: 1 << 20, ADAPTER[1]: 1 << 30, PROVENANCE: 4 << 20}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Args:
        repository: "owner/name".
        commit: the commit that was read.
        format: what was recognised in it.
        prompts, attentions, compositions: the new records.
    """

    repository: str
    commit: str
    format: str
    prompts: tuple[Prompt, ...]
    attentions: tuple[Attention, ...]
    compositions: tuple[Composition, ...]

    @property
    def name(self) -> str:
        """The full name of what can be used: the composition, else the last prompt."""
        return (*self.prompts, *self.compositions)[-1].ref

    def record(self) -> dict[str, Any]:
        """Returns the pull as JSON holds it."""
        added = {
            kind: [{"ref": record.ref, **asdict(record)} for record in getattr(self, kind)]
            for kind in ("prompts", "attentions", "compositions")
        }
        return {
            "name": self.name,
            "repository": self.repository,
            "commit": self.commit,
            "format": self.format,
            **added,
        }


def pull_place(session: Session, place: Place, options: Options) -> Pulled:
    """Pulls what lies at a place; see `api.sharing.pull`."""
    state = repository.find_state(place)
    if state is None:
        raise unknown_repository(place)
    wanted = wanted_files(place, state.sizes)
    with tempfile.TemporaryDirectory(prefix="attempt-pull-") as temporary:
        folder = Path(temporary)
        repository.download(place, state.commit, wanted, folder)
        before = _count(session)
        origin = {"repository": place.repository, "repository_type": "model", "revision": state.commit}
        found = import_path(session, folder / BUNDLE if BUNDLE in wanted else folder, options, origin, unseen=True)
    if _count(session) == before:
        session.listener.note("All of it was here already.")
    return Pulled(place.repository, state.commit, found.format, found.prompts, found.attentions, found.compositions)


def _count(session: Session) -> int:
    """Counts the records that a pull may add."""
    from attempt_registry.records import Attention, Composition, Prompt

    store = session.store
    return store.count(Prompt, {}) + store.count(Attention, {}) + store.count(Composition, {})


def wanted_files(place: Place, sizes: Mapping[str, int]) -> dict[str, int]:
    """Chooses what to fetch: our bundle, else an adapter of PEFT with what stands beside it.

    Args:
        place: for messages.
        sizes: the name of each file in the repository -> its bytes.

    Raises:
        AttemptError: there is neither, or a file is far too large.
    """
    if BUNDLE in sizes:
        names: tuple[str, ...] = (BUNDLE,)
    elif set(ADAPTER) <= sizes.keys():
        names = (*ADAPTER, *([PROVENANCE] if PROVENANCE in sizes else []))
    else:
        pickled = next((name for name in sizes if name.endswith(PICKLES)), None)
        raise AttemptError(
            f"'{place}' holds no prompt that can be pulled" + (f": '{pickled}' may run code" if pickled else ""),
            f"Known are {BUNDLE}, which `attempt push` writes, and {' with '.join(ADAPTER)}, which PEFT writes.",
        )
    for name in names:
        if sizes[name] > LARGEST[name]:
            raise AttemptError(
                f"'{name}' of '{place}' has {sizes[name]:,} bytes: no prompt is that large", "Check what it is."
            )
    return {name: sizes[name] for name in names}
