"""Maps against formulas in numpy, finite differences and timm's own layers; where they lie; pictures and the page."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib as mpl
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import class_activation_maps
import predictor
from dataset import resize_rules
from dataset.image_sizes import Size
from evaluation import activation_maps
from evaluation.activation_maps import METHODS, follow
from heads import HEADS, Linear, LinearBN, MLDecoder
from models import checkpoints
from models.backbones import TimmBackbone
from models_factory import MultiLabelModel, make_model
from utils import InputError

IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


class Fixed(nn.Module):
    """A backbone that gives the same features whatever it sees."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features + 0 * pixels.sum()


class Positional(nn.Module):
    """A head with a weight for each class, channel and position: gradients differ from position to position."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Tensor) -> Tensor:
        return torch.einsum("cdhw,bdhw->bc", self.weight, features)


def make_fixed(features: Tensor, head: nn.Module) -> MultiLabelModel:
    return MultiLabelModel(Fixed(features), head, (0.0,) * 3, (1 / 255,) * 3).to(features.dtype)


def map_of(model: MultiLabelModel, method: str, labels: list[int], image: Tensor = IMAGE) -> NDArray[np.float64]:
    return METHODS[method](follow(model, image), labels).double().numpy()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# ---- methods ----


def test_grad_cam_weighs_channels_by_their_mean_gradient() -> None:
    features = torch.rand(1, 4, 3, 3, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    weight[0].abs_()
    found = map_of(make_fixed(features, Positional(weight)), "grad-cam", [3, 0])
    for label, values in zip([3, 0], found, strict=True):
        expected = np.zeros((3, 3))
        for channel in range(4):
            expected += weight.numpy()[label, channel].mean() * features.numpy()[0, channel]
        np.testing.assert_allclose(values, np.maximum(expected, 0), rtol=1e-12, atol=1e-14)
    assert (found[1] > 0).all()


@pytest.mark.parametrize("method", ["grad-cam++", "grad-camm++"])
def test_grad_cam_plus_plus_is_the_formula_of_the_paper(method: str) -> None:
    features = torch.rand(1, 4, 3, 3, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    weight[:, 1, 0] = 0  # as from a ReLU
    found = map_of(make_fixed(features, Positional(weight)), method, [2])[0]
    expected = np.zeros((3, 3))
    for a, g in zip(features.numpy()[0], weight.numpy()[2], strict=True):
        denominator = 2 * g**2 + a.sum() * g**3  # eq. 19
        alpha = np.divide(g**2, denominator, out=np.zeros_like(g), where=denominator != 0)
        expected += (alpha * np.maximum(g, 0)).sum() * a  # eq. 5
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-12, atol=1e-14)


def test_grad_cam_plus_plus_stays_finite_where_features_are_negative() -> None:
    features = torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(1, 1, 2, 2).double() - 0.5  # they add up to -2
    found = map_of(make_fixed(features, Positional(torch.ones(1, 1, 2, 2).double())), "grad-cam++", [0])
    weight = 4 / (2 + 1)  # of four positions with gradient 1, positive features add up to 1
    np.testing.assert_allclose(found, [[[0, 0], [weight / 2, weight / 2]]])


def make_linear_bn(num_features: int, num_classes: int) -> LinearBN:
    head = LinearBN(num_features, num_classes)
    nn.init.normal_(head.norm.weight)  # some are negative
    nn.init.normal_(head.norm.bias)
    head.norm.running_mean = torch.randn(num_classes)
    head.norm.running_var = torch.rand(num_classes) + 0.1
    return head


@pytest.mark.parametrize("make", [Linear, make_linear_bn])
def test_cam_is_the_weights_combination_of_features(make: Callable[[int, int], nn.Module]) -> None:
    features, head = torch.randn(1, 6, 3, 3).double(), make(6, 4).double()
    model = make_fixed(features, head)
    found = map_of(model, "cam", [0, 1, 2, 3])
    if isinstance(head, LinearBN):
        norm = head.norm
        assert norm.running_var is not None
        scale = norm.weight.detach().numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)
        weight = scale[:, None] * head.linear.weight.detach().numpy()
    else:
        assert isinstance(head, Linear)
        weight = head.weight.detach().numpy()
    expected = np.array([sum(weight[c, d] * features.numpy()[0, d] for d in range(6)) for c in range(4)])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    with torch.no_grad():  # the mean of a map is the logit but for a constant
        constant = model.head(torch.zeros_like(features))[0]
        np.testing.assert_allclose(found.mean(axis=(1, 2)), (model(IMAGE[None])[0] - constant).numpy(), rtol=1e-9)


@pytest.mark.parametrize("make", [Linear, make_linear_bn])
def test_grad_cam_is_the_positive_part_of_cam_where_a_mean_and_a_linear_head_follow(
    make: Callable[[int, int], nn.Module],
) -> None:
    model = make_fixed(torch.randn(1, 6, 3, 4)[..., :3].double(), make(6, 4).double())
    found, reference = map_of(model, "grad-cam", [0, 1, 2, 3]), map_of(model, "cam", [0, 1, 2, 3])
    np.testing.assert_allclose(found, np.maximum(reference, 0) / 9, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", HEADS)
def test_grad_cam_of_every_head_agrees_with_finite_differences(name: str) -> None:
    features = torch.rand(1, 6, 3, 3, dtype=torch.float64)
    head = HEADS[name](6, 4).double().eval()
    found = map_of(make_fixed(features, head), "grad-cam", [2])[0]
    gradient, step = np.zeros((6, 3, 3)), 1e-6
    with torch.no_grad():
        for place in np.ndindex(6, 3, 3):
            change = torch.zeros_like(features)
            change[0][place] = step
            gradient[place] = (head(features + change) - head(features - change))[0, 2].item() / (2 * step)
    expected = np.maximum(np.einsum("d,dhw->hw", gradient.mean(axis=(1, 2)), features.numpy()[0]), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def attend(head: MLDecoder, tokens: Tensor) -> NDArray[np.float64]:
    """(G, T): softmax(q k / sqrt(width of a head)), the mean over 8 heads, written out."""
    with torch.no_grad():
        seen = head.embed(tokens).relu().numpy()
        asked = head.norm1(2 * head.queries).numpy()
    weight, bias = (p.detach().numpy() for p in (head.attention.in_proj_weight, head.attention.in_proj_bias))
    width = head.WIDTH
    q, k = asked @ weight[:width].T + bias[:width], seen @ weight[width : 2 * width].T + bias[width : 2 * width]
    result = np.zeros((len(q), len(k)))
    for part in np.split(np.arange(width), 8):
        scores = np.exp(q[:, part] @ k[:, part].T / len(part) ** 0.5)
        result += scores / scores.sum(axis=1, keepdims=True) / 8
    return result


def test_attention_is_that_of_the_classs_query_and_adds_up_to_1() -> None:
    head = MLDecoder(6, 5, num_groups=2).double()  # three classes to the first query, two to the second
    features = torch.randn(1, 6, 3, 3).double() * 5
    found = map_of(make_fixed(features, head), "attention", [0, 2, 3])
    expected = attend(head, features[0].flatten(1).T).reshape(2, 3, 3)
    np.testing.assert_allclose(found, expected[[0, 0, 1]], rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1)


def test_attention_to_tokens_leaves_the_class_token_out() -> None:
    head = MLDecoder(6, 5).double()
    tokens = torch.randn(1, 10, 6).double() * 5  # a class token and 3 x 3 positions
    found = map_of(make_fixed(tokens, head), "attention", [4])[0]
    expected = attend(head, tokens[0])[4]
    np.testing.assert_allclose(found, expected[1:].reshape(3, 3), rtol=1e-9)
    assert found.sum() == pytest.approx(1 - expected[0])


# ---- layers ----


def make_small(name: str, head: str, size: tuple[int, int] = (64, 64)) -> tuple[MultiLabelModel, Tensor]:
    return make_model(name, 4, head, image_size=size).eval(), torch.randint(0, 256, (3, *size), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "head"), [("efficientnet_lite0", "linear_bn"), ("timm/swin_tiny_patch4_window7_224", "linear")]
)
def test_the_map_before_timms_pooling_is_found(name: str, head: str) -> None:
    model, image = make_small(name, head)
    assert model.extract_features(image[None]).shape[2:] == (1, 1)
    assert isinstance(model.backbone, TimmBackbone)
    with torch.no_grad():
        features = model.backbone.network.forward_features(model.normalize(image[None]))[0]
        features = features.permute(2, 0, 1) if head == "linear" else features  # Swin's is (h, w, D)
        linear = model.head.linear if isinstance(model.head, LinearBN) else model.head
        expected = torch.einsum("cd,dhw->chw", linear.weight, features).numpy()
    expected = expected / (1 + 1e-5) ** 0.5 if head == "linear_bn" else expected  # BatchNorm as it starts
    found = map_of(model, "cam", [0, 1, 2, 3], image)
    assert found.shape == (4, 2, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(map_of(model, "grad-cam", [2], image)[0], found[2].clip(0) / 4, rtol=1e-3, atol=1e-6)


def test_a_class_tokens_map_is_that_of_the_norm_before_the_last_attention() -> None:
    model, image = make_small("timm/deit_tiny_distilled_patch16_224", "linear")  # two extra tokens
    found = map_of(model, "grad-cam", [1], image)[0]
    assert isinstance(model.backbone, TimmBackbone)
    network = model.backbone.network
    seen: list[Tensor] = []
    network.blocks[-1].norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logit = model(image[None])[0, 1]
    gradient = torch.autograd.grad(logit, seen[0])[0][0].double().numpy()
    tokens = seen[0][0].detach().double().numpy()
    assert np.abs(gradient[2:]).min() > 0, "every position has a say"
    expected = tokens[2:] @ gradient[2:].mean(axis=0)
    np.testing.assert_allclose(found, expected.clip(0).reshape(4, 4), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "head", "shape"),
    [
        ("resnet18", "per_label_mlp", (2, 2)),
        ("mobilenet_v3_small", "linear", (2, 2)),  # with a hidden layer after pooling
        ("timm/vit_tiny_patch16_224", "gcn", (4, 4)),
        ("timm/vit_tiny_patch16_224", "ml_decoder", (4, 4)),
        ("vit_b_16", "linear_bn", (4, 4)),
    ],
)
def test_other_layouts_give_a_map_that_is_not_empty(name: str, head: str, shape: tuple[int, int]) -> None:
    model, image = make_small(name, head)
    for method in ("grad-cam", "grad-cam++", *(["attention"] if head == "ml_decoder" else [])):
        found = map_of(model, method, [0, 1, 2, 3], image)
        assert found.shape == (4, *shape)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert found.max() > 0
    assert not any(module._forward_hooks for module in model.modules()), "hooks are taken off"


@pytest.mark.parametrize(
    ("name", "head", "shape"),
    [
        ("timm/vit_tiny_patch16_224", "ml_decoder", (3, 8)),  # 24 tokens, which could be 4 x 6, too
        ("timm/swin_tiny_patch4_window7_224", "linear", (2, 4)),  # (1, h, w, D)
        ("inception_v3", "linear", (1, 4)),  # a map without padding is smaller than the image in proportion
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_maps_of_an_oblong_model_have_its_shape(name: str, head: str, shape: tuple[int, int], turned: bool) -> None:
    size = {"ml_decoder": (48, 128), "linear": (64, 128)}[head] if name != "inception_v3" else (96, 192)
    model, image = make_small(name, head, size[::-1] if turned else size)
    for method in ("grad-cam", *(["attention"] if head == "ml_decoder" else [])):
        found = map_of(model, method, [0, 1], image)
        assert found.shape == (2, *(shape[::-1] if turned else shape))


def count_steps(trace: activation_maps.Trace) -> int:
    """How many operations a gradient of the logits could go back through."""
    waiting, seen = [trace.logits.grad_fn], set[object]()
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            waiting += [earlier for earlier, _ in step.next_functions]
    return len(seen)


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "test_vit", "convnext_tiny", "test_convnext"])
def test_maps_of_a_further_image_keep_gradients_from_their_layer_on(name: str, head: str) -> None:
    model, image = make_small(name, head)
    layer = activation_maps.find_grid(follow(model, image)).layer
    other = image.flip(2)
    whole, short = follow(model, other), follow(model, other, layer)
    assert [module for module, _ in short.outputs] == [layer]
    assert count_steps(short) < count_steps(whole)
    assert torch.is_grad_enabled()
    for method in ("grad-cam", "grad-cam++"):
        torch.testing.assert_close(METHODS[method](short, [0, 1]), METHODS[method](whole, [0, 1]))


@pytest.mark.parametrize("turned", [False, True])
def test_a_tokens_place_in_an_oblong_map_is_that_of_its_patch(turned: bool) -> None:
    class Patches(nn.Module):
        """A class token, and the mean brightness of each patch of 16 x 16 pixels."""

        def forward(self, pixels: Tensor) -> Tensor:
            patches = nn.functional.avg_pool2d(pixels.mean(dim=1, keepdim=True), 16).flatten(2).mT
            return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1).relu()

    head = Linear(1, 1)
    head.weight.data.fill_(1.0)
    model = MultiLabelModel(Patches(), head, (0.0,) * 3, (1.0,) * 3)
    image = torch.zeros(3, 64, 112, dtype=torch.uint8)
    image[:, 16:32, 96:] = 255  # row 1, column 6
    expected = torch.zeros(4, 7)
    expected[1, 6] = 1
    image, expected = (image.mT, expected.mT) if turned else (image, expected)
    values = METHODS["grad-cam"](follow(model, image), [0])[0]
    torch.testing.assert_close(values / values.max(), expected)


def test_what_a_method_cannot_do_is_said() -> None:
    model, image = make_small("mobilenet_v3_small", "linear")
    with pytest.raises(InputError, match="layers in between: set it to grad-cam"):
        map_of(model, "cam", [0], image)
    features = torch.rand(1, 6, 3, 3)
    with pytest.raises(InputError, match="cam needs the head linear or linear_bn"):
        map_of(make_fixed(features, HEADS["cosine"](6, 4)), "cam", [0])
    with pytest.raises(InputError, match="attention needs the head ml_decoder"):
        map_of(make_fixed(features, Linear(6, 4)), "attention", [0])
    with pytest.raises(InputError, match="no layer of this backbone"):
        map_of(make_fixed(torch.rand(1, 6, 1, 1), Linear(6, 4)), "grad-cam", [0])


# ---- from the model's square to the image ----


@pytest.mark.parametrize("size", [Size(56, 56), Size(40, 98), Size(98, 40)])
@pytest.mark.parametrize("rule", resize_rules.RESIZE_RULES)
@pytest.mark.parametrize(("height", "width"), [(120, 250), (250, 120), (90, 90)])
def test_the_frame_is_where_the_resize_rule_takes_its_pixels(rule: str, height: int, width: int, size: Size) -> None:
    left, top, right, bottom = activation_maps.UNDO_RESIZE_RULES[rule](height, width, size)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y, torch.full_like(x, 255)]).to(torch.uint8)  # a picture of where each pixel is
    seen = resize_rules.make_eval_transform(rule, size)(places).double().numpy()
    inside = seen[2] == 255  # not a bar
    x_step, y_step = (right - left) / size.width, (bottom - top) / size.height  # pixels of the image to one of these
    expected_x = left + (np.arange(size.width) + 0.5) * x_step - 0.5
    expected_y = top + (np.arange(size.height) + 0.5) * y_step - 0.5
    assert np.abs(seen[0] - expected_x)[inside].max() <= x_step, "to one pixel of what the model sees"
    assert np.abs(seen[1] - expected_y[:, None])[inside].max() <= y_step
    if rule != "squash":
        assert x_step == pytest.approx(y_step), "nothing is stretched"
    shapes = [height / width, size.height / size.width]
    expected_share = min(shapes) / max(shapes) if rule == "letterbox" else 1
    assert inside.mean() == pytest.approx(expected_share, abs=0.03)


def test_every_resize_rule_has_its_frame() -> None:
    assert activation_maps.UNDO_RESIZE_RULES.keys() == resize_rules.RESIZE_RULES.keys()


def test_a_map_is_spread_bilinearly_inside_its_frame_alone() -> None:
    ramp = torch.arange(4.0).expand(4, 4)
    found = activation_maps.spread(ramp, (10, 5, 50, 45), 50, 60)
    assert found.shape == (50, 60)
    assert found[5:45, 10:50].isfinite().all()
    outside = found.clone()
    outside[5:45, 10:50] = torch.nan
    assert outside.isnan().all()
    columns = torch.arange(15, 45)  # between the middles of the first and the last cell, which are 10 pixels wide
    torch.testing.assert_close(found[20, 15:45], (columns + 0.5 - 10) / 10 - 0.5)
    assert found[20, 10] == 0
    assert found[20, 49] == 3


class Brightness(nn.Module):
    """Features: how bright, and how dark, each cell of 8 x 8 pixels is."""

    def forward(self, pixels: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(pixels.mean(dim=1, keepdim=True), 8)
        return torch.cat([bright, 1 - bright], dim=1)


@pytest.mark.parametrize("method", ["cam", "grad-cam", "grad-cam++"])
@pytest.mark.parametrize("rule", resize_rules.RESIZE_RULES)
@pytest.mark.parametrize("left", [48, 88])
@pytest.mark.parametrize("size", [Size(64, 64), Size(48, 96), Size(96, 64)])
def test_a_bright_square_is_found_where_it_is(method: str, rule: str, left: int, size: Size) -> None:
    head = Linear(2, 2)
    head.weight.data = torch.tensor([[1.0, -0.2], [-0.2, 1.0]])  # class 0: something bright
    model = MultiLabelModel(Brightness(), head, (0.0,) * 3, (1.0,) * 3)
    picture = np.zeros((100, 160, 3), dtype=np.uint8)
    picture[40:64, left : left + 24] = 255
    image = resize_rules.make_eval_transform(rule, size)(torch.from_numpy(picture).permute(2, 0, 1))
    values = METHODS[method](follow(model, image), [0])[0]
    found = activation_maps.spread(
        values.clip(min=0), activation_maps.UNDO_RESIZE_RULES[rule](100, 160, size), 100, 160
    )
    found = found.nan_to_num()
    y, x = np.indices(found.shape)
    share = found.numpy() / found.sum().item()
    assert (share * x).sum() == pytest.approx(left + 12, abs=8)
    assert (share * y).sum() == pytest.approx(52, abs=8)


# ---- pictures and the page ----


def test_colours_lie_on_the_photograph_inside_the_frame() -> None:
    photograph = Image.new("RGB", (80, 40), (100, 100, 100))
    values = torch.tensor([[2.0, 0.0]]).repeat_interleave(2, dim=0)
    picture = np.asarray(activation_maps.draw_map(photograph, values, "squash", Size(32, 32))).astype(float)
    strength = activation_maps.STRENGTH
    for column, share in ((0, 1.0), (79, 0.0), (40, 0.4875)):  # the middle of column 40 is 0.5125 between the cells'
        colour = np.array(mpl.colormaps[activation_maps.COLOURS](share)[:3]) * 255
        np.testing.assert_allclose(picture[20, column], (1 - strength) * 100 + strength * colour, atol=2)
    cropped = np.asarray(activation_maps.draw_map(photograph, values, "center_crop", Size(32, 32)))
    assert (cropped[:, :20] == 100).all(), "the model did not see the left end"
    assert (cropped[20, 25] != 100).any()


class Page(HTMLParser):
    """The pictures and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not (values.get("src") or "").startswith(("http", "/", "data:"))
        if tag == "img":
            self.pictures.append(unquote(values["src"] or ""))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


CLASSES = ["red", "<b>green</b> & co", "blue"]


def save_model(folder: Path, threshold: float = 0.5, **metadata: object) -> Path:
    torch.manual_seed(3)
    model = make_model("mobilenet_v2", 3, "linear", image_size=64)
    assert isinstance(model.head, Linear)
    model.head.bias.data = torch.tensor([0.0, 0.3, 0.6])  # the most probable class is not the first
    path = folder / "model.pt"
    checkpoint = {
        "model_state": model.state_dict(),
        "model_name": "mobilenet_v2",
        "head": "linear",
        "classes": CLASSES,
        "image_size": 64,
        "resize_rule": "squash",
        "best_threshold": threshold,
    }
    checkpoints.save(path, checkpoint | metadata)
    return path


def run(folder: Path, dataset: Path, model: Path, **constants: object) -> Page:
    values = {
        "MODEL_PATH": model,
        "DATASET_FOLDER": dataset,
        "CACHE_FOLDER": folder / "cache",
        "MAP_FOLDER": folder / "maps",
        "DEVICE": "cpu",
    } | constants
    class_activation_maps.main([f"--{name}={value}" for name, value in values.items()])
    return Page((folder / "maps" / "index.html").read_text(encoding="utf-8"))


@pytest.fixture
def labelled(dataset: Path) -> Path:
    (dataset / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return dataset


def test_the_page_shows_the_labels_that_the_predictor_gives(labelled: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path, thresholds=[0.4, 0.7, 0.6])
    files = sorted(labelled.glob("images/test-resized/*.jpg"))[::2]  # 6 of 12
    for index, file in enumerate(
        files
    ):  # the model gives nearly all images 0 and 2: two wrong, or one right and one not
        (labelled / "labels" / "test" / f"{file.stem}.cls").write_text(("1\n", "0\n")[index % 2])
    expected, words = [], ["✓ right", "✕ wrong", "✕ missed"]
    counts = dict.fromkeys(words, 0)
    page = run(tmp_path, labelled, model, MAP_MAX_IMAGES=6, MAP_LABELS_PER_IMAGE=2)
    for record in predictor.load(model, "cpu").predict(files):
        ranked = sorted(record.labels, key=lambda label: -record.probabilities[label])[:2]
        ranked = ranked or [int(record.probabilities.argmax())]
        names = [class_activation_maps.make_file_name(CLASSES[label]) for label in ranked]
        stems = ["photograph", *(f"{rank}_{name}" for rank, name in enumerate(names, start=1))]
        expected += [f"index_files/{Path(record.path).stem}/{stem}.png" for stem in stems]
        labels = labelled / "labels" / "test" / f"{Path(record.path).stem}.cls"
        present = {int(line) for line in labels.read_text().split()}
        counts["✓ right"] += len(present & {*record.labels})
        counts["✕ wrong"] += len({*record.labels} - present)
        counts["✕ missed"] += len(present - {*record.labels})
        for label in ranked:
            sign = "≥" if label in record.labels else "<"
            threshold = (0.4, 0.7, 0.6)[label]
            assert f"{CLASSES[label]} {record.probabilities[label]:.3f} {sign} {threshold:.3f}" in page.text
    assert page.pictures == expected
    written = [path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*.png")]
    assert sorted(written) == sorted(expected)
    assert {word: page.text.count(word) for word in words} == counts
    assert min(counts.values()) > 0
    for picture in page.pictures:
        with Image.open(tmp_path / "maps" / picture) as image:
            assert image.format == "PNG"
            assert image.size[0] == 320


def test_no_threshold_is_named_where_the_limits_decide(labelled: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path, thresholds=[0.999, 0.999, 0.999], min_labels=1, max_labels=1)
    page = run(tmp_path, labelled, model, MAP_MAX_IMAGES=3, MAP_LABELS_PER_IMAGE=2)
    assert "✓ right" in page.text or "✕ wrong" in page.text
    assert "0.999" not in page.text


def test_a_folder_without_labels_and_an_image_without_a_predicted_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "b & <i>/1.png", "b & <i>/100%41.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    model = save_model(tmp_path, threshold=0.999)
    stale = tmp_path / "maps" / "index_files" / "old" / "1_cat.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    page = run(tmp_path, tmp_path / "none", model, TEST_IMAGES_DIR=tmp_path / "images", MAP_METHOD="grad-camm++")
    folders = [Path(picture).parent.as_posix() for picture in page.pictures]
    assert folders == [f"index_files/{name}" for name in ("a/1",) * 2 + ("b & <i>/1",) * 2 + ("b & <i>/100%41",) * 2]
    assert all((tmp_path / "maps" / picture).is_file() for picture in page.pictures)
    assert page.text.count("< 0.999 not predicted") == 3
    assert "which have no labels" in page.text
    assert "✓" not in page.text
    assert not stale.exists()


def test_ten_of_many_classes_without_a_map_are_named(dataset: Path, tmp_path: Path) -> None:
    """All 40 classes are predicted, and no image has one of them."""
    names = [f"class{number}." for number in range(40)]
    (dataset / "classes.txt").write_text("\n".join(names) + "\n")
    for path in (dataset / "labels" / "test").iterdir():
        path.write_text("39\n38\n")
    model = make_model("mobilenet_v2", 40, "linear", image_size=64)
    assert isinstance(model.head, Linear)
    model.head.bias.data = torch.linspace(50, 0, 40)  # class 0 is the most probable
    path = save_model(tmp_path, threshold=0.0, classes=names, model_state=model.state_dict())
    page = run(tmp_path, dataset, path, MAP_MAX_IMAGES=1, MAP_LABELS_PER_IMAGE=2)
    assert "labels: class38., class39." in page.text
    without_map = page.text.partition("Without a map: ")[2]
    assert [name for name in names if f"{name} " in without_map] == names[2:12]
    assert without_map.endswith("; and 28 more")


def test_a_run_that_fails_leaves_the_earlier_page_whole(
    labelled: Path, tmp_path: Path, fails: Callable[[Callable[[list[str]], None], list[str]], str]
) -> None:
    model = save_model(tmp_path)
    page = run(tmp_path, labelled, model, MAP_MAX_IMAGES=2)
    arguments = [f"--MODEL_PATH={model}", f"--DATASET_FOLDER={labelled}", f"--MAP_FOLDER={tmp_path / 'maps'}"]
    assert "needs the head ml_decoder" in fails(class_activation_maps.main, [*arguments, "--MAP_METHOD=attention"])
    assert Page((tmp_path / "maps" / "index.html").read_text(encoding="utf-8")).text == page.text
    assert all((tmp_path / "maps" / picture).is_file() for picture in page.pictures)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["index.html", "index_files"]


def test_large_photographs_are_shrunk(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1600, 800), "red").save(tmp_path / "images" / "large.png")
    page = run(tmp_path, tmp_path / "none", save_model(tmp_path), TEST_IMAGES_DIR=tmp_path / "images")
    with Image.open(tmp_path / "maps" / page.pictures[0]) as image:
        assert image.width == class_activation_maps.MAX_SIDE


def test_rows_are_evenly_spaced() -> None:
    assert class_activation_maps.spread_rows(10, 4) == [0, 2, 5, 7]
    assert class_activation_maps.spread_rows(3, 24) == [0, 1, 2]
    assert class_activation_maps.spread_rows(3, 0) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch would have torch.export instead
def test_an_exported_file_is_refused_in_one_line(
    tmp_path: Path, fails: Callable[[Callable[[list[str]], None], list[str]], str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "model.pt"))
    for name in ("model.onnx", "model.pt"):
        message = fails(class_activation_maps.main, [f"--MODEL_PATH={tmp_path / name}"])
        assert "has no gradients: set MODEL_PATH to the checkpoint" in message
