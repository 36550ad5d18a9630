"""One GPU check, start to end: correctness, ceilings, kernels, steps, trainer, graphs, compiler, a whole task.

    python3 gpu_check.py --out $OUT --seconds 540            # on a GPU; run in the repository's root
    python3 gpu_check.py --out DIR --dry                  # on a CPU: tiny sizes, no graphs, no events

Every number is appended to OUT/results.jsonl as soon as it is known; the table is printed last. A stage that fails is a
line with its error and stops nothing; a stage that would not fit into what is left is skipped and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from statistics import median

BEGUN = time.perf_counter()
ROOT = Path(os.environ.get("SCT_ROOT", "."))
sys.path.insert(0, str(ROOT.absolute()))
arguments = argparse.ArgumentParser()
arguments.add_argument("--out", type=Path, required=True)
arguments.add_argument("--seconds", type=float, default=540)
arguments.add_argument("--dry", action="store_true")
arguments.add_argument("--only", default="")
options = arguments.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
if options.dry:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

CUDA = not options.dry
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROWS: list[dict] = []
LOG = (options.out / "results.jsonl").open("a")
MODEL, SIZE, BATCH, D, K, TOKENS = (
    ("vit_base_patch16_224", 224, 64, 768, 96, 197) if CUDA else ("test_vit", 32, 4, 64, 8, 5)
)
CEILING = {"copy": float("nan"), "matrix": float("nan")}  # measured by the stage of that name


def say(stage: str, what: str, value: object, unit: str = "", note: str = "") -> None:
    row = {
        "stage": stage,
        "what": what,
        "value": value,
        "unit": unit,
        "note": note,
        "at": round(time.perf_counter() - BEGUN, 1),
    }
    ROWS.append(row)
    LOG.write(json.dumps(row) + "\n")
    LOG.flush()
    os.fsync(LOG.fileno())


def left() -> float:
    return options.seconds - (time.perf_counter() - BEGUN)


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def gpu_us(action, reps: int = 30) -> float:
    """Median microseconds between events around one action. Before each a large buffer is read: that takes longer than
    the host for handing the action over, so the device never waits for it between the events, and leaves an L2 that
    holds nothing of use and nothing to be written back."""
    if not CUDA:
        action()
        return float("nan")
    flush = torch.zeros(2**29, dtype=torch.int32, device=DEVICE)
    for _ in range(3):
        action()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(reps)]
    for begin, end in pairs:
        flush.amax()
        begin.record()
        action()
        end.record()
    sync()
    return median(1e3 * begin.elapsed_time(end) for begin, end in pairs)


def wall_ms(action, reps: int = 10) -> tuple[float, float]:
    """Milliseconds of one of `reps` actions in a row: until the host has handed it over, until the device is done."""
    for _ in range(3):
        action()
    sync()
    start = time.perf_counter()
    for _ in range(reps):
        action()
    handed = time.perf_counter()
    sync()
    return 1e3 * (handed - start) / reps, 1e3 * (time.perf_counter() - start) / reps


def graph_of(action):
    """The action as a CUDA graph; itself on a CPU."""
    if not CUDA:
        return action
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def run(command: list[str], log: str, limit: float) -> str:
    """Output of a command that is ended after `limit` seconds; it is in OUT whatever happens."""
    limit = max(5.0, min(limit, left() - 10))
    with (options.out / log).open("w") as file:
        try:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            file.write(f"\nENDED after {limit:.0f} s\n")
    return (options.out / log).read_text()


# --- stages ---------------------------------------------------------------------------------------------------------


def environment() -> None:
    import timm
    import triton

    say("env", "torch, triton, timm", f"{torch.__version__} {triton.__version__} {timm.__version__}")
    if CUDA:
        p = torch.cuda.get_device_properties(0)
        say("env", "device", p.name, note=f"{p.multi_processor_count} SMs, L2 {p.L2_cache_size >> 20} MB")
        say("env", "sdp order", str(torch._C._get_sdp_priority_order()))


def correctness() -> None:
    """Kernels against float64 at the sizes that are timed, into poisoned memory."""
    from methods.blocks import new_linear
    from methods.sct import kernels_module as km
    from methods.sct import kernels_selection as ks
    from methods.sct.module import SalientChannels

    rows = BATCH * TOKENS
    index = torch.randperm(D, generator=torch.Generator().manual_seed(0))[:K].sort().values
    part = SalientChannels(index, new_linear(K, K, torch.Generator().manual_seed(1), std=0.05)).to(DEVICE)
    exact = SalientChannels(index, new_linear(K, K, torch.Generator().manual_seed(1), std=0.05)).double().to(DEVICE)
    x, g = (torch.randn(rows, D, device=DEVICE) for _ in range(2))
    for name, cast in (("float32", False), ("bf16", True)):
        torch.full((4 * rows * D,), float("nan"), device=DEVICE)  # freed at once: the outputs land on NaN
        a = x.clone().requires_grad_(True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=cast):
            y = km.apply(a, part.linear.weight, part.linear.bias, part.indices, 1.0, 1.0)
        found = (y, *torch.autograd.grad(y, (a, part.linear.weight, part.linear.bias), g))
        b = x.double().requires_grad_(True)
        z = exact.by_torch(b)
        wanted = (z, *torch.autograd.grad(z, (b, exact.linear.weight, exact.linear.bias), g.double()))
        for what, ours, ref in zip(("y", "dx", "dW", "db"), found, wanted, strict=True):
            say(
                "correct",
                f"map {name} {what}",
                float((ours.double() - ref).norm() / ref.norm()),
                note="< 1e-6" if not cast else "< 1e-2",
            )
    labels = torch.arange(BATCH, device=DEVICE) % 10
    for dtype in (torch.float32, torch.bfloat16):
        f = torch.randn(BATCH, TOKENS, D, device=DEVICE).to(dtype)
        sums = torch.zeros(10, D, device=DEVICE)
        ks.add_squares(sums, f[:, 1:], labels)
        ref = torch.stack([f[:, 1:].double().square().sum(1)[labels == k].sum(0) for k in range(10)])
        say("correct", f"sums {dtype}", float((sums.double() - ref).norm() / ref.norm()), note="< 1e-5")


def kernel_tests() -> None:
    text = run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "8" if CUDA else "0",
            "-p",
            "no:cacheprovider",
            "--tb=short",
            *(("-m", "gpu") if CUDA else ()),
            str(ROOT / "tests/methods/test_sct_kernels.py"),
            str(ROOT / "tests/methods/test_sct_selection_kernels.py"),
            *([str(ROOT / "tests/harness/training/test_step_graphs.py")] if CUDA else ()),
        ],
        "pytest.txt",
        150,
    )
    say("tests", "kernels and step graphs", text.strip().splitlines()[-1] if text.strip() else "no output")


def ceilings() -> None:
    n = 2**28 if CUDA else 2**16
    a = torch.randn(n, device=DEVICE)
    b = torch.empty_like(a)
    t = gpu_us(lambda: b.copy_(a), 10)
    CEILING["copy"] = 8 * n / t * 1e6
    say("ceiling", "copy", CEILING["copy"] / 1e12, "TB/s")
    s = 8192 if CUDA else 64
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        m, w = (torch.randn(s, s, device=DEVICE).to(dtype) for _ in range(2))
        t = gpu_us(lambda: m @ w, 10)
        rate = 2 * s**3 / t * 1e6
        if dtype is torch.bfloat16:
            CEILING["matrix"] = rate
        say("ceiling", f"matrix {name}", rate / 1e12, "TFLOP/s")
    x = torch.randn(BATCH * TOKENS, D, device=DEVICE, dtype=torch.bfloat16)
    for out in (D, 3 * D, 4 * D):
        w = torch.randn(out, D, device=DEVICE, dtype=torch.bfloat16)
        t = gpu_us(lambda: torch.nn.functional.linear(x, w))
        say("ceiling", f"linear {x.shape[0]}x{D}x{out}", 2 * x.numel() * out / t * 1e6 / 1e12, "TFLOP/s")


TILES = (
    (16, 256, 128, 32),
    (16, 512, 128, 32),
    (8, 1024, 128, 32),
    (16, 1024, 64, 32),
    (16, 256, 128, 64),
    (16, 256, 128, 128),
    (32, 256, 128, 128),
    (64, 256, 128, 32),
)
"""Rows and columns of the copy, output and input channels of the product."""


def kernels() -> None:
    """Each kernel alone, with other tiles and warps; bytes counted once each."""
    from methods.sct import kernels_module as km
    from methods.sct import kernels_selection as ks

    rows = BATCH * TOKENS
    index = (torch.arange(K) * (D // K)).to(DEVICE)
    w, bias = torch.randn(K, K, device=DEVICE), torch.randn(K, device=DEVICE)
    x, h = torch.randn(rows, D, device=DEVICE), torch.randn(rows, D, device=DEVICE, dtype=torch.bfloat16)
    moved = 2 * x.nbytes + rows * K * 2
    say("kernel", "x + h (fp32 + bf16)", gpu_us(lambda: x + h), "us", note=f"{2 * x.nbytes + h.nbytes} bytes")
    norm = torch.nn.LayerNorm(D).to(DEVICE)
    say("kernel", "LayerNorm fp32", gpu_us(lambda: norm(x)), "us", note=f"{2 * x.nbytes} bytes")
    for tiles in TILES if CUDA else TILES[:1]:
        km.ROWS, km.COLUMNS, km.OUTPUTS, km.INPUTS = tiles
        t = gpu_us(lambda: km.map_channels._init_fn(x, w, bias, index, 1.0, 1.0, torch.bfloat16))
        say("kernel", f"map forward {tiles}", t, "us", note=f"{moved / t * 1e6 / CEILING['copy']:.2f} of copy")
    km.ROWS, km.COLUMNS, km.OUTPUTS, km.INPUTS = TILES[0]
    t = gpu_us(lambda: km.map_channels._init_fn(x, w.T, None, index, 1.0, 1.0, torch.bfloat16))
    say("kernel", "map backward", t, "us", note=f"{moved / t * 1e6 / CEILING['copy']:.2f} of copy")
    chosen = torch.randn(rows, K, device=DEVICE, dtype=torch.bfloat16)
    say("kernel", "dW and db, with both sums", gpu_us(lambda: km.map_gradients._init_fn(chosen, chosen)), "us")
    say("kernel", "dW by matmul", gpu_us(lambda: (chosen.T @ chosen, chosen.sum(0))), "us")
    for images, classes in ((50, 100), (64, 10), (1000, 10)) if CUDA else ((4, 2),):
        for dtype in (torch.float32, torch.bfloat16):
            f = torch.randn(images, TOKENS, D, device=DEVICE).to(dtype)
            sums = torch.zeros(classes, D, device=DEVICE)
            labels = torch.arange(images, device=DEVICE) % classes
            t = gpu_us(lambda: ks.add_squares(sums, f, labels))
            say(
                "kernel",
                f"sums {images} images {dtype}",
                t,
                "us",
                note=f"{f.nbytes / t * 1e6 / CEILING['copy']:.2f} of copy",
            )


class Leaf(torch.nn.Module):
    """Where the gradient's path ends in a model without modules."""

    def forward(self, x):
        return x.detach().requires_grad_(True)


def model_with(kind: str, bf16_frozen: bool = False):
    """ViT with modules: none (same gradient path), op (ours), function (ours, without torch.library), torch."""
    import timm

    from harness.bench.module import ours
    from methods.blocks import blocks, plug

    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=10, img_size=SIZE, drop_path_rate=0.1).to(DEVICE)
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    for block in blocks(model):
        if kind == "none":
            plug(block, "after_attention", Leaf()) if block is blocks(model)[0] else None
            continue
        part = ours(torch.arange(K) * (D // K))
        plug(block, "after_attention", part)
        if kind == "torch":
            part.forward = part.by_torch
        if kind == "function" or (kind == "op" and not CUDA):
            part.forward = (lambda p: lambda x: _function()(x, p.linear.weight, p.linear.bias, p.indices))(part)
    if bf16_frozen:
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    return model.train()


def _function():
    from methods.sct import kernels_module as km

    class Map(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, b, index):
            kind = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else w.dtype
            y, chosen = km.map_channels._init_fn(x, w, b, index, 1.0, 1.0, kind)
            ctx.save_for_backward(w, index, chosen)
            ctx.kind = kind
            return y

        @staticmethod
        def backward(ctx, g):
            w, index, chosen = ctx.saved_tensors
            dx, picked = km.map_channels._init_fn(g, w.T, None, index, 1.0, 1.0, ctx.kind)
            return dx, *km.map_gradients._init_fn(picked, chosen), None

    return lambda x, w, b, index: Map.apply(x.reshape(-1, x.shape[-1]), w, b, index).view(x.shape)


def step_of(model, forward=None):
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=DEVICE)
    labels = torch.arange(BATCH, device=DEVICE) % 10
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, **({"capturable": True} if CUDA else {}))
    loss_seen = torch.zeros((), device=DEVICE)
    forward = model if forward is None else forward

    def once():
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss_seen.copy_(loss.detach())

    once.loss = loss_seen
    return once


def attention_by(cudnn: bool):
    """Within, cuDNN's attention comes first, or torch's order is kept."""
    from contextlib import nullcontext

    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True) if cudnn and CUDA else nullcontext()


def steps() -> None:
    """A training step eager (host and device) and as a graph, with every kind of module."""
    from harness.training.cost import counted

    flops = counted(step_of(model_with("none")))
    say("step", "operations", flops / 1e12, "TFLOP", note=f"floor {1e3 * flops / CEILING['matrix']:.2f} ms")
    times = {}
    for kind, frozen, cudnn in (
        ("none", False, False),
        ("op", False, False),
        ("function", False, False),
        ("torch", False, False),
        ("op", True, False),
        ("none", True, True),
        ("op", True, True),
    ):
        name = f"{kind}{' bf16 weights' if frozen else ''}{' cuDNN attention' if cudnn else ''}"
        with attention_by(cudnn):
            step = step_of(model_with(kind, frozen))
            host, total = wall_ms(step)
            say("step", f"{name} eager: host", host, "ms")
            rate = flops / total * 1e3 / CEILING["matrix"]
            say("step", f"{name} eager", total, "ms", note=f"{rate:.2f} of matrix rate")
            try:
                replay = graph_of(step)
                _, times[name] = wall_ms(replay, 30)
                rate = flops / times[name] * 1e3 / CEILING["matrix"]
                say("step", f"{name} graph", times[name], "ms", note=f"{rate:.2f} of matrix rate")
            except Exception as error:
                say("step", f"{name} graph", f"{type(error).__name__}: {str(error)[:150]}")
        del step
        if CUDA:
            torch.cuda.empty_cache()
    if {"none", "op"} <= times.keys():
        say("step", "share of the module (graphs)", 100 * (times["op"] / times["none"] - 1), "%", note="target <= 3")


def attention() -> None:
    if not CUDA:
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (
        torch.randn(BATCH, 12, TOKENS, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def both():
            with sdpa_kernel(backend):
                y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            y.backward(v.detach())

        try:
            say("attention", f"{backend.name} forward and backward", gpu_us(both), "us")
        except Exception as error:
            say("attention", backend.name, f"{type(error).__name__}: {str(error)[:100]}")


def trainer() -> None:
    """The product's trainer: no waiting for the device in a step, the same bits twice, the same losses as on a CPU."""
    from harness.bench.base import SIZES, Setting
    from harness.bench.module import add_ours
    from harness.bench.training import random_split, recipe
    from harness.energy import Meter, counters
    from harness.schema.spec import BackboneSpec
    from harness.training.trainer import Trainer
    from methods.base import Attachment

    small = Setting(
        device=DEVICE,
        backbone=BackboneSpec(name=MODEL, weights="random", digest="", image_size=SIZE),
        sizes=SIZES["cuda" if CUDA else "small"],
    )
    data = random_split(small.with_images(512 if CUDA else 8))
    meter = Meter(counters(DEVICE))
    for flip in (False, True):
        curves = []
        for _ in range(2):
            t = Trainer(
                add_ours(small.model(drop_path=0.1)),
                Attachment(),
                data,
                small.preprocessing,
                recipe(small, epochs=4, batch_size=BATCH, augmentation="flip" if flip else "none"),
                seed=0,
            )
            start = time.perf_counter()
            t.fit()
            curves.append([e.train_loss for e in t.curve])
        say(
            "trainer",
            f"flip={flip}: four epochs of {len(data)}",
            time.perf_counter() - start,
            "s",
            note=f"start {t.plan.start!r}; bits twice the same: {curves[0] == curves[1]}; "
            f"step {1e3 * t.step_seconds:.2f} ms; {t.step_mode}",
        )
    say("trainer", "energy of these trainings", meter.joules(), "J", note=meter.source or "no counter can be read")
    if CUDA:
        t = Trainer(
            add_ours(small.model(drop_path=0.1)),
            Attachment(),
            data,
            small.preprocessing,
            recipe(small, epochs=1, batch_size=BATCH),
            seed=0,
        )
        t.model.train()
        batches = list(t._batches(1))[:3]
        t._train_step(*batches[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches[1:]:
                t._train_step(*batch)
            say("trainer", "a step waits for the device", "no")
        except Exception as error:
            say("trainer", "a step waits for the device", str(error)[:200])
        finally:
            torch.cuda.set_sync_debug_mode("default")


ON_ALL_KINDS = ("sct", "lora", "ssf", "adaptformer", "vpt_deep", "prefix_tuning")
"""Methods that are tried on a small model of every kind of backbone, the others on a ViT and a Swin."""


def in_bf16():
    return torch.autocast(DEVICE.type, torch.bfloat16)


def every_method() -> None:
    """Each registered method attaches on the device, takes three steps there under autocast, and its logits in float32
    are those of the same model on a CPU."""
    from methods import registry, testbed
    from methods.objective import Objective

    images, labels = (t.to(DEVICE) for t in testbed.batch(16))
    wrong = []
    for name in registry.all_methods():
        models = testbed.MODELS if name in ON_ALL_KINDS else testbed.main_models(registry.get(name))
        for kind in (model for model in models if testbed.is_served(registry.get(name), model)):
            try:
                method, model = registry.get(name), testbed.small_model(kind).to(DEVICE)
                attachment = method.configure({}).attach(model, testbed.make_context(images, labels))
                where = {p.device.type for p in [*model.parameters(), *model.buffers()]}
                model.get_classifier().requires_grad_(True)
                optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
                objective = Objective(model=model, attachment=attachment, loss=cross_entropy, precision=in_bf16)
                model.train()
                for step in range(1, 4):
                    objective(model, images, labels).total.backward()
                    optimizer.step()
                    if attachment.after_step:
                        attachment.after_step(step)
                    optimizer.zero_grad(set_to_none=True)
                model.eval()
                with torch.no_grad():
                    found = model(images).cpu()
                    expected = model.cpu()(images.cpu())
                gap = float((found - expected).abs().max() / expected.abs().max())
                if where != {DEVICE.type} or not gap < 1e-3:
                    wrong.append(f"{name} on {kind}")
                    say("methods", f"{name} on {kind}", gap, note=f"tensors on {sorted(where)}")
            except Exception as error:
                wrong.append(f"{name} on {kind}")
                say("methods", f"{name} on {kind}", f"{type(error).__name__}: {str(error)[:160]}")
    say("methods", f"of {len(registry.all_methods())} methods fail", len(wrong), note=", ".join(wrong)[:300])


def compiler() -> None:
    """The compiled model: seconds to the first step, the step as it is, and as a graph with its optimiser."""
    for kind, cudnn in (("op", True), ("torch", True), ("none", True), ("op", False)) if CUDA else ():
        if left() < 45:
            say("compile", kind, "skipped: no time")
            continue
        torch.compiler.reset()
        name = f"{kind}{' cuDNN attention' if cudnn else ''}"
        with attention_by(cudnn):
            model = model_with(kind, bf16_frozen=True)
            start = time.perf_counter()
            step = step_of(model, torch.compile(model))
            step()
            sync()
            say("compile", f"{name}: first step", time.perf_counter() - start, "s")
            host, total = wall_ms(step, 20)
            say("compile", name, total, "ms", note=f"host {host:.1f} ms")
            _, total = wall_ms(graph_of(step), 30)
            say(
                "compile",
                f"{name}, graph",
                total,
                "ms",
                note=f"{4.54e15 / total / CEILING['matrix']:.2f} of matrix rate",
            )


def compiler_apart() -> None:
    """In a process of its own, which can be ended: its rows are in results.jsonl as they come."""
    if not CUDA:
        return
    text = run(
        [
            sys.executable,
            __file__,
            "--out",
            str(options.out),
            "--only",
            "ceilings,compile_here",
            "--seconds",
            str(left() - 15),
        ],
        "compile.txt",
        left() - 10,
    )
    for line in text.splitlines()[-6:]:
        say("compile", line[:160], "")


def bench(part: str, **sizes: int) -> None:
    """A part of the bench in this process, with smaller sizes; its rows are kept one by one."""
    from dataclasses import replace

    from harness import device as devices
    from harness.bench import report
    from harness.bench.base import SIZES, Setting
    from harness.schema.spec import BackboneSpec

    devices.use(DEVICE)
    base = SIZES["cuda" if CUDA else "small"]
    setting = Setting(
        device=DEVICE,
        backbone=BackboneSpec(name=MODEL, weights="random", digest="", image_size=SIZE),
        sizes=replace(base, **sizes) if CUDA else base,
    )
    for m in report.PARTS[part](setting):
        row = m.row()
        say(
            part,
            m.what,
            m.ours,
            m.unit,
            note=" ".join(f"{k} {row[k]}" for k in ("compared with", "ratio", "judged", "target", "reached") if row[k]),
        )


STAGES = {  # in order; seconds that each needs, or it is skipped
    "env": (environment, 1),
    "correctness": (correctness, 20),
    "tests": (kernel_tests, 100),
    "ceilings": (ceilings, 5),
    "kernels": (kernels, 25),
    "steps": (steps, 40),
    "attention": (attention, 5),
    "trainer": (trainer, 25),
    "methods": (every_method, 30),
    "module": (lambda: bench("module", rounds=10), 20),
    "selection": (lambda: bench("selection", images=250, rounds=4), 40),
    "whole": (lambda: bench("whole", test_images=2000, epochs=6), 60),
    "compile": (compiler_apart, 100),
}
if "compile_here" in options.only:
    STAGES = {"ceilings": (ceilings, 0), "compile_here": (compiler, 0)}

for name, (stage, needs) in STAGES.items():
    if options.only and name not in options.only.split(","):
        continue
    if left() < needs:
        say(name, "skipped", f"{left():.0f} s left, {needs} needed")
        continue
    begun = time.perf_counter()
    print(f"[{begun - BEGUN:6.1f} s] {name}", flush=True)
    try:
        stage()
    except Exception as error:
        (options.out / f"error_{name}.txt").write_text(traceback.format_exc())
        say(name, "FAILED", f"{type(error).__name__}: {str(error)[:200]}")
    say(name, "stage took", time.perf_counter() - begun, "s")


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


for row in ROWS:
    print(f"{row['stage']:10s} {row['what']:44s} {shown(row['value'])} {row['unit']} {row['note']}")
with (options.out / "table.md").open("w") as table:
    table.write("| stage | what | value | unit | note |\n|---|---|---:|---|---|\n")
    for row in map(json.loads, (options.out / "results.jsonl").read_text().splitlines()):
        cells = row["stage"], row["what"], shown(row["value"]), row["unit"], row["note"]
        table.write(f"| {' | '.join(cells)} |\n")
