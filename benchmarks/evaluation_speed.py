"""How many rows a second are scored: ours against lm-evaluation-harness' way and against `generate`.

    python -m benchmarks.evaluation_speed --full

All answer under a prompt of m tokens: ours in the dtype that attempt chooses for the machine, theirs through PEFT in
the faster of bf16 and fp32. The
harness' way is one forward per label word and row with full logits; with its logits cache, words of one token share
theirs: both are shown. "After, kept" is what rows cost that are looked at again and again: the validation rows of a
training, the test rows of a grid.
"""

from __future__ import annotations

from attempt_cli.backbones.load import load_backbone
from benchmarks import ours, peers
from benchmarks.harness import Report, arguments, device_wait, race, rounds_of
from benchmarks.rows import BATCH, label_tokens, real_rows

HARNESS = "lm-evaluation-harness' way"
GENERATE = "generate, 4 tokens"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", help="names of tasks, parted by commas (full: sst2,rte,cb, short: rte)")
    parser.add_argument("--lengths", help="m, parted by commas (full: 20,100, short: 20)")
    options = parser.parse_args()
    tasks = (options.tasks or ("sst2,rte,cb" if options.full else "rte")).split(",")
    lengths = [int(m) for m in (options.lengths or ("20,100" if options.full else "20")).split(",")]
    count, rounds = options.rows or (64 if options.full else 32), rounds_of(options)
    backbone = load_backbone(options.backbone, device=options.device)
    plain = {
        label: peers.fresh_model(options.backbone, backbone.device, dtype) for label, dtype in peers.DTYPES.items()
    }
    report = Report("evaluation_speed", {"backbone": options.backbone, "rows": count, "batch": BATCH, "rounds": rounds})
    for task in tasks:
        rows, labels = real_rows(task, count, backbone, options.data_dir), label_tokens(task, backbone)
        for m in lengths:
            pad, contenders = backbone.pad_id, []
            for label, bare in plain.items():
                peft = peers.peft_model(bare, m)
                contenders += [
                    peers.harness_scoring(f"{HARNESS}, {label}", peft, rows, labels, pad, share=False),
                    peers.harness_scoring(f"{HARNESS}, logits cache, {label}", peft, rows, labels, pad, share=True),
                    peers.generate_scoring(f"{GENERATE}, {label}", peft, rows, pad),
                ]
            for placement in ("before", "after"):
                model = ours.prompted(backbone, m, placement=placement)
                contenders.append(ours.label_scoring(f"label words, {placement}", model, rows, labels))
            contenders.append(ours.label_scoring("label words, after, kept", model, rows, labels, kept=True))
            contenders.append(ours.writing("4 tokens, after", model, rows))
            contenders.append(ours.writing("4 tokens, after, kept", model, rows, kept=True))
            times = race(contenders, rounds, wait=device_wait(backbone.device))
            report.add_race(f"{task}, m = {m}", times, times.faster(HARNESS))
            for peer in (times.faster(HARNESS), times.faster(GENERATE)):
                for way in ("label words, before", "label words, after, kept"):
                    report.goal(f"{task}, m = {m}: {way}, against {peer}", times.ratio(way, peer), at_least=3)
            text, peer = "4 tokens, after, kept", times.faster(GENERATE)
            report.goal(f"{task}, m = {m}: {text}, against {peer}", times.ratio(text, peer), at_least=2)
    report.finish(options.out)


if __name__ == "__main__":
    main()
