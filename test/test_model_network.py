# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""The denoiser: exactness of caching, symmetries, isolation of objects, and what its extensions are for."""

import copy
import dataclasses

import pytest
import torch
from model_fixtures import Query, denoise, live_model, new_model, random_query, reference_denoise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ocdit_ros.model import ModelConfig, OCDiT, SamplerSettings, TemplateFeatures, sample
from ocdit_ros.model.blocks import attention
from ocdit_ros.model.edm import denoising_loss, preconditioning
from ocdit_ros.model.embeddings import BoxPrompt
from ocdit_ros.model.sampler import SOLVERS, trajectory

PLAIN = {"correlation_width": 0, "max_template_tokens": 0}
VARIANTS = [
    {"self_attention": a, "correlation_width": c, "queries_per_object": q}
    for a in ("joint", "factorised")
    for c in (0, 16)
    for q in (1, 2)
]


def close(a, b, tolerance=1e-5):
    """Largest difference, relative to values above 1: below the tolerance, and the values are not just zero."""
    a, b = a.detach(), b.detach()
    difference = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
    assert difference <= tolerance, difference
    assert float(b.std()) > 1e-3
    return difference


# ---------------------------------------------------------------- the network is what the paper writes


@pytest.mark.parametrize("self_attention", ["joint", "factorised"])
@pytest.mark.parametrize("queries_per_object", [1, 3])
def test_equals_a_naive_implementation_of_the_paper(self_attention, queries_per_object):
    model = live_model(
        self_attention=self_attention, queries_per_object=queries_per_object, template_size=48, templates=3, **PLAIN
    )
    query = random_query(model, batch=2, objects=3)
    sigma = torch.tensor([0.4, 7.0])
    together = denoise(model, query, sigma)
    skip = preconditioning(sigma)[0]
    with torch.no_grad():
        for row in range(2):
            noisy = sigma[row] * query.latents[row]
            expected = reference_denoise(model, query, row, noisy, float(sigma[row]))
            close(together[row], expected)
            assert float((expected - skip[row] * noisy).std()) > 0.01  # the network itself has a say


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_initial_blocks_are_identities(variant, record_property):
    model = new_model(**variant)
    query = random_query(model)
    model.requires_grad_(False)
    context = model.query_context(query.image, model.condition(query.templates, query.diameters))
    noise = model.noise_embedding(torch.tensor([0.3, 40.0]))
    for block, keys, values in zip(model.blocks, context.keys, context.values):
        x = torch.randn(context.embedding.shape)
        after = block(x, noise, keys, values, context.mask)
        record_property("difference", float((after - x).abs().max()))
        assert after.equal(x)
        # and not because its parts are dead: only the gates are shut
        inside = block.cross(x.reshape(keys.shape[0], -1, x.shape[-1]), keys, values, context.mask)
        assert float(inside.std()) > 0.01 and float(block.self(x).std()) > 0.01 and float(block.mlp(x).std()) > 0.01
    sigma = torch.tensor([0.3, 40.0])
    expected = preconditioning(sigma)[0].view(-1, 1, 1, 1, 1) * sigma.view(-1, 1, 1, 1, 1) * query.latents
    torch.testing.assert_close(denoise(model, query, sigma), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_initialisation_leaves_adaln_output_uncertainty_and_size_at_zero(preset):
    model = OCDiT(ModelConfig.preset(preset))
    zeros = {
        name
        for name, p in model.named_parameters()
        if not name.startswith(("backbone.", "image_backbone.", "vae.")) and p.dim() > 1 and not p.any()
    }
    expected = {f"blocks.{i}.modulation.linear.weight" for i in range(model.config.depth)}
    assert zeros == expected | {
        "final_modulation.linear.weight",
        "final.2.weight",
        "uncertainty.1.weight",
        "size_encoding.mlp.2.weight",
    } | ({"correlation.adapter.2.weight"} if model.config.correlation_hidden else set())


def test_training_leaves_the_identity():
    model = new_model().train()
    query = random_query(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    sigma = torch.tensor([1.0, 5.0])
    for _ in range(3):
        clean = 0.5 * query.latents
        noisy = clean + sigma.view(-1, 1, 1, 1, 1) * torch.randn_like(clean)
        denoised = model.denoise(noisy, sigma, query.image, model.condition(query.templates, query.diameters))
        optimizer.zero_grad()
        denoising_loss(denoised, clean, sigma, model.log_variance(sigma)).backward()
        optimizer.step()
    silent = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and not n.startswith("vae.") and (p.grad is None or not p.grad.any())
    ]
    assert silent == [], silent  # every parameter of the denoiser is reached by the loss


# ---------------------------------------------------------------- conditioning: once per object, exact


@pytest.mark.parametrize("self_attention", ["joint", "factorised"])
@pytest.mark.parametrize("churn", [0.0, 10.0])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ensemble", [1, 2, 3, 5])
def test_cached_conditioning_equals_uncached(solver, ensemble, churn, self_attention, record_property):
    if churn and solver == "dpmpp_2m":
        with pytest.raises(ValueError, match="churn"):
            SamplerSettings(solver=solver, churn=churn)
        return
    model = live_model(queries_per_object=2, self_attention=self_attention)
    query = random_query(model, batch=2)
    settings = SamplerSettings(5, solver, ensemble, churn)
    conditioning = model.condition(query.templates, query.diameters, query.slots)
    cached = sample(model, query.image, conditioning, settings, torch.Generator().manual_seed(3))

    def uncached(x, sigma):  # everything is computed anew from the templates at each evaluation, for each member
        every = query.rows([i // ensemble for i in range(x.shape[0])])
        fresh = model.condition(every.templates, every.diameters, every.slots)
        return model.denoise(x, sigma[None], every.image, fresh)

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2 * ensemble, *query.latents.shape[1:], generator=generator)
    config = model.config
    with torch.no_grad():
        *_, expected = trajectory(uncached, noise, settings, config.sigma_min, config.sigma_max, config.rho, generator)
    record_property("difference", close(cached.flatten(0, 1), expected))


@pytest.mark.parametrize("self_attention", ["joint", "factorised"])
def test_one_noise_level_for_all_rows_equals_as_many_equal_ones(self_attention):
    model = live_model(queries_per_object=2, self_attention=self_attention)
    query = random_query(model, batch=3)
    for level in (0.05, 1.0, 30.0):
        sigma = torch.tensor([level])
        with torch.no_grad():  # scales, shifts and gates go into the weights
            short = denoise(model, query, sigma, query.latents)
            close(short, denoise(model, query, sigma.expand(3), query.latents), 3e-5)
        # and with gradients nothing goes into the weights
        close(short, denoise(model, query, sigma, query.latents), 3e-5)


def test_conditioning_does_not_depend_on_image_or_sigma_and_may_be_shared():
    model = live_model()
    query = random_query(model, batch=3)
    one = model.condition(
        TemplateFeatures(tuple(m[0] for m in query.templates.maps), query.templates.coverage[0]),
        query.diameters[0],
        query.slots[0],
    )  # leading [N_O, N_T]
    shared = dataclasses.replace(
        query,
        templates=TemplateFeatures(
            tuple(m[:1].expand(3, *m.shape[1:]) for m in query.templates.maps),
            query.templates.coverage[:1].expand(3, -1, -1, -1, -1),
        ),
        diameters=query.diameters[:1].expand(3, -1),
        slots=query.slots[:1].expand(3, -1),
    )
    sigma = torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        close(model.denoise(query.latents, sigma, query.image, one), denoise(model, shared, sigma, query.latents))
        # and one image serves several rows of objects
        single = tuple(m[:1] for m in query.image)
        rows = model.condition(query.templates, query.diameters, query.slots)
        copies = dataclasses.replace(query, image=tuple(m.expand(3, -1, -1, -1) for m in single))
        close(model.denoise(query.latents, sigma, single, rows), denoise(model, copies, sigma, query.latents))


def test_background_patches_of_templates_are_left_out():
    model = live_model()
    query = random_query(model)
    covered = query.templates.coverage >= model.config.min_coverage
    assert 0.3 < float(covered.float().mean()) < 0.9
    other = []
    for m in query.templates.maps:
        keep = covered.repeat_interleave(m.shape[-1] // covered.shape[-1], -1).repeat_interleave(
            m.shape[-1] // covered.shape[-1], -2
        )[:, :, :, None]
        other.append(torch.where(keep, m, torch.randn(m.shape)))
    changed = dataclasses.replace(query, templates=TemplateFeatures(tuple(other), query.templates.coverage))
    assert denoise(model, changed, 2.0).equal(denoise(model, query, 2.0))


@pytest.mark.parametrize("training", [False, True])
def test_token_budget_is_kept_and_spread_over_all_templates(training):
    model = live_model(max_template_tokens=24).train(training)
    query = random_query(model)
    query.templates.coverage[:] = 1
    conditioning = model.condition(query.templates, query.diameters)
    assert conditioning.valid.shape[-1] == 24 and bool(conditioning.valid.all())
    if not training:  # 64 patches of 4 templates, every 64/24-th kept: two tokens or more of each template, in order
        index = torch.arange(24) * 64 // 24
        assert torch.bincount(index // 16).min() >= 5
        full = live_model(max_template_tokens=0).condition(query.templates, query.diameters)
        close(conditioning.keys[0], full.keys[0][:, :, :, index], 1e-6)


def test_object_too_thin_for_any_patch_keeps_its_best_one():
    model = live_model()
    query = random_query(model)
    query.templates.coverage[0, 1] = 0.01
    query.templates.coverage[0, 1, 2, 3, 1] = 0.2
    conditioning = model.condition(query.templates, query.diameters)
    assert int(conditioning.valid[0, 1].sum()) == 1
    assert bool(denoise(model, query, 1.0).isfinite().all())


# ---------------------------------------------------------------- objects: symmetry, isolation, number


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_permuting_objects_with_their_encodings_permutes_the_output(variant, record_property):
    model = live_model(**variant)
    query = random_query(model, objects=5)
    order = torch.tensor([3, 0, 4, 2, 1])
    q = model.config.queries_per_object
    queries = (order[:, None] * q + torch.arange(q)).flatten()
    permuted = Query(
        query.image,
        TemplateFeatures(tuple(m[:, order] for m in query.templates.maps), query.templates.coverage[:, order]),
        query.diameters[:, order],
        query.slots[:, order],
        query.latents[:, queries],
    )
    before = denoise(model, query, torch.tensor([0.5, 20.0]))
    record_property("difference", close(denoise(model, permuted, torch.tensor([0.5, 20.0])), before[:, queries]))
    wrong = dataclasses.replace(permuted, slots=query.slots)  # encodings left behind: not equivalent
    assert float((denoise(model, wrong, torch.tensor([0.5, 20.0])) - before[:, queries]).abs().max()) > 1e-3


def other_templates(query, row, number):
    """The same query with other templates (and other coverage) of one object of one row."""
    fresh = random_query_like(query, seed=99)
    maps = tuple(m.clone() for m in query.templates.maps)
    coverage = query.templates.coverage.clone()
    for m, f in zip(maps, fresh.maps):
        m[row, number] = f[row, number]
    coverage[row, number] = fresh.coverage[row, number] * 0.7  # fewer foreground patches, too
    return dataclasses.replace(query, templates=TemplateFeatures(maps, coverage))


def random_query_like(query, seed):
    """Random template features of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(m.shape, generator=generator) for m in query.templates.maps)
    return TemplateFeatures(maps, torch.rand(query.templates.coverage.shape, generator=generator))


@pytest.mark.parametrize("limit", [0, 24])
@pytest.mark.parametrize("queries_per_object", [1, 2])
def test_cross_attention_of_other_objects_is_bit_equal_whatever_one_object_shows(
    limit, queries_per_object, record_property
):
    model = live_model(queries_per_object=queries_per_object, max_template_tokens=limit, width=64)
    query = random_query(model, objects=4)
    changed = other_templates(query, 0, 2)
    outputs = []
    for q in (query, changed):
        conditioning = model.condition(q.templates, q.diameters, q.slots)
        context = model.query_context(q.image, conditioning)
        x = torch.randn(2 * 4, queries_per_object * 20, 64, generator=torch.Generator().manual_seed(5))
        outputs.append(
            [
                block.cross(x, k, v, context.mask).view(2, 4, -1)
                for block, k, v in zip(model.blocks, context.keys, context.values)
            ]
        )
    for before, after in zip(*outputs):
        same = (before == after).all(-1)
        others = torch.arange(4) != 2
        record_property("difference", float((before - after)[:, others].detach().abs().max()))
        assert same.tolist() == [[True, True, False, True], [True, True, True, True]]


def test_whole_first_block_sees_only_own_templates_before_self_attention():
    model = live_model(correlation_width=0, queries_per_object=2)
    query = random_query(model, objects=3)
    outputs = []
    hook = model.blocks[0].cross.register_forward_hook(lambda _, x, y: outputs.append(y.view(2, 3, -1)))
    before = denoise(model, query, 1.0)
    after = denoise(model, other_templates(query, 1, 0), 1.0)
    hook.remove()
    assert (outputs[0] == outputs[1]).all(-1).tolist() == [[True] * 3, [False, True, True]]
    assert (before == after).flatten(2).all(-1).tolist()[0] == [True] * 6
    assert not bool((before[1] == after[1]).flatten(1).all(-1).any())  # self-attention does tell the others


@pytest.mark.parametrize("self_attention", ["joint", "factorised"])
@pytest.mark.parametrize("objects", [1, 2, 7, 8, 9, 32])
def test_runs_with_any_number_of_objects(objects, self_attention, record_property):
    model = live_model(self_attention=self_attention, train_objects=8)
    query = random_query(model, objects=objects, height=3, width=3)
    conditioning = model.condition(query.templates, query.diameters)
    latents = sample(model, query.image, conditioning, SamplerSettings(2, ensemble=2), torch.Generator().manual_seed(0))
    assert latents.shape == (2, 2, objects, 8, 3, 3) and bool(latents.isfinite().all())
    record_property("objects", objects)
    slots = model.default_slots(2, objects)
    assert all(len(set(row)) == objects for row in slots.tolist()) and int(slots.max()) < 32


def test_more_objects_than_encodings_is_refused():
    model = live_model(max_objects=4)
    query = random_query(live_model(), objects=5)
    with pytest.raises(ValueError, match=r"5 objects.*encodings for 4"):
        model.condition(query.templates, query.diameters)


def test_training_draws_object_encodings_in_random_intervals_that_reach_every_row():
    model = live_model().train()
    torch.manual_seed(0)
    slots = model.default_slots(400, 4)
    assert bool((slots.diff(dim=1) > 0).all())  # ordered, distinct
    assert len(slots.unique()) == model.config.max_objects
    assert len(slots.diff(dim=1).unique()) > 10  # intervals vary
    even = model.eval().default_slots(1, 4)[0]
    assert even.diff().unique().tolist() == [8]


def test_wrong_sizes_are_refused_in_a_sentence():
    model = live_model()
    query = random_query(model)
    with pytest.raises(ValueError, match="5 templates given, the model was built for at most 4"):
        model.condition(random_query(model, templates=5).templates, query.diameters)
    other = random_query(live_model(template_size=96))
    with pytest.raises(ValueError, match="templates of 96 pixels given, the model was built for 64"):
        model.condition(other.templates, other.diameters)
    with pytest.raises(ValueError, match="multiples of 16"):
        model.image_features(torch.zeros(1, 3, 100, 96))
    plain = live_model(correlation_width=0)
    with pytest.raises(ValueError, match="without template correlation"):
        model.query_context(query.image, plain.condition(query.templates, query.diameters))
    conditioning = model.condition(query.templates, query.diameters)
    three = tuple(torch.cat([m, m[:1]]) for m in query.image)
    with pytest.raises(ValueError, match="3 images and 2 rows of objects"):
        model.query_context(three, conditioning)
    for latents, sigma in ((query.latents[:1], torch.ones(1)), (query.latents, torch.ones(3))):
        with pytest.raises(ValueError, match=r"do not fit.*need \(2, 3, 8, 5, 4\) and \(2,\)"):
            model.denoise(latents, sigma, query.image, conditioning)
    with pytest.raises(ValueError, match="do not fit"):
        model.denoise(query.latents[:, :2], torch.ones(2), query.image, conditioning)


@pytest.mark.parametrize("self_attention", ["joint", "factorised"])
def test_factorised_attention_costs_linearly_in_objects_and_joint_does_not(self_attention):
    model = live_model(self_attention=self_attention, correlation_width=0)
    work = []
    for objects in (8, 16, 32):
        query = random_query(model, batch=1, objects=objects, height=8, width=8)
        context = model.query_context(query.image, model.condition(query.templates, query.diameters))
        # written out, because the counter does not know the fused attention of CPUs
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model.denoise_in_context(query.latents, torch.ones(1), context)
        work.append(counter.get_total_flops())
    growth = (work[2] - work[1]) / (work[1] - work[0])  # 2 where the cost is a + b N, more where it has a term in N^2
    assert growth == pytest.approx(2, abs=0.01) if self_attention == "factorised" else growth > 3


# ---------------------------------------------------------------- batch


@pytest.mark.parametrize("self_attention", ["joint", "factorised"])
def test_result_does_not_depend_on_batch_neighbours_or_place(self_attention, record_property):
    model = live_model(self_attention=self_attention)
    query = random_query(model, batch=5)
    sigma = torch.tensor([0.01, 0.3, 2.0, 9.0, 80.0])
    noisy = sigma.view(-1, 1, 1, 1, 1) * query.latents
    full = denoise(model, query, sigma, noisy)
    for order in ([2], [4, 2], [2, 0, 1], [3, 1, 0, 4, 2], [2, 2, 2]):
        rows = query.rows(order)
        part = denoise(model, rows, sigma[order], noisy[order])
        for place, i in enumerate(order):
            record_property("difference", close(part[place], full[i]))
    wrong = denoise(model, query, sigma.flip(0), noisy)  # sigma does belong to its sample
    assert float((wrong - full)[0].abs().max()) > 1e-3


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("grid", [(1, 1), (1, 64), (64, 2), (17, 30)])
def test_any_grid_up_to_64_by_64(grid):
    model = live_model()
    query = random_query(model, batch=1, objects=2, height=grid[0], width=grid[1])
    assert bool(denoise(model, query, 1.0).isfinite().all())


def test_full_grid_has_an_encoding_for_every_place_and_more_is_refused():
    encoding = live_model().patch_encoding
    assert len(encoding(64, 64).unique(dim=0)) == 64 * 64
    with pytest.raises(ValueError, match=r"65x10 tokens.*at most 1024 pixels"):
        encoding(65, 10)


def test_patch_encodings_come_from_random_windows_in_training_only():
    encoding = live_model().patch_encoding.train()
    torch.manual_seed(0)
    windows = [encoding(4, 6) for _ in range(300)]
    table = encoding.table.detach()
    places = {tuple(int(v) for v in (table == w[0]).all(-1).nonzero()[0]) for w in windows}
    assert len(places) > 200
    assert max(p[0] for p in places) > 55 and max(p[1] for p in places) > 53
    for w in windows[:5]:
        top, left = (int(v) for v in (table == w[0]).all(-1).nonzero()[0])
        assert w.equal(table[top : top + 4, left : left + 6].reshape(24, -1))
    encoding.eval()
    assert encoding(4, 6).equal(encoding(4, 6)) and encoding(4, 6).equal(table[30:34, 29:35].reshape(24, -1))


# ---------------------------------------------------------------- extensions


def test_size_tells_objects_of_equal_templates_apart_and_only_ratios_count():
    model = live_model()
    query = random_query(model, batch=1, objects=3)
    for m in (*query.templates.maps, query.templates.coverage):
        m[:, 1] = m[:, 0]  # objects 0 and 1 look the same
    query.latents[:, 1] = query.latents[:, 0]
    encoding = model.query_encoding(torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0.1, 0.2, 0.15]]))
    assert float((encoding[0, 0] - encoding[0, 1]).detach().abs().max()) > 0.01
    query.slots[:, 1] = query.slots[:, 0]  # nothing but the size differs now
    query.diameters = torch.tensor([[0.1, 0.1, 0.15]])
    same = denoise(model, query, 2.0)
    close(same[:, 0], same[:, 1], 1e-6)
    query.diameters = torch.tensor([[0.1, 0.2, 0.15]])
    different = denoise(model, query, 2.0)
    assert float((different[:, 0] - different[:, 1]).abs().max()) > 1e-3
    query.diameters = 2 * query.diameters
    close(denoise(model, query, 2.0), different, 1e-6)
    without = live_model(size_encoding=False)
    before = denoise(without, query, 2.0)
    query.diameters = torch.tensor([[0.1, 5.0, 0.15]])
    assert denoise(without, query, 2.0).equal(before)


def test_several_queries_of_one_object_are_ordered_by_object_and_differ_by_their_encoding():
    model = live_model(queries_per_object=3)
    query = random_query(model, batch=1, objects=2)
    assert query.latents.shape[1] == 6
    conditioning = model.condition(query.templates, query.diameters, query.slots)
    encoding = conditioning.query_encoding[0].unflatten(0, (2, 3))
    close(encoding[0] - encoding[1], (encoding[0, :1] - encoding[1, :1]).expand(3, -1), 1e-6)
    close(
        encoding[0, 1:] - encoding[0, :1], model.instance_encoding.weight[1:] - model.instance_encoding.weight[:1], 1e-6
    )
    assert conditioning.valid.shape[1] == 2  # templates are not repeated
    # exchanging the noise and the encodings of two queries of object 1 exchanges their results and nothing else
    order = torch.tensor([0, 2, 1])
    before = denoise(model, query, 3.0)
    swapped = dataclasses.replace(query, latents=query.latents.unflatten(1, (2, 3))[:, :, order].flatten(1, 2))
    with torch.no_grad():
        model.instance_encoding.weight.copy_(model.instance_encoding.weight[order])
    close(denoise(model, swapped, 3.0).unflatten(1, (2, 3)), before.unflatten(1, (2, 3))[:, :, order])
    # with equal encodings, only the noise breaks the symmetry
    with torch.no_grad():
        model.instance_encoding.weight.copy_(model.instance_encoding.weight[:1].expand(3, -1))
    query.latents[:, 1] = query.latents[:, 0]
    tied = denoise(model, query, 3.0)
    close(tied[:, 0], tied[:, 1], 1e-6)
    assert float((tied[:, 0] - tied[:, 2]).abs().max()) > 1e-3


def test_correlation_finds_the_object_that_is_in_the_image():
    model = live_model(correlation_strides=(16, 8))
    query = random_query(model, batch=1, objects=3, height=4, width=4)
    # patch (1, 2) of the image shows exactly one foreground template patch of object 2
    query.templates.coverage[0, 2, 0, 1, 1] = 1
    for m, t, r in zip(query.image, query.templates.maps, (2, 1)):
        m[0, :, r : 2 * r, 2 * r : 3 * r] = t[0, 2, 0, :, r : 2 * r, r : 2 * r]
    conditioning = model.condition(query.templates, query.diameters)
    assert conditioning.correlation_keys is not None
    best, _ = model.correlation.similarity(
        model.correlation.describe(query.image, 16), conditioning.correlation_keys, conditioning.valid
    )
    assert float(best[0, 2, 1, 2].detach()) == pytest.approx(1, abs=1e-5)
    best[0, 2, 1, 2] = -1
    assert float(best.detach().max()) < 0.99
    # a wider image at the finer stride
    fine, _ = model.correlation.similarity(
        model.correlation.describe(query.image, 8), conditioning.correlation_keys, conditioning.valid
    )
    assert fine.shape == (1, 3, 8, 8)


def test_correlation_of_an_object_ignores_padding_and_the_templates_of_others():
    model = live_model()
    query = random_query(model, objects=3)
    query.templates.coverage[0, 0] = 0
    query.templates.coverage[0, 0, 0, 0, :3] = 1  # three patches, fewer than five
    results = []
    for q in (query, other_templates(query, 0, 2)):
        c = model.condition(q.templates, q.diameters)
        results.append(
            torch.stack(
                model.correlation.similarity(model.correlation.describe(q.image, 16), c.correlation_keys, c.valid)
            )
        )
    assert results[0][:, 0, :2].equal(results[1][:, 0, :2])
    assert not results[0][:, 0, 2].equal(results[1][:, 0, 2])
    three = model.condition(query.templates, query.diameters).correlation_keys[0, 0, :3]
    scene = model.correlation.describe(query.image, 16)[0]
    close(results[0][1, 0, 0], (scene @ three.T).mean(-1), 1e-5)


def test_descriptors_of_the_background_are_made_once_and_anew_when_something_changes(monkeypatch):
    model = live_model(correlation_strides=(16,), correlation_background=50, correlation_hidden=8)
    correlation = model.correlation
    correlation.background.copy_(torch.randn(correlation.background.shape))
    width = correlation.projection.out_features
    scene = torch.nn.functional.normalize(torch.randn(1, 3, 4, width), dim=-1)
    made, describe = [], correlation._unit_vectors
    monkeypatch.setattr(correlation, "_unit_vectors", lambda features: made.append(1) or describe(features))

    def expected():
        return (scene @ describe(correlation.background).T).amax(-1)

    with torch.inference_mode():
        close(correlation.commonness(scene), expected(), 1e-6)
    changes = [
        lambda: torch.optim.SGD([_with_grad(correlation.projection.weight)], lr=0.5).step(),
        lambda: torch.optim.SGD([_with_grad(correlation.adapter[-1].bias)], lr=0.5).step(),
        lambda: correlation.background.normal_(),
        lambda: model.load_state_dict({k: 0.5 * v for k, v in model.state_dict().items()}),
    ]
    for count, change in enumerate(changes, start=1):
        for _ in range(2):
            close(correlation.commonness(scene), expected(), 1e-6)
        assert len(made) == count
        before = expected()
        change()
        assert (expected() - before).abs().max() > 1e-3 and len(made) == count
    close(correlation.commonness(scene), expected(), 1e-6)
    copied = copy.deepcopy(model)  # as for a mean of the weights
    copied.correlation.background.normal_()
    close(copied.correlation.commonness(scene), (scene @ copied.correlation._unit_vectors(
        copied.correlation.background).T).amax(-1), 1e-6)  # fmt: skip
    close(correlation.commonness(scene), expected(), 1e-6)


def _with_grad(parameter):
    parameter.requires_grad_(True)
    parameter.grad = torch.randn_like(parameter)
    return parameter


def test_the_background_tells_by_how_much_an_object_leads():
    model = live_model(correlation_strides=(16, 8), correlation_background=1500)
    correlation = model.correlation
    correlation.background.copy_(torch.randn(correlation.background.shape))
    query = random_query(model, objects=3, height=2, width=3)
    conditioning = model.condition(query.templates, query.diameters)
    for stride in (16, 8):
        scene, keys = correlation.describe(query.image, stride), correlation._unit_vectors(correlation.background)
        close(correlation.commonness(scene), torch.einsum("bhwc,kc->bhwk", scene, keys).amax(-1), 1e-6)
    extra = correlation(query.image, conditioning.correlation_keys, conditioning.valid)
    # by hand: the lead at both strides goes into the hidden units beside the other statistics
    seen = []
    hook = correlation.background_lead.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    correlation(query.image, conditioning.correlation_keys, conditioning.valid)
    hook.remove()
    coarse, fine = (
        correlation.similarity(scene, conditioning.correlation_keys, conditioning.valid)[0]
        - correlation.commonness(scene)[:, None]
        for scene in (correlation.describe(query.image, s) for s in (16, 8))
    )
    for y in range(2):
        for x in range(3):
            wanted = [coarse[:, :, y, x], *(fine[:, :, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1))]
            close(seen[0][:, :, 3 * y + x], torch.stack(wanted, -1), 1e-6)
    with torch.no_grad():
        correlation.background_lead.weight.zero_()
    silent = correlation(query.image, conditioning.correlation_keys, conditioning.valid)
    assert float((extra - silent).detach().abs().max()) > 1e-3
    plain = live_model(correlation_strides=(16, 8))
    plain.correlation.load_state_dict(correlation.state_dict(), strict=False)
    close(silent, plain.correlation(query.image, conditioning.correlation_keys, conditioning.valid), 1e-6)
    with pytest.raises(ValueError, match="correlation_background"):
        plain.correlation.commonness(torch.zeros(1, 2, 3, 8))


@pytest.mark.parametrize(
    "values, named",
    [
        ({"width": 30, "heads": 4}, "width 30"),
        ({"self_attention": "linear"}, "self_attention"),
        ({"template_size": 100}, "template_size 100"),
        ({"feature_strides": (8,)}, "feature_strides"),
        ({"feature_strides": ()}, "feature_strides"),
        ({"vae_channels": (1, 2)}, "vae_channels"),
        ({"train_objects": 99}, "train_objects 99"),
        ({"depth": 0}, "depth"),
        ({"correlation_strides": (0,)}, "correlation_strides"),
    ],
)
def test_impossible_configurations_are_refused_by_name(values, named):
    with pytest.raises(ValueError, match=named):
        ModelConfig.preset("tiny", **values)
    with pytest.raises(ValueError, match="no preset 'huge'; there are base, paper, small, tiny"):
        ModelConfig.preset("huge")


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_training_in_bfloat16_is_that_of_the_fused_kernel(masked):
    query, key, value = torch.randn(3, 2, 4, 20, 16).requires_grad_(True).unbind(0)
    mask = (torch.arange(20) < torch.tensor([20, 7])[:, None])[:, None, None] if masked else None
    found, gradients = {}, {}
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            x = attention(query, key, value, mask)
        found[precise] = x.float()
        gradients[precise] = torch.autograd.grad(x.float().square().sum(), [query, key, value])
    assert 0 < (found[True] - found[False]).abs().max() < 0.03  # another precision, the same attention
    for exact, rough in zip(gradients[True], gradients[False], strict=True):
        assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), 0) > 0.999


def context_of(model, query, boxes=None):
    conditioning = model.condition(query.templates, query.diameters, query.slots)
    return model.query_context(query.image, conditioning, boxes=boxes).embedding


def test_a_box_says_where_the_one_instance_is_and_starts_silent():
    query = random_query(new_model(box_prompt=True))
    batch, objects = query.diameters.shape
    boxes = torch.full((batch, objects, 4), torch.nan)
    boxes[0, 1] = torch.tensor([0.1, 0.2, 0.6, 0.7])
    silent = new_model(box_prompt=True)
    assert torch.equal(context_of(silent, query), context_of(silent, query, boxes))
    model = live_model(box_prompt=True)
    without, asked = context_of(model, query), context_of(model, query, boxes)
    changed = (without != asked).flatten(2).any(-1)
    assert changed[0].tolist() == [n == 1 for n in range(objects)] and not changed[1:].any()
    boxes[0, 1] = torch.tensor([0.4, 0.2, 0.9, 0.7])  # elsewhere
    assert not torch.equal(context_of(model, query, boxes), asked)
    boxes[:] = torch.nan
    assert torch.equal(context_of(model, query, boxes), without)
    with pytest.raises(ValueError, match="takes no boxes"):
        context_of(new_model(), random_query(new_model()), boxes)


def test_all_of_a_training_step_has_gradients_without_boxes():
    model = live_model(box_prompt=True).train()
    context_of(model, random_query(model)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.box_prompt.parameters())


def test_what_a_box_covers_is_measured_exactly():
    prompt = BoxPrompt(4)
    prompt.mlp = torch.nn.Identity()
    boxes = torch.tensor([[[0.25, 0.0, 0.75, 0.5], [torch.nan] * 4]])
    found = prompt(boxes, 4, 8).unflatten(2, (4, 8))
    assert found.shape == (1, 2, 4, 8, 8)
    covered = torch.zeros(4, 8)
    covered[:2, 2:6] = 1.0
    assert torch.equal(found[0, 0, ..., 0], covered)
    assert torch.allclose(found[0, 0, 0, 2:6, 2], torch.tensor([-0.75, -0.25, 0.25, 0.75]))  # across the box
    assert not found[0, 1].any()
