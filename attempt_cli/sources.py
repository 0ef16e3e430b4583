"""Which source prompts are meant, and whether they can be mixed."""

from __future__ import annotations

from collections.abc import Sequence

from attempt_cli.errors import AttemptError
from attempt_cli.name_lists import listed
from attempt_registry import Prompt, Registry

ALL = "all"


def source_prompts(
    registry: Registry, names: str | Sequence[str] | None, backbone: str | None, *, targets: Sequence[str] = ()
) -> tuple[Prompt, ...]:
    """Finds source prompts by their names, or all of a backbone.

    Args:
        registry: where they are kept.
        names: their names in order, as a list or as "a,b"; "all" means the newest version of every source prompt of
            the backbone; None means none.
        backbone: the backbone's name; with None, "all" needs the sources to be of one backbone.
        targets: the tasks that the sources are to help: a source prompt of one of them is not among "all", because it
            has seen that task's training rows.

    Raises:
        AttemptError: "all" finds none, or sources of several backbones.
        RegistryError: there is no prompt of a name.
    """
    if names is None:
        return ()
    if (chosen := listed(names)) != [ALL]:
        return tuple(registry.prompt(name) for name in chosen)
    newest: dict[str, Prompt] = {}
    for prompt in registry.prompts(kind="source", backbone=backbone):
        if prompt.task in targets:
            continue
        if prompt.name not in newest or newest[prompt.name].version < prompt.version:
            newest[prompt.name] = prompt
    sources = tuple(newest[name] for name in sorted(newest))
    if not sources:
        where = f" of {backbone}" if backbone else ""
        other = f" of another task than {', '.join(targets)}" if targets else ""
        raise AttemptError(f"there is no source prompt{where}{other} yet", "Train one: `attempt train-source sst2`.")
    if len({prompt.fingerprint for prompt in sources}) > 1:
        found = {prompt.fingerprint: prompt.backbone for prompt in sources}
        named = ", ".join(
            f"{name} ({fingerprint})" for fingerprint, name in sorted(found.items(), key=lambda one: one[1])
        )
        raise AttemptError(
            f"the source prompts belong to several backbones: {named}",
            "Choose one with --backbone NAME, or by its fingerprint where several share the name.",
        )
    return sources


def check_lengths(prompts: Sequence[Prompt], length: int | None = None) -> None:
    """Refuses prompts that cannot be mixed because they differ in length.

    Args:
        prompts: sources, targets and starts of one mixture.
        length: the length that is asked for, where it is.

    Raises:
        AttemptError: naming every prompt with its length.
    """
    lengths = {prompt.length for prompt in prompts}
    if len(lengths) > 1:
        found = ", ".join(f"{prompt.ref} {prompt.length}" for prompt in dict.fromkeys(prompts))
        raise AttemptError(
            f"the prompts differ in length: {found}",
            "A mixture needs prompts of one length: choose others with --sources.",
        )
    if lengths and length is not None and length not in lengths:
        raise AttemptError(
            f"--prompt-length {length} is not the length of the prompts it is to start from ({lengths.pop()})",
            "Leave --prompt-length out, or choose other prompts.",
        )
