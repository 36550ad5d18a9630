"""E2VPT beside its definition written out in double precision; what its pruning cuts, and when."""

import pytest
import torch

from methods import conformance, testbed
from methods.base import MethodError
from methods.e2vpt import E2VPT
from methods.prompt_masks import PIECES, Masks, PrunableMasks, Pruning
from methods.registry import get
from tests.conftest import make_context
from tests.method_checks import attach, count, vit_b
from tests.references import classified, double_vit, embedded, given, run_block, small_images, worst


def written_out(vit, parameters, images, tokens, interleaved):
    x = embedded(vit, images)
    own = parameters["blocks.0.slots.input.0.masks.tokens"], parameters["blocks.0.slots.input.0.masks.pieces"]
    for number, block in enumerate(vit.blocks):
        prompts = parameters[f"blocks.{number}.slots.input.0.prompts"]
        rows = []
        for t in range(tokens):
            factors = [own[1][t, c % 16 if interleaved else c // 2] for c in range(32)]  # 32 channels, 16 pieces
            rows.append(own[0][t] * torch.stack(factors) * prompts[t])
        patches = x[:, 1:] if number == 0 else x[:, 1 + tokens :]
        x = torch.cat([x[:, :1], torch.stack(rows).expand(len(x), -1, -1), patches], 1)
        keys = parameters[f"blocks.{number}.attn.prefix.keys"]
        x = run_block(block, x, keys, parameters.get(f"blocks.{number}.attn.prefix.values", keys))
    return classified(vit, x)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("prunable", [0.0, 0.5])
def test_it_computes_what_its_definition_says(variant, shared, prunable):
    model, images = double_vit(), small_images()
    attach("e2vpt", model, tokens=3, key_values=2, shared=shared, variant=variant, pruned_pieces=prunable)
    expected = written_out(double_vit(), given(model), images, 3, variant == "released")
    assert max(worst(model, expected, images)) < 1e-10


@pytest.mark.parametrize(
    ("settings", "parameters"), [({}, 184_490), ({"shared": False}, 276_650), ({"tokens": 5, "key_values": 1}, 55_381)]
)
def test_the_count_on_vit_b(settings, parameters):
    method, model = get("e2vpt").configure(settings), vit_b()
    assert method.expected_parameters(model) == parameters
    method.attach(model, make_context())
    assert count(model) == parameters


def test_the_start():
    model, _ = attach("e2vpt", testbed.small_vit(embed_dim=192, depth=6), tokens=50)
    masks = model.blocks[0].slots["input"][0].masks
    assert type(masks) is Masks and all(bool((mask == 1).all()) for mask in masks.parameters())
    keys = torch.cat([block.attn.prefix.keys.detach().flatten() for block in model.blocks])
    bound = (6 / (10 * 48)) ** 0.5
    assert 0.95 * bound < float(keys.abs().max()) <= bound
    assert float(keys.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    prompts = torch.cat([block.slots["input"][0].prompts.detach().flatten() for block in model.blocks])
    assert 0.95 * 0.125 < float(prompts.abs().max()) <= 0.125  # patches of 8: sqrt(6 / (3 * 64 + 192))


def test_prompts_of_each_image_are_dropped_before_the_masks():
    model, _ = attach("e2vpt", dropout=0.5)
    insertion = model.blocks[1].slots["input"][0].train()
    entered = insertion(torch.zeros(2, 17, 32))[:, 1:11].detach()
    assert not torch.equal(entered[0], entered[1])
    kept = entered[0] != 0
    assert torch.equal(entered[0][kept], 2 * insertion.prompts[kept])  # masks are 1


def test_without_pruning_a_training_does_nothing_of_its_own():
    _, attachment = attach("e2vpt")
    assert attachment.after_step is None and attachment.state is None
    assert attach("e2vpt", tokens=3, pruned_tokens=0.3)[1].after_step is None  # less than one token of three


def lowest(scores, cut):
    """Places of the lowest scores by a plain sort."""
    return {place for _, place in sorted((float(score), place) for place, score in enumerate(scores))[:cut]}


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(("tokens_cut", "pieces_cut"), [(0.4, 0.0), (0.0, 0.5), (0.8, 0.7)])
def test_the_least_important_are_cut_and_prompts_rewound(variant, tokens_cut, pieces_cut):
    settings = {"tokens": 5, "pruned_tokens": tokens_cut, "pruned_pieces": pieces_cut, "variant": variant}
    model, attachment = attach("e2vpt", **settings)
    insertions = [block.slots["input"][0] for block in model.blocks]
    masks, prefix = insertions[0].masks, model.blocks[1].attn.prefix
    prompts = [insertion.prompts for insertion in insertions] + [prefix.keys]
    starts, given_gradients = [p.detach().clone() for p in prompts], []
    for step in range(1, 8):  # of ten: the fifth is the one
        generator = torch.Generator().manual_seed(step)
        masks.tokens.grad = torch.randn(5, generator=generator)
        masks.pieces.grad = torch.randn(5, PIECES, generator=generator)
        given_gradients.append((masks.tokens.grad, masks.pieces.grad))
        with torch.no_grad():
            for prompt in prompts:
                prompt.add_(1)
        attachment.after_step(step)
        assert bool(masks.pruned) == (step >= 5)
        moved = [float((p.detach() - start).mean()) for p, start in zip(prompts, starts, strict=True)]
        assert moved == pytest.approx([step if step < 5 else step - 5] * len(prompts), abs=1e-5)
    rank = torch.abs if variant == "paper" else torch.clone
    of_tokens, of_pieces = (sum(map(rank, each[:5])) / 5 for each in zip(*given_gradients, strict=True))
    kept_tokens, kept_pieces = (kept.detach() for kept in masks.values())
    gone = lowest(of_tokens, int(5 * tokens_cut))
    assert kept_tokens.tolist() == [float(t not in gone) for t in range(5)]
    for t in range(5):
        gone = lowest(of_pieces[t], int(16 * pieces_cut))
        assert kept_pieces[t].tolist() == [float(s not in gone) for s in range(PIECES)]
    assert attachment.info == {
        "tokens_cut": int(5 * tokens_cut),
        "pieces_cut": int(16 * pieces_cut),
        "cut_after_step": 5,
    }


def test_masks_are_constants_after_the_cut():
    masks = PrunableMasks(2, interleaved=False)
    masks.prune((torch.tensor([1.0, 0.0]), torch.arange(32.0).view(2, 16)), (1, 4))
    factors = masks.factors(32)
    assert factors[0].tolist() == [0] * 8 + [1] * 24 and not factors[1].any()
    factors.sum().backward()
    assert not masks.tokens.grad.any() and not masks.pieces.grad.any()


def test_the_cut_waits_for_a_step_and_scores_go_on_where_they_stopped():
    masks = PrunableMasks(2, interleaved=False)
    first, second = (Pruning(masks, [], 2, (1, 0), signed=True) for _ in range(2))
    masks.tokens.grad, masks.pieces.grad = torch.tensor([1.0, -1.0]), torch.zeros(2, PIECES)
    first.after_step(1)
    second.load_state(first.state())
    masks.tokens.grad = torch.tensor([-3.0, 0.0])
    second.after_step(2)
    assert masks.values()[0].tolist() == [0, 1]  # -2 is less than -1


class Pruned(E2VPT):
    """E2VPT whose checks cut something."""

    @staticmethod
    def _config():
        return E2VPT.Config(pruned_tokens=0.5, pruned_pieces=0.25, tokens=4)

    def __init__(self, config=None):
        super().__init__(config or self._config())


@pytest.mark.parametrize(
    "name", ["parameters", "gradients", "frozen", "state", "deepcopy", "resume", "resolved", "moves"]
)
def test_pruning_keeps_the_contract(name):
    assert conformance.run_check(name, Pruned) is None


def test_settings_that_cut_as_much_are_one_configuration():
    method, model = get("e2vpt"), testbed.small_vit()
    resolved = [
        method.configure({"pruned_tokens": t, "pruned_pieces": p, "prune_at": at}).resolve(model)
        for t, p, at in [(0.31, 0.07, 0.4), (0.3, 0.1, 0.4), (0.09, 0.01, 0.4)]
    ]
    assert resolved[0].pruned_tokens == resolved[1].pruned_tokens == 0.3
    assert resolved[1].pruned_pieces == 0.063 and resolved[0].pruned_pieces == 0.063
    assert resolved[2] == method().config


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"pruned_tokens": 1.0}, "pruned_tokens"), ({"prune_at": 0.0}, "prune_at"), ({"variant": "new"}, "variant")],
)
def test_bad_settings_are_refused_by_name(settings, field):
    with pytest.raises(MethodError, match=field):
        get("e2vpt").configure(settings)


def test_widths_that_do_not_split_into_pieces_are_refused():
    model = testbed.small_vit(embed_dim=24)
    with pytest.raises(MethodError, match="width=24 must be a multiple of 16"):
        attach("e2vpt", model)
    assert not hasattr(model.blocks[0], "slots")
