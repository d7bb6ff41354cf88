"""The small backbones: shapes, widths, what they refuse, and that they are rebuilt from their specs."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_bce import SmallConvNet, SparseInputs, SparseMLP, TabularMLP
from lightning_bce.spec import build


@pytest.mark.parametrize("hidden", [(), (5,), (33, 7)], ids=str)
@pytest.mark.parametrize("labels", [1, 3])
def test_a_table_gives_a_logit_for_each_label(labels, hidden):
    net = TabularMLP(7, labels, hidden=hidden)
    assert net(torch.randn(33, 7)).shape == (33, labels)
    assert [layer.out_features for layer in net.layers if isinstance(layer, nn.Linear)] == [*hidden, labels]


def test_without_hidden_layers_it_is_a_linear_model():
    net, inputs = TabularMLP(7, 3, hidden=()), torch.randn(33, 7)
    assert_close(net(inputs), inputs @ net.layers[0].weight.T + net.layers[0].bias)


def test_inputs_of_more_dimensions_are_flattened():
    net, inputs = TabularMLP(15, dropout=0.0), torch.randn(7, 3, 5)
    assert_close(net(inputs), net(inputs.reshape(7, 15)))


@pytest.mark.parametrize("size", [(4, 4), (7, 9), (33, 33)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_any_size_gives_a_logit_for_each_label(channels, size):
    assert SmallConvNet(channels, 3, width=5)(torch.randn(7, channels, *size)).shape == (7, 3)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)], ids=str)
@pytest.mark.parametrize("sparse_gradient", [False, True])
def test_sparse_inputs_and_their_dense_form_give_the_same_output_and_gradient(hidden, sparse_gradient):
    net = SparseMLP(17, 3, hidden=hidden, dropout=0.0, sparse_gradient=sparse_gradient).double()
    dense = torch.randn(7, 17).double() * (torch.rand(7, 17) < 0.2)
    dense[[0, 3]] = 0
    rows, indices = dense.nonzero(as_tuple=True)
    inputs = SparseInputs(indices, dense[rows, indices], torch.searchsorted(rows, torch.arange(7)))
    assert_close(inputs.to_dense(17), dense)
    assert_close(net(inputs), net(dense))
    found = torch.autograd.grad(net(inputs).square().sum(), list(net.parameters()))
    for gradient, other in zip(
        found, torch.autograd.grad(net(dense).square().sum(), list(net.parameters())), strict=True
    ):
        assert_close(gradient.to_dense(), other)
    assert found[0].is_sparse == sparse_gradient


def test_features_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 17\) was expected"):
        SparseMLP(17)(torch.zeros(7, 5))


MODELS = [
    (TabularMLP(7, 3, hidden=[5], dropout=0.5), (33, 7)),
    (SmallConvNet(1, 3, width=5), (33, 1, 8, 8)),
    (SparseMLP(7, 3, hidden=[5], dropout=0.5), (33, 7)),
]


@pytest.mark.parametrize(("net", "shape"), MODELS, ids=["table", "image", "sparse"])
def test_it_is_rebuilt_from_its_spec(net, shape):
    twin = build(net.spec(), nn.Module)
    twin.load_state_dict(net.state_dict())
    inputs = torch.randn(shape)
    assert_close(twin.eval()(inputs), net.eval()(inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("net", "shape"), MODELS, ids=["table", "image", "sparse"])
def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(net, shape):
    inputs = torch.randn(shape)
    one_by_one = torch.cat([net.eval()(row[None]) for row in inputs])
    assert_close(net.eval()(inputs), one_by_one)


@pytest.mark.parametrize(("net", "shape"), MODELS, ids=["table", "image", "sparse"])
def test_every_weight_gets_a_gradient(net, shape):
    net.zero_grad()
    net.train()(torch.randn(shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: TabularMLP(0),
        lambda: TabularMLP(7, 0),
        lambda: TabularMLP(7, hidden=(5, 0)),
        lambda: SmallConvNet(0),
        lambda: SmallConvNet(1, 0),
        lambda: SmallConvNet(width=-1),
    ],
)
def test_a_width_below_one_is_refused(make):
    with pytest.raises(ValueError, match="at least 1"):
        make()


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match="`dropout`"):
        TabularMLP(7, dropout=dropout)


def test_a_table_of_another_width_is_refused_with_both():
    with pytest.raises(ValueError, match=r"5 features .* takes 7"):
        TabularMLP(7)(torch.randn(33, 5))
