"""heads.py against formulas in float64; every head with any size of input; what counts and files give them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import heads
from export import engines, model_files
from heads import HEADS
from utils import InputError

Array = NDArray[np.float64]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in HEADS},
    "kernel of 7 landmarks": ("kernel", {"num_landmarks": 7, "num_axes": 3}),
    "ml_decoder of 2 groups": ("ml_decoder", {"num_groups": 2}),
    "cosine ml_decoder": ("ml_decoder", {"cosine_scale": 9.0}),
    "cosine gcn": ("gcn", {"cosine_scale": 9.0}),
    "re-weighting gcn": ("gcn", {"reweights_channels": True}),
    "cosine re-weighting gcn": ("gcn", {"reweights_channels": True, "cosine_scale": 9.0}),
}
WITH_BIAS = {
    "linear",
    "linear_bn",
    "per_label_mlp",
    "kernel",
    "kernel of 7 landmarks",
    "ml_decoder",
    "ml_decoder of 2 groups",
    "re-weighting gcn",
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Heads and inputs in float64: their rounding is far below every tolerance here, whatever processor computes."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_head(variant: str, num_features: int = 12, num_classes: int = 5) -> nn.Module:
    name, options = VARIANTS[variant]
    torch.manual_seed(0)
    return HEADS[name](num_features, num_classes, **options).eval()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def compute(head: nn.Module, features: Tensor) -> Array:
    with torch.no_grad():
        return head(features).double().numpy()


def get(head: nn.Module) -> Callable[[str], Array]:
    """The head's parameters and buffers by name, in float64."""
    state = {key: value.double().numpy() for key, value in head.state_dict().items()}
    return lambda key: state[key]


def unit(rows: Array) -> Array:
    return rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))


# ---- every head ----


@each_variant
def test_a_map_and_its_tokens_give_the_same_logits(variant: str) -> None:
    head, features = make_head(variant), draw(3, 12, 2, 4)
    logits = compute(head, features)
    assert logits.shape == (3, 5)
    assert len(np.unique(logits)) == 15, "every image and class has logits of its own"
    np.testing.assert_allclose(compute(head, features.flatten(2).transpose(1, 2)), logits, atol=1e-9)


@each_variant
@pytest.mark.parametrize(("num_classes", "shape"), [(1, (1, 12, 1, 1)), (1, (2, 12, 3, 5)), (7, (1, 12, 5, 3))])
def test_any_size_and_number_of_classes(variant: str, num_classes: int, shape: tuple[int, ...]) -> None:
    head, features = make_head(variant, num_classes=num_classes), draw(*shape)
    logits = compute(head, features)
    assert logits.shape == (shape[0], num_classes)
    assert np.isfinite(logits).all()
    for i in range(shape[0]):  # images do not see each other
        np.testing.assert_allclose(compute(head, features[i : i + 1]), logits[i : i + 1], atol=1e-9)


@each_variant
def test_pools_says_whether_the_mean_over_positions_is_all_that_counts(variant: str) -> None:
    head, features = make_head(variant), draw(3, 12, 2, 4)
    same = np.allclose(compute(head, heads.pool(features)[:, :, None, None]), compute(head, features), atol=1e-9)
    assert head.pools is same
    name, options = VARIANTS[variant]
    assert heads.needs_map(name, **options) is not same


@each_variant
@pytest.mark.parametrize("num_classes", [1, 5])
def test_all_that_trains_has_a_finite_gradient(variant: str, num_classes: int) -> None:
    head = make_head(variant, num_classes=num_classes).train()
    head(draw(4, 12, 2, 2).requires_grad_()).square().sum().backward()
    trained = {key: p for key, p in head.named_parameters() if p.requires_grad}
    assert not [key for key, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert {key for key, _ in head.named_parameters()} - set(trained) == ({"queries"} & set(head.state_dict()))


@each_variant
def test_a_state_dict_brings_the_logits_back_bit_for_bit(variant: str) -> None:
    head, features = make_head(variant), draw(3, 12, 2, 4)
    if isinstance(head, heads.GCN):
        head.set_graph(heads.count_adjacency(np.eye(5)[[0, 1, 2, 0, 4]] + np.eye(5)[[1, 1, 3, 1, 2]] > 0), draw(5, 300))
    name, options = VARIANTS[variant]
    torch.manual_seed(9)
    other = HEADS[name](12, 5, **options).eval()
    assert not np.array_equal(compute(other, features), compute(head, features))
    other.load_state_dict(copy.deepcopy(head.state_dict()))
    assert np.array_equal(compute(other, features), compute(head, features))


def test_the_heads_with_cosines_are_named_with_their_option() -> None:
    features = draw(8, 12, 2, 3)
    for name, option in heads.SCALE_OPTIONS.items():
        torch.manual_seed(0)
        small = HEADS[name](12, 5, **{option: 2.0}).eval()
        large = HEADS[name](12, 5, **{option: 6.0}).eval()
        large.load_state_dict(small.state_dict())
        assert (np.abs(compute(small, features)) <= 2).all()
        np.testing.assert_allclose(compute(large, features), 3 * compute(small, features), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["ml_decoder of 2 groups", "cosine re-weighting gcn", "per_label_mlp"])
def test_exported_heads_give_the_same_logits_for_any_number_of_images(variant: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-export.txt")
    import onnxruntime

    head, features = make_head(variant), draw(3, 12, 2, 4).float()
    exact = copy.deepcopy(head)
    model = model_files.make_onnx(head.float(), features[:2]).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    core = engines.get_openvino()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for images in (features.numpy(), features[:1].numpy()):
        expected = compute(exact, torch.from_numpy(images).double())
        tolerance = 1e-4 * expected.std()  # of float32 1e-6 of it at most; a fault moves logits by about all of it
        for found in (session.run(None, {"images": images})[0], compiled(images)[0]):
            np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


# ---- heads on the mean ----


def test_linear_heads_are_their_formulas() -> None:
    features = draw(6, 12, 2, 3)
    means = features.double().numpy().mean(axis=(2, 3))
    head = make_head("linear")
    p = get(head)
    np.testing.assert_allclose(compute(head, features), means @ p("weight").T + p("bias"), atol=1e-9)
    head = make_head("linear_bn").train()
    p = get(head)
    x = means @ p("linear.weight").T + p("linear.bias")
    expected = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    np.testing.assert_allclose(compute(head, features), expected, atol=1e-9)


def test_cosine_is_scale_times_cosine() -> None:
    features, head = draw(6, 12, 2, 3), HEADS["cosine"](12, 5)
    means = features.double().numpy().mean(axis=(2, 3))
    expected = 23 * unit(means) @ unit(get(head)("weight")).T
    np.testing.assert_allclose(compute(head, features), expected, atol=1e-9)
    along = torch.tensor(get(head)("weight"))[:, :, None, None] * 7
    np.testing.assert_allclose(np.diag(compute(head, along)), 23.0, rtol=1e-9)
    np.testing.assert_allclose(np.diag(compute(head, -along)), -23.0, rtol=1e-9)


def test_per_label_mlp_is_a_network_for_each_class() -> None:
    features, head = draw(6, 12, 2, 3), HEADS["per_label_mlp"](12, 5, hidden=7, dropout=0.25).eval()
    state = head.state_dict()
    networks = [nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Dropout(0.25), nn.Linear(7, 1)) for _ in range(5)]
    for c, network in enumerate(networks):
        rows = slice(7 * c, 7 * (c + 1))
        own = {"0.weight": state["hidden.weight"][rows], "0.bias": state["hidden.bias"][rows]}
        own |= {"3.weight": state["output.weight"][c : c + 1], "3.bias": state["output.bias"][c : c + 1]}
        network.eval().load_state_dict(own)
    with torch.no_grad():
        expected = torch.cat([network(features.mean(dim=(2, 3))) for network in networks], dim=1)
    np.testing.assert_allclose(compute(head, features), expected.numpy(), atol=1e-9)


def test_per_label_mlp_starts_in_the_ranges_of_its_linears() -> None:
    """nn.Linear draws weights and bias from +-1/sqrt(inputs): 100 here, then 400."""
    p = get(HEADS["per_label_mlp"](100, 30, hidden=400))
    for key, bound in (("hidden.weight", 0.1), ("hidden.bias", 0.1), ("output.weight", 0.05), ("output.bias", 0.05)):
        assert 0.85 * bound < np.abs(p(key)).max() <= bound, key
    assert HEADS["per_label_mlp"](2, 3).get_submodule("dropout").p == 0.5


# ---- ml_decoder ----


def normalize_layer(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias


def decode(p: Callable[[str], Array], tokens: Array, num_classes: int, scale: float | None) -> tuple[Array, Array]:
    """ML-Decoder without dropout, by image, attention head and class: logits (B, C), attention (B, G, T)."""
    logits, attention = [], []
    for image in tokens:
        memory = np.maximum(image @ p("embed.weight").T + p("embed.bias"), 0)
        q = normalize_layer(2 * p("queries"), p("norm1.weight"), p("norm1.bias"))
        projections = zip((q, memory, memory), np.split(p("attention.in_proj_weight"), 3), strict=True)
        biases = np.split(p("attention.in_proj_bias"), 3)
        Q, K, V = (x @ weight.T + bias for (x, weight), bias in zip(projections, biases, strict=True))
        seen, looks = [], []
        for part in np.split(np.arange(768), 8):
            energy = np.exp(Q[:, part] @ K[:, part].T / np.sqrt(96))
            looks.append(energy / energy.sum(axis=1, keepdims=True))
            seen.append(looks[-1] @ V[:, part])
        out = np.concatenate(seen, axis=1) @ p("attention.out_proj.weight").T + p("attention.out_proj.bias")
        x = normalize_layer(q + out, p("norm2.weight"), p("norm2.bias"))
        hidden = np.maximum(x @ p("feed_forward.0.weight").T + p("feed_forward.0.bias"), 0)
        x = x + hidden @ p("feed_forward.3.weight").T + p("feed_forward.3.bias")
        x = normalize_layer(x, p("norm3.weight"), p("norm3.bias"))
        size = int(np.ceil(num_classes / len(q)))
        group, place = np.divmod(np.arange(num_classes), size)
        weight = p("weight")[group, place]
        if scale is None:
            logits.append((x[group] * weight).sum(axis=1) + p("bias"))
        else:
            logits.append(scale * (unit(x[group]) * unit(weight)).sum(axis=1))
        attention.append(np.mean(looks, axis=0))
    return np.array(logits), np.array(attention)


@pytest.mark.parametrize("scale", [None, 17.0])
@pytest.mark.parametrize(("num_classes", "num_groups"), [(5, 3), (80, 80), (7, 5), (1, 100)])
def test_ml_decoder_is_its_formula(num_classes: int, num_groups: int, scale: float | None) -> None:
    torch.manual_seed(0)
    head = HEADS["ml_decoder"](12, num_classes, num_groups=num_groups, cosine_scale=scale).eval()
    for key, parameter in head.named_parameters():  # biases and norms start at 0 and 1, where mistakes do not show
        if "bias" in key or "norm" in key:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    features = draw(2, 12, 2, 3)
    logits, attention = decode(get(head), features.flatten(2).transpose(1, 2).double().numpy(), num_classes, scale)
    np.testing.assert_allclose(compute(head, features), logits, rtol=1e-9, atol=1e-9)
    assert isinstance(head, heads.MLDecoder)
    with torch.no_grad():
        attended = head.attend(features)
    np.testing.assert_allclose(attended[0].numpy(), logits, rtol=1e-9, atol=1e-9)
    assert attended[1] is not None
    np.testing.assert_allclose(attended[1].numpy(), attention, atol=1e-9)


def test_ml_decoder_has_the_published_number_of_parameters() -> None:
    head = HEADS["ml_decoder"](2048, 80)
    assert sum(parameter.numel() for parameter in head.parameters()) == 7_212_112
    assert not head.get_parameter("queries").requires_grad
    assert head.get_parameter("queries").shape == (80, 768)


# 7, 5: a group whose logits are all cropped; 1001, 1000: int(C / G + .999) would come up short
@pytest.mark.parametrize(("num_classes", "num_groups"), [(7, 5), (101, 100), (1001, 1000), (3, 1)])
def test_ml_decoder_has_a_logit_for_every_class(num_classes: int, num_groups: int) -> None:
    head = HEADS["ml_decoder"](4, num_classes, num_groups=num_groups).eval()
    assert len(np.unique(compute(head, draw(1, 4, 2, 2)))) == num_classes


def test_ml_decoder_drops_out_in_training_only() -> None:
    head, features = make_head("ml_decoder"), draw(2, 12, 1, 1)[[0, 0]]
    first, second = compute(head, features)
    np.testing.assert_allclose(first, second, atol=1e-9)
    head.train()
    assert np.abs(np.diff(compute(head, features), axis=0)).min() > 1e-3, "each image drops on its own"


def test_ml_decoder_without_groups_is_refused() -> None:
    with pytest.raises(InputError, match="at least one group"):
        HEADS["ml_decoder"](4, 5, num_groups=0)


# ---- gcn ----


@pytest.mark.parametrize("scale", [None, 9.0])
@pytest.mark.parametrize("reweights", [False, True])
def test_gcn_is_its_formula(reweights: bool, scale: float | None) -> None:
    torch.manual_seed(0)
    options = {"embedding_size": 8, "reweights_channels": reweights, "cosine_scale": scale}
    head, features = HEADS["gcn"](12, 5, **options).eval(), draw(3, 12, 2, 4)
    assert isinstance(head, heads.GCN)
    head.set_graph(draw(5, 5).abs(), draw(5, 8) * 5)
    p, x = get(head), features.double().numpy()
    hidden = p("adjacency") @ p("embeddings") @ p("layer1.weight").T
    weight = p("adjacency") @ np.where(hidden > 0, hidden, 0.2 * hidden) @ p("layer2.weight").T
    pooled = x.max(axis=(2, 3))
    bias: Array | float = 0.0
    if reweights:
        pooled = x.mean(axis=(2, 3)) / (1 + np.exp(-weight.max(axis=0)))
        weight = p("classifier.weight")
        bias = p("classifier.bias") if scale is None else 0.0
    expected = scale * unit(pooled) @ unit(weight).T if scale else pooled @ weight.T + bias
    np.testing.assert_allclose(compute(head, features), expected, rtol=1e-9, atol=1e-9)


def test_gcn_starts_with_classes_linked_to_themselves_and_keeps_what_is_not_given() -> None:
    head = make_head("gcn")
    assert isinstance(head, heads.GCN)
    assert torch.equal(head.adjacency, torch.eye(5))
    assert head.embeddings.shape == (5, 300)
    before = head.embeddings.clone()
    head.set_graph(adjacency=torch.full((5, 5), 0.5))
    assert (head.adjacency == 0.5).all()
    assert torch.equal(head.embeddings, before)
    with pytest.raises(InputError, match=r"gcn head's embeddings must be \(5, 300\), not \(5, 50\)"):
        head.set_graph(embeddings=torch.zeros(5, 50))


def test_adjacency_is_counted_as_by_hand() -> None:
    """Class 0 implies 1; 1 and 2 imply none; 3 is never present and 4 never known."""
    targets = np.array([[1, 1, 0, 0, -1], [1, 1, 0, 0, -1], [1, 0, -1, 0, -1], [0, 1, 1, 0, -1], [0, 1, 0, 0, -1]])
    targets = np.concatenate([targets, [[0, -1, 1, 0, -1]], [[0, 0, 1, 0, -1]]])
    # P(1|0) = 2/3, P(0|1) = 2/4; P(2|1) = 1/4, P(1|2) = 1/2 of the two images of 2 where 1 is known
    adjacency = heads.count_adjacency(targets, threshold=0.5, share=0.25).numpy()
    A = np.eye(5)
    A[0, 1] = A[2, 1] = 0.25 / (2 + 1e-6)
    A[1, 0] = 0.25 / (1 + 1e-6)
    D = np.diag(A.sum(axis=1) ** -0.5)
    np.testing.assert_allclose(adjacency, (A @ D).T @ D, rtol=1e-6)
    assert adjacency[3].tolist() == [0, 0, 0, 1, 0]
    assert adjacency[4].tolist() == [0, 0, 0, 0, 1]
    with_nan = np.where(targets < 0, np.nan, targets)
    np.testing.assert_array_equal(heads.count_adjacency(with_nan, threshold=0.5).numpy(), adjacency)
    default = heads.count_adjacency(np.array([[1, 1]] * 2 + [[1, 0]] * 3)).numpy()  # P(1|0) = .4 is enough
    assert (default > 0).all()


def test_embeddings_are_read_from_a_matrix(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(3, 4))
    np.save(tmp_path / "own.npy", matrix)
    embeddings = heads.read_embeddings(tmp_path / "own.npy", ("a", "b", "c"))
    assert embeddings.dtype == torch.float32
    np.testing.assert_allclose(embeddings.numpy(), matrix, rtol=1e-6)
    with pytest.raises(InputError, match=r"own\.npy: a row for each of 2 classes is needed, its shape is \(3, 4\)"):
        heads.read_embeddings(tmp_path / "own.npy", ("a", "b"))
    np.save(tmp_path / "bad.npy", [[1.0], [np.nan]])
    with pytest.raises(InputError, match="not all values are finite"):
        heads.read_embeddings(tmp_path / "bad.npy", ("a", "b"))
    (tmp_path / "empty.npy").write_bytes(b"")
    with (tmp_path / "huge.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (2, 10**12)}
        np.lib.format.write_array_header_1_0(file, header)
    for name in ("empty.npy", "huge.npy", "absent.npy", "absent.txt"):
        with pytest.raises(InputError, match=f"cannot use embeddings .*{name}"):
            heads.read_embeddings(tmp_path / name, ("a", "b"))


def test_embeddings_of_several_words_are_their_mean(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("dog 1 2 3\nhot -1 0.5 1e1\nhot spot 7 7 7\ncafé 4 5 6\nthe 0 x 0\na 1 2\n", encoding="utf-8")
    embeddings = heads.read_embeddings(path, ("Hot dog", "dog", "Café", "hot_dog"))
    assert embeddings.tolist() == [[0, 1.25, 6.5], [1, 2, 3], [4, 5, 6], [0, 1.25, 6.5]]
    with pytest.raises(InputError, match=r"glove\.txt: it lacks words of 2 of 3 classes: hair drier, spot;"):
        heads.read_embeddings(path, ("hair drier", "dog", "spot"))
    with pytest.raises(InputError, match=r"glove\.txt: line 5: .*'x'"):
        heads.read_embeddings(path, ("the dog",))
    with pytest.raises(InputError, match=r"glove\.txt: line 6: "):
        heads.read_embeddings(path, ("a dog",))


def test_the_first_line_of_word2vecs_files_is_no_vector(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text("2 3\ndog 1 2 3\ncat 4 5 6\n", encoding="utf-8")
    assert heads.read_embeddings(path, ("cat", "dog")).tolist() == [[4, 5, 6], [1, 2, 3]]
    path.write_text("2 3\n7 4\n", encoding="utf-8")  # vectors of one number, without such a line
    assert heads.read_embeddings(path, ("7",)).tolist() == [[4]]


# ---- prior ----


def test_frequencies_are_counted_over_known_entries() -> None:
    """A class without any known label gets the mean of the others."""
    targets = np.array([[1, 0, 1, -1, -1], [0, 0, 1, 1, -1], [0, 0, 1, -1, -1], [-1, 0, 1, -1, -1]])
    counted = [1 / 3, 0.5 / 4, 3.5 / 4, 0.5]
    expected = [*counted, sum(counted) / 4]
    np.testing.assert_allclose(heads.count_frequencies(targets).numpy(), expected, rtol=1e-6)
    with_nan = np.where(targets < 0, np.nan, targets)
    np.testing.assert_allclose(heads.count_frequencies(with_nan).numpy(), expected, rtol=1e-6)
    assert heads.count_frequencies([[-1, -1]]).tolist() == [0.5, 0.5]


@each_variant
def test_the_prior_is_what_a_head_without_weights_predicts(variant: str) -> None:
    head, frequencies = make_head(variant), torch.tensor([0.5, 0.01, 0.99, 1e-4, 0.3])
    if variant not in WITH_BIAS:
        with pytest.raises(InputError, match=f"a {type(head).__name__} head with these options has no final bias"):
            heads.set_prior(head, frequencies)
        return
    heads.set_prior(head, frequencies)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter is not head.bias:
                parameter.zero_()
        probabilities = head(draw(3, 12, 2, 4)).sigmoid()
    np.testing.assert_allclose(probabilities.numpy(), frequencies.expand(3, 5), rtol=1e-5)
    for wrong in (torch.tensor([0.5, 1.0, 0.2, 0.2, 0.2]), torch.tensor([0.5])):
        with pytest.raises(InputError, match="must be 5 numbers between 0 and 1"):
            heads.set_prior(head, wrong)


@pytest.mark.parametrize("variant", sorted(WITH_BIAS))
def test_the_prior_may_leave_classes_as_they_are(variant: str) -> None:
    head = make_head(variant)
    bias: Any = head.bias
    before = bias.detach().numpy().copy()
    where = torch.tensor([True, False, False, True, False])
    heads.set_prior(head, torch.full((5,), 0.3), where)
    expected = np.where(where.numpy(), np.log(0.3 / 0.7), before)
    np.testing.assert_allclose(bias.detach().numpy(), expected, rtol=1e-6)


# ---- an earlier head's classes ----

OLD, NEW = ("a", "b", "c", "d", "e"), ("e", "x", "a", "d")


def randomise(head: nn.Module) -> nn.Module:
    """Random numbers everywhere, as training leaves them: also biases, scales and statistics."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point() and name != "adjacency":
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return head


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"ml_decoder of 2 groups"}))
def test_classes_of_the_same_name_give_the_earlier_heads_logits(variant: str) -> None:
    old, features = randomise(make_head(variant)), draw(3, 12, 2, 4)
    new = make_head(variant, num_classes=len(NEW))
    before = copy.deepcopy(new.state_dict())
    assert heads.copy_classes(new, NEW, old.state_dict(), OLD) == ["e", "a", "d"]
    found, expected = compute(new, features), compute(old, features)
    if variant.endswith("re-weighting gcn"):  # all classes have a part in the weights of the channels
        for name in ("embeddings", "classifier.weight"):
            rows, old_rows = new.state_dict()[name], old.state_dict()[name]
            assert torch.equal(rows[[0, 2, 3]], old_rows[[4, 0, 3]])
    else:
        for name in ("e", "a", "d"):
            np.testing.assert_allclose(found[:, NEW.index(name)], expected[:, OLD.index(name)], rtol=1e-9)
    by_class: Any = old.by_class
    for name in by_class:
        if name in before:
            size = len(before[name]) // len(NEW)
            assert torch.equal(new.state_dict()[name][size : 2 * size], before[name][size : 2 * size]), "x stays new"
    same = make_head(variant)
    assert heads.copy_classes(same, OLD, old.state_dict(), OLD) == list(OLD)
    np.testing.assert_array_equal(compute(same, features), expected)


def test_a_kernel_head_weighs_what_is_near() -> None:
    """The landmarks lie in a space of 3 axes, the images do not: distances are those of all 12 features."""
    features = draw(6, 12, 2, 3)
    head: Any = make_head("kernel of 7 landmarks")
    head.mean.normal_()
    head.scale.uniform_(0.1, 0.5)
    head.axes.copy_(torch.linalg.qr(torch.randn(12, 3))[0])
    p = get(head)
    points = (features.mean(dim=(2, 3)).double().numpy() - p("mean")) * p("scale")
    distances = ((points[:, None] - p("landmarks") @ p("axes").T) ** 2).sum(axis=-1)
    np.testing.assert_allclose(compute(head, features), np.exp(-distances) @ p("weight").T + p("bias"), atol=1e-12)
    assert p("axes").shape == (12, 3)
    assert get(HEADS["kernel"](12, 5))("axes").shape == (12, 12), "no more axes than features"
    with pytest.raises(InputError, match="kernel needs at least one landmark and axis, not 0 and 512"):
        HEADS["kernel"](12, 5, num_landmarks=0)


def test_classes_of_one_query_are_taken_together() -> None:
    """Of six classes in three groups: (a, b) stay together, (c, d) do not."""
    old, features = randomise(HEADS["ml_decoder"](12, 6, num_groups=3).eval()), draw(3, 12, 2, 4)
    new = HEADS["ml_decoder"](12, 5, num_groups=3).eval()
    assert heads.copy_classes(new, ("c", "x", "a", "b", "e"), old.state_dict(), tuple("abcdef")) == ["a", "b"]
    np.testing.assert_allclose(compute(new, features)[:, 2:4], compute(old, features)[:, :2], rtol=1e-9)
    uneven = randomise(HEADS["ml_decoder"](12, 5, num_groups=4).eval())  # of four queries three are used
    same = HEADS["ml_decoder"](12, 5, num_groups=4).eval()
    assert heads.copy_classes(same, OLD, uneven.state_dict(), OLD) == list(OLD)
    np.testing.assert_array_equal(compute(same, features), compute(uneven, features))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (HEADS["per_label_mlp"](12, 5, hidden=8), HEADS["per_label_mlp"](12, 5, hidden=4)),
        (HEADS["linear"](12, 5), HEADS["linear"](6, 5)),
        (HEADS["linear"](12, 5), HEADS["linear_bn"](12, 5)),
        (HEADS["kernel"](12, 5), HEADS["kernel"](12, 5, num_landmarks=7)),
        (HEADS["gcn"](12, 5), HEADS["gcn"](12, 5, reweights_channels=True)),
        (HEADS["ml_decoder"](12, 5), HEADS["ml_decoder"](12, 5, cosine_scale=9.0)),
        (HEADS["linear"](12, 7), HEADS["linear"](12, 5)),  # of other classes than it is said to be
    ],
)
def test_a_head_of_other_tensors_is_not_taken(old: nn.Module, new: nn.Module) -> None:
    before = copy.deepcopy(new.state_dict())
    assert heads.copy_classes(new, OLD, old.state_dict(), OLD) is None
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())
