"""Writes the model card: the README.md of a repository on the hub, from what the registry knows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from attempt_cli.data.template import template_columns
from attempt_cli.sharing.markup import block, code, plain, table
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.record import RecordedEvaluation
    from attempt_registry import Backbone

TAGS = ("soft-prompt", "prompt-tuning", "attempt")
NOT_STATED = "not stated"
# the hub's names of metrics, where it has one
HUB_METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "f1_macro": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "squad_f1": "squad",
    "squad_em": "squad",
    "record_f1": "record",
    "record_em": "record",
    "multirc_f1a": "f1",
    "multirc_em": "exact_match",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")  # as the hub's list writes them


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Args:
        record: the prompt or composition.
        repository: its place on the hub, "owner/name".
        backbone: as the registry recorded it.
        base_model: the backbone's hub id; None where it is not known.
        revision: the commit of the base model; None where it is not known.
        peft: whether the folder is an adapter of PEFT.
        prompts: the target prompts, or the prompt itself; the sources where there are no targets.
        tasks: the tasks of `prompts`, as far as they are recorded.
        evaluations: the newest of each task and split.
        license: of the prompt, an identifier of the hub's list.
        data_licence: of the rows it was trained on; None takes what the tasks say.
    """

    record: Prompt | Composition
    repository: str
    backbone: Backbone
    base_model: str | None
    revision: str | None
    peft: bool
    prompts: tuple[Prompt, ...]
    tasks: tuple[Task | None, ...]
    evaluations: tuple[RecordedEvaluation, ...] = ()
    license: str | None = None
    data_licence: str | None = None

    @property
    def known_tasks(self) -> tuple[Task, ...]:
        """The tasks whose fields are recorded, each once."""
        return tuple({task.name: task for task in self.tasks if task is not None}.values())


def model_card(subject: Subject) -> str:
    """Returns the text of README.md: front matter for the hub, then Markdown for people."""
    from huggingface_hub import ModelCardData

    matter = ModelCardData(**front_matter(subject)).to_yaml(line_break="\n")
    sections = (_head, _use, _data, _results, _training, _lineage)
    return f"---\n{matter}\n---\n\n" + "\n\n".join(section(subject) for section in sections) + "\n"


def front_matter(subject: Subject) -> dict[str, Any]:
    """Returns the fields that the hub reads; those that say nothing are left out."""
    tasks = subject.known_tasks
    labels = bool(tasks) and all(task.is_classification for task in tasks)
    metrics = [metric for evaluation in subject.evaluations for metric in evaluation.metrics]
    metrics = metrics or [task.metrics[0] for task in tasks]
    base = subject.base_model
    fields = {
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "library_name": "peft" if subject.peft else None,
        "pipeline_tag": "text-classification" if labels else "text-generation",
        "license": subject.license,
        "datasets": list(dict.fromkeys(filter(None, map(hub_dataset, tasks)))) or None,
        "metrics": list(dict.fromkeys(HUB_METRICS[name] for name in metrics if name in HUB_METRICS)) or None,
        "tags": [*([f"base_model:adapter:{base}"] if base else []), *TAGS],
    }
    return {name: value for name, value in fields.items() if value is not None}


def hub_dataset(task: Task) -> str | None:
    """Returns the hub's id of the data set that a task's rows are from; None for other rows."""
    return task.hub.path if task.hub is not None and HUB_ID.fullmatch(task.hub.path) else None


def _head(subject: Subject) -> str:
    record, backbone = subject.record, subject.backbone
    base = code(subject.base_model or backbone.name)
    names = ", ".join(dict.fromkeys(code(prompt.task) for prompt in subject.prompts))
    if isinstance(record, Composition):
        what = f"An attentional mixture of soft prompts for {base}"
        what += f", trained for {names}." if record.targets else f"; its sources were trained for {names}."
    else:
        what = f"A soft prompt of {record.length} tokens for {base}, trained for {names}."
    revision = code(subject.revision) if subject.revision else "not recorded"
    rows = {
        "base model": f"{base}, revision {revision}",
        "its weights": f"{_weights(backbone)}, fingerprint {code(backbone.fingerprint)}",
        "method": ", ".join(dict.fromkeys(code(prompt.method) for prompt in subject.prompts)),
        "place of the prompt": f"{record.placement} the input",
        "seed": ", ".join(dict.fromkeys(map(_seed, subject.prompts))),
        "licence": plain(subject.license or NOT_STATED),
    }
    lines = [
        f"# {plain(record.name)}",
        f"{what} The model itself is unchanged; the prompt works with these weights only.",
    ]
    lines.append(table(("", ""), rows.items()))
    if record.note:
        lines.append(f"Note: {plain(record.note)}")
    return "\n\n".join(lines)


def _weights(backbone: Backbone) -> str:
    """Says which of a model's files the prompt was trained on: quantised weights are not those of the hub's model."""
    if backbone.source.endswith(".gguf"):
        return code(PurePath(backbone.source.replace("\\", "/")).name)
    return f"{backbone.parameters:,} parameters"


def _seed(prompt: Prompt) -> str:
    return NOT_STATED if prompt.seed is None else str(prompt.seed)


def _use(subject: Subject) -> str:
    """Shows how the repository is used, in five lines each: with peft where the folder is one of its adapters."""
    parts = ["## How to use"]
    if subject.peft:
        base = subject.base_model or subject.backbone.name
        kind = "AutoModelForSeq2SeqLM" if subject.backbone.architecture == "encoder-decoder" else "AutoModelForCausalLM"
        revision = f", revision={subject.revision!r}" if subject.revision else ""
        lines = (
            "from peft import PeftModel",
            f"from transformers import AutoTokenizer, {kind}",
            f"tokenizer, model = AutoTokenizer.from_pretrained({base!r}), {kind}.from_pretrained({base!r}{revision})",
            f"inputs = tokenizer({_example(subject)}, return_tensors='pt')",
            f"output = PeftModel.from_pretrained(model, {subject.repository!r}).generate(**inputs, max_new_tokens=8)",
        )
        parts += ["With [PEFT](https://huggingface.co/docs/peft):", block("\n".join(lines), "python")]
    name = subject.record.name
    task = subject.known_tasks[0] if subject.known_tasks else None
    columns = task.input_columns() if task else ()
    if len(columns) == 1:
        predict = f'echo "a text" | attempt predict {name}'
    else:
        predict = f"attempt predict {name} rows.csv  # columns: {', '.join(columns) or 'those of the task'}"
    words = "labels with probabilities" if task and task.is_classification else "answers"
    parts += [
        f"With `attempt`, which gives {words}:",
        block(f"attempt pull {subject.repository}\n{predict}", "console"),
    ]
    return "\n\n".join(parts)


def _example(subject: Subject) -> str:
    """Returns the Python that fills the task's template, whose braces are those of `str.format`."""
    if not subject.known_tasks:
        return repr("a text")
    task = subject.known_tasks[0]
    columns = template_columns(task.input)
    if not all(column.isidentifier() for column in columns):
        return repr(task.input)
    return f"{task.input!r}.format({', '.join(f'{column}={column!r}' for column in dict.fromkeys(columns))})"


def _data(subject: Subject) -> str:
    parts = ["## Task and data"]
    if not subject.known_tasks:
        parts.append("The task's template is not recorded.")
    for task in subject.known_tasks:
        described = f": {plain(task.description)}" if task.description else ""
        parts.append(f"{code(task.name)}, version {task.version}{described}")
        parts.append(f"The input is:\n\n{block(task.input)}")
        if task.labels is not None:
            parts.append(f"Label words: {', '.join(code(word) for word in task.label_words)}.")
        parts.append(
            f"Rows: {_rows(task)}. Licence of the rows: {plain(subject.data_licence or task.licence or NOT_STATED)}."
        )
    if not subject.known_tasks:
        parts.append(f"Licence of the rows: {plain(subject.data_licence or NOT_STATED)}.")
    return "\n\n".join(parts)


def _rows(task: Task) -> str:
    if task.hub is None:
        return "files of the publisher, which are not part of this repository"
    config = f", configuration {code(task.hub.config)}" if task.hub.config else ""
    return f"{code(task.hub.path)}{config}, splits by the rule {code(task.split_rule)}"


def _results(subject: Subject) -> str:
    if not subject.evaluations:
        return "## Results\n\nNo evaluation is recorded."
    rows = []
    for evaluation in subject.evaluations:
        for number, (metric, value) in enumerate(evaluation.metrics.items()):
            first = number == 0 and evaluation.interval is not None
            interval = "{:.3f} to {:.3f}".format(*evaluation.interval) if first and evaluation.interval else ""
            n = str(evaluation.rows.get("n", ""))
            rows.append((code(evaluation.task), plain(evaluation.split), plain(metric), f"{value:.3f}", interval, n))
    scores = table(("task", "split", "metric", "score", "95 % interval", "rows"), rows)
    return f"## Results\n\n{scores}"


def _training(subject: Subject) -> str:
    parts = ["## Settings"]
    for prompt in subject.prompts:
        names = ("training", "total_steps", "dtype")
        kept: dict[str, Any] = {name: prompt.settings[name] for name in names if name in prompt.settings}
        kept["numbers"] = prompt.numbers
        parts.append(f"{code(prompt.ref)}:\n\n{block(json.dumps(kept, indent=2, ensure_ascii=False), 'json')}")
    return "\n\n".join(parts)


def _lineage(subject: Subject) -> str:
    record = subject.record
    if isinstance(record, Composition):
        parents: Sequence[str] = (*record.sources, *record.targets)
        parents = (*parents, *([f"attention:{record.attention}"] if record.attention else []))
    else:
        parents = record.parents
    made = f"Made from {', '.join(map(code, parents))}." if parents else "Made from no other prompt."
    return f"## Lineage\n\n{made} The full record comes with `attempt pull {subject.repository}`."
