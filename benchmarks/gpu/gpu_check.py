"""The first check on a GPU: is it right, what does it wait for, how fast is it, what would be gained.

    python benchmarks/gpu/gpu_check.py --out OUT                        # from the repository's root
    python benchmarks/gpu/gpu_check.py --out OUT --device cpu --tiny    # rehearsal

Sections stop themselves when their share of the time is over; a section that fails is noted and the others go on.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [os.getcwd()]
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--device", default="cuda")
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--only", default="")
parser.add_argument("--minutes", type=float, default=5.0)
o = parser.parse_args()
o.out.mkdir(parents=True, exist_ok=True)
os.environ.setdefault("ATTEMPT_CACHE", "/tmp/attempt-cache")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
GPU = o.device == "cuda"
began = time.time()
report = {}
sync = torch.cuda.synchronize if GPU else (lambda: None)

from attempt_cli.backbones.check import check_scores
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.encoder_decoder import EncoderDecoderBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptAttention, PromptMixture
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.graphs import StepGraphs
from attempt_cli.training.loop import make_optimizer
from attempt_cli.training.processes import Processes
from tests.models import unigram_tokenizer

SIZES = {  # width, inner, layers, heads, key heads, vocabulary
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "8B": (4096, 14336, 32, 32, 8, 128256),
}
if o.tiny:
    SIZES = {"135M": (48, 96, 3, 4, 2, 200), "1B": (48, 96, 2, 4, 2, 200), "8B": (64, 96, 2, 4, 2, 200)}


def llama(size, device, dtype, layers=None):
    """A Llama of random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    w, i, l, h, g, v = SIZES[size]
    t = unigram_tokenizer()
    c = LlamaConfig(
        vocab_size=v,
        hidden_size=w,
        intermediate_size=i,
        num_hidden_layers=layers or l,
        num_attention_heads=h,
        num_key_value_heads=g,
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=3,
        tie_word_embeddings=size == "135M",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            m = LlamaForCausalLM(c)
    finally:
        torch.set_default_dtype(torch.float32)
    b = DecoderOnlyBackbone(m, t, name=size, source="random")
    check_scores(b)
    return b


def t5(device, dtype):
    from transformers import T5Config, T5ForConditionalGeneration

    w, i, l, h = (48, 96, 2, 4) if o.tiny else (768, 3072, 12, 12)
    torch.manual_seed(0)
    m = (
        T5ForConditionalGeneration(
            T5Config(
                vocab_size=200 if o.tiny else 32128,
                d_model=w,
                d_ff=i,
                num_layers=l,
                num_heads=h,
                d_kv=12 if o.tiny else 64,
                pad_token_id=0,
                eos_token_id=1,
                decoder_start_token_id=0,
            )
        )
        .to(dtype)
        .to(device)
    )
    b = EncoderDecoderBackbone(m, unigram_tokenizer(), name="t5-base-like", source="random")
    check_scores(b)
    return b


def rows_of(n, low, high, seed=0, targets=2):
    r = random.Random(seed)
    return [
        EncodedRow(
            [r.randrange(5, 90) for _ in range(r.randrange(low, high))],
            [r.randrange(5, 90) for _ in range(targets - 1)] + [1],
        )
        for _ in range(n)
    ]


def prompted(b, m, sources=0, placement="before", tasks=1):
    g = torch.Generator().manual_seed(0)
    p = torch.randn(tasks + sources, m, b.width, generator=g)
    mix = (
        PromptMixture(
            p[:tasks], p[tasks:], PromptAttention(b.width, min(100, b.width // 2), 2.7 * b.width**0.5, generator=g)
        )
        if sources
        else PromptMixture(p)
    )
    return PromptedModel(b, mix.to(b.device), b.embedding_rms, placement)


def stepper(model, rows, max_tokens=8192, batch=None, graphs=None):
    cfg = make_config(None, prompt_length=model.prompt_length, batch_size=batch or len(rows), max_tokens=max_tokens)
    opt = make_optimizer(model.mixture, cfg)

    def step():
        loss = gradient_step(model, rows, cfg, Processes(), graphs=graphs)
        torch.nn.utils.clip_grad_norm_(model.mixture.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        return loss

    return step


def ms(step, repeat=7, warm=3):
    for _ in range(warm):
        step()
    sync()
    out = []
    for _ in range(repeat):
        t = time.perf_counter()
        step()
        sync()
        out.append(1e3 * (time.perf_counter() - t))
    return statistics.median(out)


def section(name, share):
    def wrap(f):
        if o.only and name not in o.only.split(","):
            return f
        t = time.time()
        if t - began > o.minutes * 60:
            print(f"## {name}: no time left")
            return f
        print(f"\n## {name}", flush=True)
        try:
            report[name] = f(lambda: time.time() - t > share * (0.2 if o.tiny else 1))
        except Exception as e:
            report[name] = f"FAILED {type(e).__name__}: {e}"
            traceback.print_exc()
        print(f"   ({time.time() - t:.0f} s)", flush=True)
        (o.out / "gpu_check.json").write_text(json.dumps(report, indent=1, default=str))
        if GPU:
            torch.cuda.empty_cache()
        return f

    return wrap


@section("right", 60)
def right(over):
    """CUDA against float32 on the CPU: relative error of scores and of the prompt's gradient."""
    found = {}
    rows = rows_of(6, 8, 40)
    labels = [[7, 8], [9], [10, 11]]
    for kind in ("llama", "t5"):
        make = (lambda d, t: llama("135M", d, t, layers=4)) if kind == "llama" else t5
        ref = make("cpu", torch.float32)
        state = ref.model.state_dict()
        for dtype in (torch.float32, torch.bfloat16):
            b = make(o.device, dtype)
            b.model.load_state_dict(state)  # generators of two devices differ
            b.__dict__.pop("embedding_rms", None)
            b.__dict__.pop("fingerprint", None)
            assert dtype == torch.bfloat16 or b.fingerprint == ref.fingerprint, (
                "a fingerprint must not hang on the device"
            )
            for placement in b.placements:
                for sources in (0, 3):
                    for cache in [False, True] if placement == "after" else [False]:
                        out = []
                        for back in (ref, b):
                            back.input_cache = None
                            if cache:
                                back.input_cache = InputCache(1 << 28, on_host=back.device.type == "cuda")
                                back.input_cache.plan([rows], back.cache_bytes_per_token)
                            m = prompted(back, 6, sources, placement)
                            ll = m.log_likelihood(rows)
                            (-ll.sum()).backward()
                            out.append(
                                [
                                    ll.detach().float().cpu(),
                                    m.score_labels(rows, labels)[0].float().cpu(),
                                    m.mixture.target_prompts.grad.float().cpu(),
                                ]
                            )
                        e = [float((x - y).norm() / y.norm()) for x, y in zip(out[1], out[0], strict=True)]
                        found[f"{kind} {str(dtype)[6:]} {placement} t={sources}{' cached' if cache else ''}"] = [
                            f"{x:.1e}" for x in e
                        ]
                        bound = 2e-3 if dtype == torch.float32 else 6e-2
                        print(
                            f"   {kind} {str(dtype)[6:]:9} {placement:6} t={sources} cache={cache}: scores {e[0]:.1e} labels {e[1]:.1e} gradient {e[2]:.1e}",
                            "" if max(e) < bound else "  <-- TOO LARGE",
                        )
            texts = prompted(b, 6).generate(rows[:3], 5)
            print("   generate:", texts)
    return found


@section("waits", 30)
def waits(over):
    """Where the host waits for the GPU in a step, and how busy the GPU is in it."""
    found = {}
    b = llama("135M", o.device, torch.bfloat16)
    rows = rows_of(16, 40, 100)
    for placement, sources, cache in (("before", 0, False), ("before", 6, False), ("after", 0, True)):
        b.input_cache = None
        if cache:
            b.input_cache = InputCache(1 << 30, on_host=GPU)
            b.input_cache.plan([rows], b.cache_bytes_per_token)
        step = stepper(prompted(b, 20, sources, placement), rows)
        step()
        step()
        sync()
        text = []
        if GPU:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                step()
            torch.cuda.set_sync_debug_mode("default")
            text = [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if GPU else [])) as p:
            t = time.perf_counter()
            step()
            sync()
            wall = 1e3 * (time.perf_counter() - t)
        events = [e for e in p.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in events) / 1e3
        name = f"{placement} t={sources} cached={cache}"
        kernels = sorted(
            ((e.key[:60], e.count, round(getattr(e, "self_device_time_total", 0) / 1e3, 2)) for e in p.key_averages()),
            key=lambda x: -x[2],
        )[:8]
        found[name] = {"waits": text, "kernels": len(events), "busy_ms": busy, "wall_ms_profiled": wall, "top": kernels}
        print(
            f"   {name}: {len(events)} GPU kernels, busy {busy:.1f} of {wall:.1f} ms (profiled), {len(text)} waits {sorted(set(text))}"
        )
        for k in kernels[:5]:
            print("      ", k)
    return found


@section("speed", 75)
def speed(over):
    """ms a step, rows/s, share of 800 TFLOP/s."""
    found = {}
    for size in ("135M", "1B"):
        b = llama(size, o.device, torch.bfloat16)
        weights = sum(p.numel() for n, p in b.model.named_parameters() if "embed" not in n and "lm_head" not in n)
        for m in (20, 100):
            for batch in (16, 64, 256) if not o.tiny else (4,):
                rows = rows_of(batch, 30, 110)
                for placement, sources, cache in (
                    ("before", 0, None),
                    ("before", 6, None),
                    ("after", 0, "host"),
                    ("after", 0, "device"),
                ):
                    if over():
                        return found
                    b.input_cache = None
                    if cache:
                        b.input_cache = InputCache(8 << 30, on_host=GPU and cache == "host")
                        b.input_cache.plan([rows], b.cache_bytes_per_token)
                    try:
                        t = ms(stepper(prompted(b, m, sources, placement), rows), repeat=5, warm=2)
                    except torch.OutOfMemoryError:
                        t = float("nan")
                    own = sum(len(r.input_ids) for r in rows) if placement == "before" else 0
                    flop = 4 * weights * (own + batch * (m + 1))
                    name = f"{size} m={m} b={batch} {placement} t={sources} {cache or ''}"
                    found[name] = {"ms": t, "rows_s": batch / t * 1e3, "share": flop / (t * 1e-3) / 800e12}
                    print(
                        f"   {name:40} {t:8.1f} ms {batch / t * 1e3:8.0f} rows/s {flop / (t * 1e-3) / 8e12:6.2f} % of peak",
                        flush=True,
                    )
    return found


@section("graphs", 45)
def graphs(over):
    """Steps launched kernel by kernel and as CUDA graphs: ms a step, and how far the two prompts are apart after 8."""
    if not GPU:
        return "no GPU"
    found = {}
    for kind, placement, sources in (
        ("135M", "before", 0),
        ("135M", "before", 6),
        ("135M", "after", 0),
        ("t5", "before", 0),
    ):
        b = t5(o.device, torch.bfloat16) if kind == "t5" else llama(kind, o.device, torch.bfloat16)
        rows = rows_of(16, 30, 110)
        if placement == "after":
            b.input_cache = InputCache(8 << 30)
            b.input_cache.plan([rows], b.cache_bytes_per_token)
        times, prompts, notes, count = [], [], [], 0
        for launched in (False, True):
            model = prompted(b, 20, sources, placement)
            own = StepGraphs(model, notes.append) if launched else None
            step = stepper(model, rows, graphs=own)
            times.append(ms(step, repeat=5, warm=3))
            prompts.append(model.mixture.target_prompts.detach().float())
            count = own.count if own else 0
        apart = float((prompts[1] - prompts[0]).norm() / prompts[0].norm())
        found[f"{kind} {placement} t={sources}"] = {"ms": times, "apart": apart, "graphs": count, "notes": notes}
        print(
            f"   {kind} {placement} t={sources}: {times[0]:.1f} -> {times[1]:.1f} ms, apart {apart:.1e}, {notes}",
            flush=True,
        )
        if over():
            break
    return found


@section("bank", 40)
def bank(over):
    """N prompts in one step (rows of N tasks, one optimiser), against N = 1: what trained together costs."""
    found = {}
    b = llama("135M", o.device, torch.bfloat16)
    for n in (1, 4, 16, 64) if not o.tiny else (1, 3):
        for way in ("own rows, before", "same rows, after"):
            rows = rows_of(16, 40, 100)
            if way.startswith("own"):
                many = [replace(r, task=k) for k in range(n) for r in rows]
                step = stepper(prompted(b, 20, 0, "before", tasks=n), many, max_tokens=1 << 30)
            else:
                p = torch.nn.Parameter(torch.randn(n, 20, b.width, device=b.device))
                many = [r for r in rows for _ in range(n)]

                def step():
                    past = replace(b.read(rows), suffixes=n)
                    batch = b.collate(many)
                    with torch.no_grad():
                        e = b.embed(batch.input_ids[:, :1])
                    (
                        -b.target_log_likelihood(batch, e, (p * b.embedding_rms).repeat(len(rows), 1, 1), past).sum()
                    ).backward()
                    p.grad = None

            try:
                t = ms(step, repeat=5, warm=2)
            except torch.OutOfMemoryError:
                t = float("nan")
            found[f"{way} N={n}"] = t
            first = found[f"{way} N=1"]
            print(
                f"   {way} N={n:3}: {t:8.1f} ms a step, {n * first / t:6.1f} times as fast as one after the other",
                flush=True,
            )
            if over():
                return found
    return found


@section("copies", 15)
def copies(over):
    """Kept inputs onto the device: as now, from one contiguous pinned block, and on the device."""
    if not GPU:
        return "no GPU"
    b = llama("135M", o.device, torch.bfloat16)
    rows = rows_of(16, 40, 100)
    size = sum(len(r.input_ids) for r in rows) * b.cache_bytes_per_token
    found = {}
    for name, pin in (("as now (pinned host)", True), ("kept on the device", False)):
        b.input_cache = InputCache(1 << 30, on_host=pin)
        b.input_cache.plan([rows], b.cache_bytes_per_token)
        found[name] = ms(lambda: b.read(rows))
        print(f"   {name}: {found[name]:.2f} ms for {size / 2**20:.0f} MiB")
    b.input_cache = InputCache(1 << 30, on_host=True)
    b.input_cache.plan([rows], b.cache_bytes_per_token)
    step = stepper(prompted(b, 20, 0, "after"), rows)

    def ahead():
        loss = step()
        b.fetch(rows)
        return loss

    for name, one in (("a step that gathers its rows", step), ("a step whose rows were sent ahead", ahead)):
        found[name] = ms(one)
        print(f"   {name}: {found[name]:.2f} ms")
    b.fetch([])
    plain = b.keys_and_values(rows, len(rows), 100)
    b.fetch(rows)
    found["rows sent ahead are the same"] = torch.equal(b.keys_and_values(rows, len(rows), 100), plain)
    b.fetch([])
    print(f"   rows sent ahead are the same: {found['rows sent ahead are the same']}")
    flat = torch.empty(size, dtype=torch.uint8).pin_memory()
    to = torch.empty(size, dtype=torch.uint8, device="cuda")
    found["one pinned block"] = ms(lambda: to.copy_(flat, non_blocking=True))
    print(f"   one pinned block: {found['one pinned block']:.2f} ms")
    b.input_cache = None
    found["read anew"] = ms(lambda: b.read(rows))
    print(f"   read anew: {found['read anew']:.2f} ms")
    return found


@section("attention", 20)
def attention(over):
    """Kernels for 16 rows of 128 keys behind one another: what scaled_dot_product_attention picks with and without a mask."""
    if not GPU:
        return "no GPU"
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from attempt_cli.backbones import attention as A

    found = {}
    for s in (128, 512, 2048):
        q, k, v = (torch.randn(4, n, s, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for n in (9, 3, 3))
        mask = A.causal_mask(s, q.dtype, q.device)

        def run(f):
            def step():
                f().sum().backward()

            return ms(step, repeat=9)

        f = torch.nn.functional.scaled_dot_product_attention
        found[s] = {
            "plain": run(lambda: A.KERNELS["plain"](q, k, v, mask, 0.125, None, None)),
            "sdpa, mask, gqa (ours)": run(lambda: A.KERNELS["sdpa"](q, k, v, mask, 0.125, None, None)),
            "sdpa, is_causal, gqa": run(lambda: f(q, k, v, is_causal=True, enable_gqa=True)),
        }
        for name, backend in (
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
            ("math", SDPBackend.MATH),
        ):
            try:
                with sdpa_kernel(backend):
                    found[s][f"mask, gqa by {name}"] = run(lambda: f(q, k, v, attn_mask=mask, enable_gqa=True))
            except RuntimeError as e:
                found[s][f"mask, gqa by {name}"] = str(e)[:60]
        first = []
        for extra in range(1, 9):  # what a length that was not seen before costs
            n = s + extra
            x = torch.randn(4, 9, n, 64, dtype=torch.bfloat16, device="cuda")
            y = torch.randn(4, 3, n, 64, dtype=torch.bfloat16, device="cuda")
            c = A.causal_mask(n, x.dtype, x.device)
            sync()
            t = time.perf_counter()
            f(x, y, y, attn_mask=c, enable_gqa=True)
            sync()
            first.append(1e3 * (time.perf_counter() - t))
        found[s]["first sight of a length, ms"] = statistics.median(first)
        print(f"   {s}: ", {k: (round(x, 2) if isinstance(x, float) else x) for k, x in found[s].items()}, flush=True)
    return found


@section("compiled", 75)
def compiled(over):
    """Layers through torch.compile as the project does it."""
    b = llama("135M", o.device, torch.bfloat16)
    rows = rows_of(64, 40, 100)
    found = {}
    for placement, sources in (("before", 6),):
        step = stepper(prompted(b, 20, sources, placement), rows, max_tokens=1 << 30)
        found["plain"] = ms(step, repeat=5)
        b.compile_layers(True)
        t = time.time()
        step()
        sync()
        found["seconds to compile"] = time.time() - t
        found["compiled"] = ms(step, repeat=5)
        b.compile_layers(False)
        print("  ", found)
    return found


@section("large", 40)
def large(over):
    """8B: memory and time of a step."""
    if not GPU and not o.tiny:
        return "no GPU"
    b = llama("8B", o.device, torch.bfloat16)
    found = {}
    for placement, m, batch, twice in (
        ("after", 20, 16, False),
        ("before", 20, 16, False),
        ("before", 100, 16, True),
        ("before", 20, 64, True),
    ):
        rows = rows_of(batch, 40, 110)
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        if twice:
            b.checkpoint_gradients(True)
        try:
            t = ms(stepper(prompted(b, m, 0, placement), rows), repeat=2, warm=1)
        except torch.OutOfMemoryError:
            t = float("nan")
        if twice:
            b.checkpoint_gradients(False)
        peak = torch.cuda.max_memory_allocated() / 2**30 if GPU else 0
        found[f"{placement} m={m} b={batch} checkpointed={twice}"] = {"ms": t, "GiB": peak}
        print(f"   {placement} m={m} b={batch} checkpointed={twice}: {t:.0f} ms, peak {peak:.1f} GiB", flush=True)
        if over():
            break
    return found


print(f"\nall in {time.time() - began:.0f} s; {o.out / 'gpu_check.json'}")
