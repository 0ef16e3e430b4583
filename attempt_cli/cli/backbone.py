"""`attempt backbone`: the frozen language models that prompts are trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from attempt_cli.cli.options import BackboneOptions, refuse_options, where_options

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.group("backbone")
def command() -> None:
    """The frozen language models that prompts belong to.

    \b
      attempt backbone list
      attempt backbone show smollm2-135m
    """


@command.command("list")
@click.pass_obj
def list_backbones(settings: Settings) -> None:
    """List the short names, the places of their weights, and what the registry knows about them.

    \b
      attempt backbone list
      attempt --format json backbone list
    """
    from attempt_cli.backbones.names import aliases, find_backbone

    recorded = settings.registry().backbones()
    rows = []
    for name in dict.fromkeys([*aliases(), *(backbone.name for backbone in recorded)]):
        place = find_backbone(name) if name in aliases() else None
        row = {"name": name, "from": "recorded", "location": None, "width": None, "fingerprint": None}
        known = [backbone for backbone in recorded if backbone.name == name]
        for backbone in known:
            here = place is not None and place.source == backbone.source
            about = {"location": backbone.source, "width": backbone.width, "fingerprint": backbone.fingerprint}
            rows.append({**row, "from": place.kind if here and place else "recorded", **about})
        if place is not None and place.source not in [backbone.source for backbone in known]:
            rows.append({**row, "from": place.kind, "location": place.location})
    settings.output.rows("backbones", rows, ["name", "from", "location", "width", "fingerprint"])


@command.command("show")
@click.argument("name", required=False)
@where_options
@click.pass_obj
def show_backbone(settings: Settings, /, name: str | None, where: BackboneOptions) -> None:
    """Load a backbone, show its properties, and record it in the registry.

    \b
      attempt backbone show smollm2-135m
      attempt backbone show ./my-model --dtype float32
    """
    from dataclasses import asdict, replace

    from attempt_cli.artefacts import remember_backbone

    if name is not None:
        refuse_options(click.get_current_context(), ["backbone"], "beside NAME: name one backbone")
    session = settings.session(replace(where, backbone=name or where.backbone), input_cache=0)
    backbone = session.load_backbone()
    remember_backbone(session.store, backbone)
    record = {
        **asdict(session.store.backbone(backbone.fingerprint)),
        "tokenizer": backbone.tokenizer_digest,
        "layers": getattr(backbone.model.config, "num_hidden_layers", None),
        "vocabulary": backbone.vocabulary_size,
        "positions": backbone.max_positions,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "quantize": backbone.quantization,
    }
    settings.output.record("backbone", record)
