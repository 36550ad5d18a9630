"""What a run costs: operations by the convention, memory from now on, latencies before and after merging."""

import mmap

import torch

from harness.schema.preprocessing import Preprocessing
from harness.training.cost import PeakMemory, forward_flops, latencies, of_inference, operations
from methods.registry import get
from tests.conftest import batch, make_context, small_vit

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
TOKENS, WIDTH, CLASSES = 17, 32, 4
DATA = batch()


def attached(method, **config):
    model = small_vit()
    attachment = get(method).configure(config).attach(model, make_context())
    model.get_classifier().requires_grad_(True)
    return model, attachment


def test_a_multiply_add_counts_as_two_and_attention_counts():
    patches = 2 * 16 * (3 * 8 * 8) * WIDTH
    maps = 2 * TOKENS * WIDTH * WIDTH * (3 + 1 + 4 + 4)
    attention = 2 * 2 * TOKENS * TOKENS * WIDTH
    expected = patches + 3 * (maps + attention) + 2 * WIDTH * CLASSES
    assert forward_flops(small_vit(), HALF) == expected


def test_the_backward_pass_ends_at_the_first_trained_parameter():
    model, attachment = attached("linear")
    forward, training = operations(model, attachment, *DATA)
    assert forward == forward_flops(model, HALF) and training - forward == 2 * WIDTH * CLASSES
    assert model.head.weight.grad is None
    forward, one_block = operations(*attached("sct", channels=4, blocks=(2,)), *DATA)
    _, all_blocks = operations(*attached("sct", channels=4), *DATA)
    assert forward < one_block < 1.5 * forward < all_blocks


def test_peaks_start_anew():
    memory = PeakMemory(torch.device("cpu"))
    before = memory.resident()
    block = mmap.mmap(-1, 2**26)  # fresh pages, not what an allocator kept
    block.write(b"\1" * 2**26)
    assert memory.resident() - before > 2**25
    block.close()
    assert PeakMemory(torch.device("cpu")).resident() < memory.resident() + 2**25
    assert memory.allocated() is None


def test_latencies_of_what_merges_are_measured_twice():
    model, attachment = attached("sct", mode="mlp", channels=4)
    measured = of_inference(model, attachment, *DATA, "float32")
    for name in ("latency_seconds", "merged_latency_seconds"):
        assert set(measured[name]) == {"1", "64"} and all(seconds > 0 for seconds in measured[name].values())
    assert not hasattr(model.blocks[0].mlp.fc2, "slots")
    model, attachment = attached("sct", channels=4)
    assert of_inference(model, attachment, *DATA, "bf16")["merged_latency_seconds"] == {}


def test_measuring_leaves_the_generator_alone():
    model, _ = attached("lora")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    latencies(model, DATA[0], "float32")
    assert torch.equal(torch.rand(3), expected)
