"""AlexNet and GoogLeNet beside the same networks in PyTorch, written here from their published definitions.

Weights go over as dictionaries of arrays, under torchvision's names, both ways.
"""

import numpy as np
import pytest

from minivgg.layers import auxiliary_loss_backward, auxiliary_loss_forward
from minivgg.models import build
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
nn, F = torch.nn, torch.nn.functional


class TorchAlexNet(nn.Module):
    """torchvision/models/alexnet.py; with `lrn` the paper's filters and Caffe's order, without groups."""

    def __init__(self, lrn=False):
        super().__init__()

        def norm():
            return [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)] if lrn else []

        a, b, d = (96, 256, 384) if lrn else (64, 192, 256)
        self.features = nn.Sequential(
            *[nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), *norm(), nn.MaxPool2d(3, 2)],
            *[nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), *norm(), nn.MaxPool2d(3, 2)],
            *[nn.Conv2d(b, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, d, 3, padding=1), nn.ReLU()],
            *[nn.Conv2d(d, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)],
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        fc6, fc7, fc8 = nn.Linear(256 * 6 * 6, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)
        if lrn:
            layers = [fc6, nn.ReLU(), nn.Dropout(), fc7, nn.ReLU(), nn.Dropout(), fc8]
        else:
            layers = [nn.Dropout(), fc6, nn.ReLU(), nn.Dropout(), fc7, nn.ReLU(), fc8]
        self.classifier = nn.Sequential(*layers)

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Convolution(nn.Module):
    """torchvision's BasicConv2d; without batch norm, the paper's convolution."""

    def __init__(self, inputs, outputs, bn, **window):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=not bn, **window)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001) if bn else None

    def forward(self, x):
        x = self.conv(x)
        return F.relu(x if self.bn is None else self.bn(x))


class Inception(nn.Module):
    def __init__(self, inputs, one, red3, three, red5, five, proj, bn):
        super().__init__()
        side = 3 if bn else 5
        self.branch1 = Convolution(inputs, one, bn, kernel_size=1)
        self.branch2 = nn.Sequential(
            Convolution(inputs, red3, bn, kernel_size=1), Convolution(red3, three, bn, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            Convolution(inputs, red5, bn, kernel_size=1),
            Convolution(red5, five, bn, kernel_size=side, padding=side // 2),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), Convolution(inputs, proj, bn, kernel_size=1)
        )

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Head(nn.Module):
    def __init__(self, inputs, classes, bn, dropout):
        super().__init__()
        self.bn, self.dropout = bn, dropout
        self.conv = Convolution(inputs, 128, bn, kernel_size=1)
        self.fc1, self.fc2 = nn.Linear(2048, 1024), nn.Linear(1024, classes)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, (4, 4)) if self.bn or x.shape[2] < 5 else F.avg_pool2d(x, 5, 3)
        x = F.relu(self.fc1(torch.flatten(self.conv(x), 1)))
        return self.fc2(F.dropout(x, self.dropout, self.training))


class TorchGoogLeNet(nn.Module):
    """torchvision/models/googlenet.py; without `bn` that of the paper, table 1 and figure 3."""

    def __init__(self, bn=True, classes=1000, transform_input=False, dropout=0.2, head_dropout=0.7):
        super().__init__()
        self.bn, self.transform_input, self.dropout = bn, transform_input, dropout
        self.conv1 = Convolution(3, 64, bn, kernel_size=7, stride=2, padding=3)
        self.conv2 = Convolution(64, 64, bn, kernel_size=1)
        self.conv3 = Convolution(64, 192, bn, kernel_size=3, padding=1)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32, bn)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64, bn)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64, bn)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64, bn)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64, bn)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64, bn)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128, bn)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128, bn)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128, bn)
        self.aux1 = Head(512, classes, bn, head_dropout)
        self.aux2 = Head(528, classes, bn, head_dropout)
        self.fc = nn.Linear(1024, classes)

    def norm(self, x):
        return x if self.bn else F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def pool(self, x, window=3):
        return F.max_pool2d(x, window, stride=2, ceil_mode=True)

    def forward(self, x):
        if self.transform_input:
            x = torch.cat(
                [
                    torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5,
                    torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5,
                    torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5,
                ],
                1,
            )
        x = self.norm(self.pool(self.conv1(x)))
        x = self.pool(self.norm(self.conv3(self.conv2(x))))
        x = self.pool(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if self.training else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if self.training else None
        x = self.pool(self.inception4e(x), 2 if self.bn else 3)
        x = self.inception5b(self.inception5a(x))
        x = F.dropout(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1), self.dropout, self.training)
        return (self.fc(x), aux1, aux2) if self.training else self.fc(x)


def randomised(net, seed=0):
    """Weights that keep the signal's size (He's), biases and running statistics that are not the neutral ones."""
    torch.manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif "running_var" in name or ("bn" in name and "weight" in name):
            value.uniform_(0.5, 1.5)
        elif value.dtype.is_floating_point:
            value.uniform_(-0.3, 0.3)
    return net


def arrays(net):
    return {name: value.numpy() for name, value in net.state_dict().items()}


def images(count, size):
    return np.random.default_rng(1).standard_normal((count, 3, size, size), np.float32)


# name → (ours, PyTorch's, pixels): AlexNet's classifier is made for 224 pixels
PAIRS = {
    "alexnet": (lambda: build("alexnet", init="zeros"), TorchAlexNet, 224),
    "alexnet_lrn": (lambda: build("alexnet_lrn", init="zeros"), lambda: TorchAlexNet(lrn=True), 224),
    "googlenet": (lambda: build("googlenet", init="zeros"), TorchGoogLeNet, 97),
    "googlenet as published": (
        lambda: build("googlenet", init="zeros", transform_input=True),
        lambda: TorchGoogLeNet(transform_input=True),
        64,
    ),
    "googlenet_lrn": (lambda: build("googlenet_lrn", init="zeros"), lambda: TorchGoogLeNet(bn=False), 97),
}


@pytest.mark.parametrize(("ours", "theirs", "size"), PAIRS.values(), ids=PAIRS)
def test_same_logits_both_ways(ours, theirs, size):
    net, reference, x = ours(), randomised(theirs()).eval(), images(1, size)
    net.load_state_dict(arrays(reference))
    with torch.inference_mode():
        expected = reference(torch.from_numpy(x)).numpy()
        assert 0.1 < expected.std() < 100
        np.testing.assert_allclose(net(x), expected, rtol=0, atol=1e-4 * abs(expected).max())

        for p in net.named_params().values():  # and back, with other weights
            p.data *= np.float32(0.9)
        back = {name: torch.from_numpy(value) for name, value in net.state_dict().items()}
        kept = {name: value for name, value in reference.state_dict().items() if name.endswith("num_batches_tracked")}
        reference.load_state_dict(back | kept)
        expected = reference(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(net(x), expected, rtol=0, atol=1e-4 * abs(expected).max())
    np.testing.assert_allclose(net.freeze()(x), expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("name", ["googlenet", "googlenet_lrn"])
def test_one_step_of_training_with_auxiliary_heads(name):
    """Loss and gradients of all 0.3-weighted heads together, as autograd has them; in float64, for the ReLUs' sake."""
    reference = TorchGoogLeNet(bn=name == "googlenet", classes=7, dropout=0.0, head_dropout=0.0)
    reference = randomised(reference).double().train()
    net = build(name, init="zeros", classes=7, dropout=0.0, dropout_aux=0.0, dtype=np.float64, input_size=64)
    net.load_state_dict(arrays(reference))
    x, labels = images(4, 64).astype(np.float64), np.array([3, 0, 6, 3])
    scores, aux1, aux2 = reference(torch.from_numpy(x))
    expected = sum(w * F.cross_entropy(s, torch.from_numpy(labels)) for w, s in ((1, scores), (0.3, aux1), (0.3, aux2)))
    expected.backward()

    loss, cache = softmax_cross_entropy_forward(net.forward(x, train=True), labels)
    heads_loss, heads_cache = auxiliary_loss_forward(net, labels)
    auxiliary_loss_backward(1, heads_cache)
    net.backward(softmax_cross_entropy_backward(1, cache))
    assert loss + heads_loss == pytest.approx(expected.item(), rel=1e-10)
    theirs = dict(reference.named_parameters())
    assert net.named_params().keys() == theirs.keys()
    for key, p in net.named_params().items():
        grad = theirs[key].grad.numpy()
        np.testing.assert_allclose(p.grad, grad, rtol=0, atol=1e-8 * max(abs(grad).max(), 1e-3), err_msg=key)
    running = {key: value for key, value in arrays(reference).items() if "running" in key}
    for key, value in running.items():
        np.testing.assert_allclose(net.state_dict()[key], value, rtol=1e-10, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 8])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 3, 1), (3, 1, 1)])
def test_ceil_mode_is_pytorchs(size, window):
    from minivgg.ops.maxpool import maxpool2d_backward, maxpool2d_forward

    x = np.random.default_rng(size).standard_normal((2, 3, size, 8))
    theirs = torch.from_numpy(x).requires_grad_()
    try:
        expected = F.max_pool2d(theirs, *window, ceil_mode=True)
    except RuntimeError:
        with pytest.raises(ValueError, match="does not fit"):
            maxpool2d_forward(x, *window, ceil_mode=True)
        return
    y, cache = maxpool2d_forward(x, *window, ceil_mode=True)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    dy = np.round(8 * np.random.default_rng(1).standard_normal(y.shape))
    expected.backward(torch.from_numpy(dy))
    np.testing.assert_array_equal(maxpool2d_backward(dy, cache), theirs.grad.numpy())
