"""The model: parity with the released code, independence of padding, the fused coverage against a plain oracle."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from abm_hf import ABMConfig, ABMForConditionalGeneration
from abm_hf.hub.conversion import convert_state_dict, read_state_dict
from abm_hf.modeling_abm import ABMAttention
from abm_hf.recurrence_abm import Memory, Weights, run_recurrence

FIXTURE = Path(__file__).parent / "fixtures" / "abm_reference_small.safetensors"
PAD = 113


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    """Inputs, outputs and metadata that the released code gave."""
    with safe_open(FIXTURE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("state_dict.")}  # noqa: SIM118
        return {**tensors, **file.metadata()}


@pytest.fixture(scope="module")
def port() -> ABMForConditionalGeneration:
    """The released weights in our model."""
    config, weights = convert_state_dict(read_state_dict(FIXTURE))
    model = ABMForConditionalGeneration(config).eval()
    model.load_state_dict(weights, strict=True)
    return model


@pytest.fixture
def as_released(port: ABMForConditionalGeneration) -> Any:
    """The same model with values leaking into the padding, as they do in the released code."""
    port.encoder.mask_padding = False
    yield port
    port.encoder.mask_padding = True


def test_features_logits_and_attention_equal_the_released_codes(
    as_released: ABMForConditionalGeneration, released: dict[str, Any]
) -> None:
    with torch.no_grad():
        encoded = as_released.encoder(released["inputs.pixel_values"], released["inputs.pixel_mask"])
        features = encoded.last_hidden_state.transpose(1, 2).unflatten(2, (4, 8))
        torch.testing.assert_close(features, released["outputs.encoder_features"], atol=1e-4, rtol=0)
        steps = released["inputs.target_mask"].bool()
        for direction in ("l2r", "r2l"):
            output = as_released(
                encoder_outputs=encoded,
                decoder_input_ids=released[f"inputs.{direction}_input_ids"],
                decoder_direction=direction,
                output_attentions=True,
            )
            logits, attention = released[f"outputs.{direction}_logits"], released[f"outputs.{direction}_attention"]
            torch.testing.assert_close(output.logits[..., :113][steps], logits[steps], atol=1e-4, rtol=0)
            torch.testing.assert_close(output.cross_attentions[steps], attention[steps], atol=1e-4, rtol=0)
            assert output.logits[..., 113:].isneginf().all(), "padding and unknown can never be written"


def test_losses_equal_the_released_codes(as_released: ABMForConditionalGeneration, released: dict[str, Any]) -> None:
    labels = released["inputs.l2r_target_ids"].masked_fill(released["inputs.target_mask"] == 0, -100)
    as_released.config.distillation = "released"
    try:
        with torch.no_grad():
            output = as_released(released["inputs.pixel_values"], released["inputs.pixel_mask"], labels)
    finally:
        as_released.config.distillation = "aligned"
    components = output.loss_components
    torch.testing.assert_close(components["ce_l2r"], released["outputs.loss_ce_l2r"], atol=1e-4, rtol=0)
    torch.testing.assert_close(components["ce_r2l"], released["outputs.loss_ce_r2l"], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        components["distillation"], released["outputs.loss_kl_as_released"], atol=1e-4, rtol=1e-6
    )
    expected = components["ce_l2r"] + components["ce_r2l"] + 0.5 * components["distillation"]
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_best_beam_equals_the_released_search(
    port: ABMForConditionalGeneration, released: dict[str, Any], index: int, direction: str
) -> None:
    height, width = json.loads(released["sizes"])[index]
    image = released["inputs.pixel_values"][index : index + 1, :, :height, :width]
    found = port.generate(pixel_values=image, num_beams=10, max_length=41, decoder_direction=direction)
    best = json.loads(released[f"beam10.{direction}.{index}"])[0]["ids"]
    assert [token for token in found[0, 1:].tolist() if token != PAD] == best


def test_parameter_counts_are_the_papers() -> None:
    model = ABMForConditionalGeneration(ABMConfig(directions=("l2r",)))
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    branch = sum(parameter.numel() for parameter in model.branches["l2r"].parameters())
    assert encoder == 2_979_288
    # Two rows of embeddings more (padding, unknown), and one number less: a bias that a softmax does not see.
    assert branch == 2_724_850 + 2 * 256 - 1


def _unfused_energies(attention: ABMAttention, features: Tensor, state: Tensor, coverage: Tensor) -> Tensor:
    """REFERENCE: `vᵀ tanh(U_a f + W_a h + Σ U_s (Q_s ∗ A))`, term by term."""
    total = attention.key(features) + attention.query(state)[:, None]
    for conv, linear in zip(attention.coverage_convs, attention.coverage_maps, strict=True):
        total = total + linear(conv(coverage[:, None]).flatten(2).transpose(1, 2))
    return attention.energy(total.tanh()).squeeze(-1)


def test_fused_coverage_equals_the_plain_one_in_values_and_gradients(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    attention = ABMAttention(tiny_config)
    features = torch.randn(2, 12, tiny_config.feature_channels, requires_grad=True)
    state = torch.randn(2, tiny_config.hidden_size, requires_grad=True)
    coverage = torch.rand(2, 3, 4, requires_grad=True)
    direction = torch.randn(2, 12)

    def fused() -> Tensor:
        keys = attention.fused_keys(features)
        kernel = attention.fused_kernel()
        size = round(len(kernel) ** 0.5)
        patches = F.unfold(coverage[:, None], size, padding=size // 2).transpose(1, 2)
        return attention.energy((keys + attention.query(state)[:, None] + patches @ kernel).tanh()).squeeze(-1)

    leaves = [features, state, coverage, *attention.parameters()]
    plain = _unfused_energies(attention, features, state, coverage)
    torch.testing.assert_close(fused(), plain, atol=1e-5, rtol=0)
    expected = torch.autograd.grad((plain * direction).sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad((fused() * direction).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _plain_recurrence(projected: Tensor, hidden: Tensor, memory: Memory, weights: Weights) -> tuple[Tensor, Tensor]:
    """The recurrence written down step by step for autograd."""
    sequences, (height, width) = len(hidden), memory.mask.shape[1:]
    copies = sequences // len(memory.keys)
    keys, values = memory.keys.repeat_interleave(copies, 0), memory.values.repeat_interleave(copies, 0)
    mask = memory.mask.repeat_interleave(copies, 0).flatten(1)
    coverage = torch.zeros(sequences, height, width, dtype=hidden.dtype)
    size = round(len(weights.kernel) ** 0.5)
    hiddens, contexts = [], []
    for step in projected.unbind(1):
        between = _plain_gru(step, hidden @ weights.token.T, hidden)
        patches = F.unfold(coverage[:, None], size, padding=size // 2).transpose(1, 2)
        energies = (keys + patches @ weights.kernel + (between @ weights.query.T)[:, None]).tanh() @ weights.energy
        attention = energies.masked_fill(~mask, float("-inf")).softmax(-1)
        context = (attention[:, None] @ values).squeeze(1)
        recurrent = between @ weights.context_recurrent.T + weights.context_bias
        hidden = _plain_gru(context @ weights.context_input.T, recurrent, between)
        coverage = coverage + attention.view_as(coverage)
        hiddens.append(hidden)
        contexts.append(context)
    return torch.stack(hiddens), torch.stack(contexts)


def _plain_gru(projected: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    reset, update, candidate = projected.chunk(3, -1)
    recurrent_reset, recurrent_update, recurrent_candidate = recurrent.chunk(3, -1)
    update = (update + recurrent_update).sigmoid()
    candidate = (candidate + (reset + recurrent_reset).sigmoid() * recurrent_candidate).tanh()
    return (1 - update) * candidate + update * hidden


@pytest.mark.parametrize("beams", [1, 3])
def test_recurrence_and_its_gradient_equal_a_plain_one(beams: int) -> None:
    torch.manual_seed(0)
    images, steps, hidden, channels, attention, height, width, size = 2, 4, 3, 5, 6, 2, 3, 3

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.double).mul(0.7).requires_grad_()

    mask = torch.ones(images, height, width, dtype=torch.bool)
    mask[1, :, 2] = False
    projected, start = leaf(images * beams, steps, 3 * hidden), leaf(images * beams, hidden)
    memory = Memory(leaf(images, height * width, channels), leaf(images, height * width, attention), mask)
    weights = Weights(
        leaf(3 * hidden, hidden),
        leaf(attention, hidden),
        leaf(size**2, attention),
        leaf(attention),
        leaf(3 * hidden, channels),
        leaf(3 * hidden, hidden),
        leaf(3 * hidden),
    )
    coverage = torch.zeros(images * beams, height, width, dtype=torch.double)
    ours = run_recurrence(projected, start, coverage, memory, weights)[:2]
    plain = _plain_recurrence(projected, start, memory, weights)
    leaves = [projected, start, memory.values, memory.keys, *weights]
    weighting = [torch.randn_like(output) for output in plain]
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)
    expected = torch.autograd.grad(plain, leaves, weighting)
    found = torch.autograd.grad(ours, leaves, weighting, retain_graph=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(ours, leaves, weighting)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_fused_recurrence_is_that_of_the_layers(tiny_config: ABMConfig, copies: int, gradients: bool) -> None:
    """And it makes no difference whether a sequence is read at once or in pieces."""
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    images = _padded([torch.rand(40, 90), torch.rand(64, 30), torch.rand(50, 50)], (0, 20))
    tokens = torch.randint(2, 112, (3 * copies, 5))
    options = {"use_cache": True, "output_attentions": True}
    with torch.set_grad_enabled(gradients):
        encoded = model.encoder(*images)
        whole = model(encoder_outputs=encoded, decoder_input_ids=tokens, **options)
        first = model(encoder_outputs=encoded, decoder_input_ids=tokens[:, :2], **options)
        state = first.past_key_values
        rest = model(encoder_outputs=encoded, decoder_input_ids=tokens[:, 2:], past_key_values=state, **options)
        calls = []
        model.branches["l2r"].attention.query.register_forward_hook(lambda *_: calls.append(1))
        layers = model(encoder_outputs=encoded, decoder_input_ids=tokens, **options)
    assert len(calls) == 5, "a hook is called at each step"
    assert state.get_seq_length() == 5
    for name in ("logits", "cross_attentions"):
        pieces = torch.cat([first[name], rest[name]], dim=1)
        torch.testing.assert_close(pieces, whole[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layers[name], whole[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.coverage, layers.past_key_values.coverage, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [[(40, 90), (64, 30), (300, 50)], [(64, 64), (300, 50), (20, 200)]])
def test_pictures_of_unlike_sizes_are_encoded_under_autocast(
    tiny_config: ABMConfig, sizes: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    values, mask = _padded([torch.rand(size) for size in sizes], (0, 0))
    with torch.no_grad():
        exact = model.encoder(values, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.encoder(values, mask)
    assert torch.equal(rough.encoder_mask, exact.encoder_mask)
    scale = exact.last_hidden_state.abs().max().item()
    torch.testing.assert_close(rough.last_hidden_state.float(), exact.last_hidden_state, atol=0.05 * scale, rtol=0)


def _padded(images: list[Tensor], extra: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height = max(image.shape[0] for image in images) + extra[0]
    width = max(image.shape[1] for image in images) + extra[1]
    values, mask = torch.zeros(len(images), 1, height, width), torch.zeros(len(images), height, width)
    for index, image in enumerate(images):
        values[index, 0, : image.shape[0], : image.shape[1]] = image
        mask[index, : image.shape[0], : image.shape[1]] = 1
    return values, mask


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(16, 70), st.integers(16, 90)), min_size=2, max_size=3),
    extra=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_features_do_not_depend_on_the_padding(
    tiny_config: ABMConfig, sizes: list[tuple[int, int]], extra: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    for module in model.modules():  # statistics of a trained model: their shift is what leaks into the padding
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.normal_(module.bias)
    images = [torch.rand(size) for size in sizes]
    with torch.no_grad():
        batch = model.encoder(*_padded(images, extra))
        for index, image in enumerate(images):
            alone = model.encoder(image[None, None])
            rows, columns = alone.encoder_mask.shape[1:]
            assert batch.encoder_mask[index].sum() == rows * columns
            there = batch.last_hidden_state[index].unflatten(0, batch.encoder_mask.shape[1:])[:rows, :columns]
            torch.testing.assert_close(there.flatten(0, 1), alone.last_hidden_state[0], atol=1e-4, rtol=1e-4)


def test_alignment_of_both_directions(tiny_config: ABMConfig) -> None:
    """Position j of `r2l_logits` is what the branch said of token j, read from the other side."""
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    image = torch.rand(1, 1, 32, 48)
    labels = torch.tensor([[5, 6, 7, 1, -100]])
    with torch.no_grad():
        output = model(image, labels=labels)
        left = model(image, decoder_input_ids=torch.tensor([[0, 5, 6, 7]])).logits
        right = model(image, decoder_input_ids=torch.tensor([[1, 7, 6, 5]]), decoder_direction="r2l").logits
    torch.testing.assert_close(output.logits[:, :4], left)
    torch.testing.assert_close(output.r2l_logits[:, [2, 1, 0, 3]], right)


def test_training_in_half_precision_stays_finite(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config)
    with torch.no_grad():  # energies far beyond what a bare exp survives
        model.branches["l2r"].attention.energy.weight.mul_(1e3)
    labels = _labels()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            output = model(torch.rand(2, 1, 48, 64), labels=labels)
        output.loss.backward()
        assert output.loss.isfinite() and output.loss.dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
        model.zero_grad()


def _labels() -> Tensor:
    return F.pad(torch.randint(2, 112, (2, 6)), (0, 1), value=1)


def test_a_model_in_bfloat16_trains_and_scores(tiny_config: ABMConfig) -> None:
    """Weights and all, without autocast: as `from_pretrained(dtype=torch.bfloat16)` gives it."""
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config)
    half = copy.deepcopy(model).to(torch.bfloat16)
    image, labels = torch.rand(2, 1, 48, 64), _labels()
    loss = half(image.bfloat16(), labels=labels).loss
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in half.parameters())
    torch.testing.assert_close(loss.float(), model(image, labels=labels).loss, rtol=0.02, atol=0)
    assert half.eval()(image.bfloat16(), decoder_input_ids=labels).logits.dtype == torch.bfloat16


def test_evaluation_between_forward_and_backward_pass_changes_no_gradient(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(ABMConfig(**{**tiny_config.to_diff_dict(), "encoder_dropout": 0.3}))
    image, labels = torch.rand(2, 1, 48, 64), _labels()
    found = []
    for to_evaluation in (False, True):
        torch.manual_seed(1)
        model.train().zero_grad()
        loss = model(image, labels=labels).loss
        model.train(not to_evaluation)
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_any_number_but_zero_marks_the_picture(tiny_config: ABMConfig, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    image, mask = torch.rand(2, 1, 48, 64), torch.ones(2, 48, 64, dtype=torch.bool)
    mask[1, :, 40:] = False
    expected = model.encoder(image, mask).last_hidden_state
    assert torch.equal(model.encoder(image, 255 * mask.to(dtype)).last_hidden_state, expected)


def test_labels_and_sequences_that_do_not_fit_are_told(tiny_config: ABMConfig) -> None:
    model = ABMForConditionalGeneration(tiny_config)
    image = torch.rand(2, 1, 48, 64)
    for labels in ([[5, 1], [-100, -100]], [[5, 1], [5, 6]], [[5, 1], [1, 5]]):
        with pytest.raises(ValueError, match="end with the end token"):
            model(image, labels=torch.tensor(labels))
    for unknown in (113, 114):  # padding and unknown
        with pytest.raises(ValueError, match=rf"labels hold the ids \[{unknown}\], but only those below 113"):
            model(image, labels=torch.tensor([[5, unknown, 1], [5, 1, -100]]))
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} sequences cannot share 2 images"):
            model(image, decoder_input_ids=torch.zeros(count, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="takes no pixelvalues"):
        model(pixelvalues=image)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["embedding"], ["query", "recurrent"], ["key", "energy", "output_context"], ["conv1", "conv2"]],
)
def test_adapters_count_merged_or_not(tiny_config: ABMConfig, targets: str | list[str]) -> None:
    """LoRA, also around layers whose weights are composed instead of called."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = peft.LoraConfig(target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(ABMForConditionalGeneration(tiny_config), options)
    inputs = {"pixel_values": torch.rand(2, 1, 48, 64)}
    model(**inputs, labels=_labels()).loss.backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(grad is not None and grad.abs().sum() > 0 for grad in trained.values())
    inputs["decoder_input_ids"] = torch.tensor([[0, 5, 6], [0, 7, 8]])
    with torch.no_grad():
        adapted = model.eval()(**inputs).logits[..., :112]
        with model.disable_adapter():
            assert (model(**inputs).logits[..., :112] - adapted).abs().max() > 1e-4
        merged = model.merge_and_unload()(**inputs).logits[..., :112]
    torch.testing.assert_close(merged, adapted)


def test_peft_trains_it_as_a_sequence_to_sequence_model(tiny_config: ABMConfig) -> None:
    """Its wrapper of that task passes the inputs of text models, as `None`."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["query", "classifier"])
    model = peft.get_peft_model(ABMForConditionalGeneration(tiny_config), options)
    inputs = {"pixel_values": torch.rand(2, 1, 48, 64)}
    model(**inputs, labels=_labels()).loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert model.eval().generate(**inputs, max_length=5).shape[0] == 2


@pytest.mark.parametrize("gradients", [False, True])
def test_a_call_becomes_a_graph(tiny_config: ABMConfig, gradients: bool) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    inputs = {"pixel_values": torch.rand(2, 1, 48, 64), "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]])}
    with torch.set_grad_enabled(gradients):
        graph = torch.export.export(model, (), inputs, strict=False).module()
        torch.testing.assert_close(graph(**inputs).logits, model(**inputs).logits)


def test_any_layer_may_stand_for_another(tiny_config: ABMConfig) -> None:
    """What it does counts, not its weight."""
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    inputs = {"pixel_values": torch.rand(2, 1, 48, 64), "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]])}
    with torch.no_grad():
        expected = model(**inputs).logits[..., :112]
        attention = model.branches["l2r"].attention
        attention.query = torch.nn.Sequential(attention.query)
        torch.testing.assert_close(model(**inputs).logits[..., :112], expected, atol=1e-5, rtol=1e-5)
        attention.query.append(torch.nn.Dropout(1.0).train())
        assert (model(**inputs).logits[..., :112] - expected).abs().max() > 1e-4


def test_dynamic_quantization_works(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config).eval()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
    inputs = {"pixel_values": torch.rand(2, 1, 48, 64), "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]])}
    with torch.no_grad():
        difference = (quantized(**inputs).logits - model(**inputs).logits)[..., :112].abs().max()
    assert 0 < difference < 0.5


def test_gradients_of_two_batches_add_up(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(
        ABMConfig(**{**tiny_config.to_diff_dict(), "encoder_dropout": 0.0, "dropout": 0.0})
    )
    assert len(model.config.coverage_kernels) > 1
    image, labels = torch.rand(2, 1, 48, 64), _labels()
    model(image, labels=labels).loss.backward()
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model(image, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], msg=name)
    places = [parameter.grad.data_ptr() for parameter in model.parameters() if parameter.grad is not None]
    assert len(set(places)) == len(places), "gradients share memory"


def test_every_parameter_learns(tiny_config: ABMConfig) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config)
    model(torch.rand(2, 1, 48, 64), labels=_labels()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_one_branch_alone(tiny_config: ABMConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    both = ABMForConditionalGeneration(tiny_config).eval()
    both.save_pretrained(tmp_path)
    alone = ABMForConditionalGeneration.from_pretrained(tmp_path, directions=("l2r",))
    image = torch.rand(1, 1, 48, 64)
    assert set(alone.branches) == {"l2r"}
    assert torch.equal(
        alone.generate(pixel_values=image, max_length=8), both.generate(pixel_values=image, max_length=8)
    )
    assert set(alone(image, labels=torch.tensor([[5, 1]])).loss_components) == {"ce_l2r"}
    with pytest.raises(ValueError, match="no branch 'r2l'"):
        alone.generate(pixel_values=image, decoder_direction="r2l")


def test_loading_leaves_nothing_uninitialised(tiny_config: ABMConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ABMForConditionalGeneration(tiny_config)
    model.save_pretrained(tmp_path)
    loaded = ABMForConditionalGeneration.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.generation_config.max_length == 200


def test_a_call_without_anything_to_do_says_so(tiny_config: ABMConfig) -> None:
    model = ABMForConditionalGeneration(tiny_config)
    with pytest.raises(ValueError, match="pixel_values"):
        model(labels=torch.tensor([[1]]))
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(torch.rand(1, 1, 32, 32))


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(tiny_config: ABMConfig) -> None:
    pixels, mask = torch.rand(3, 1, 40, 70), torch.ones(3, 40, 70)
    mask[1, :, 50:] = 0
    labels = torch.tensor([[4, 5, 1], [6, 1, -100], [7, 8, 1]])
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        # Channels last, as in training: dropout is drawn in the order of the memory.
        model = ABMForConditionalGeneration(tiny_config).train().to(memory_format=torch.channels_last)
        calls = []
        model.encoder.transitions[0].conv.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointed:
            model.activation_checkpointing_enable()
        loss = model(pixels, mask, labels=labels).loss
        loss.backward()
        assert len(calls) == 1 + checkpointed  # computed again in the backward pass, or not
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((loss, gradients, dict(model.named_buffers())))
    (loss, gradients, buffers), (again, others, counted) = results
    torch.testing.assert_close(loss, again)  # whole blocks are computed in another order, so up to rounding
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5), name
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, counted[name], msg=name)
