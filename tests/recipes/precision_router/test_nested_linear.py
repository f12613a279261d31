from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise.nested_linear import NestedLinear, nested, weight_at
from torch import nn


def read(weight, bits, *, group):
    """A weight, stored and read in a precision."""
    return weight_at(*nested(weight, group=group), bits, group=group, dtype=torch.float32)


def slowly(weight, bits, *, group):
    """The same number by number, with whole steps of the shared scale."""
    out = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            low = part.min().half().float()
            step = ((part.max() - low) / 255).clamp(min=0).half().float()
            for column, value in enumerate(part):
                number = 0 if step == 0 else int(((value - low) / step).round().clamp(0, 255))
                kept = number // 2 ** (8 - bits) * 2 ** (8 - bits)
                out[row, start + column] = low + step * (kept + (2 ** (8 - bits) - 1) / 2)
    return out


class TestNested:
    def test_bits_are_the_upper_bits_of_one_number(self):
        """S4-23: all precisions read one stored byte: 0b11001000 at 3 bits is 0b110 and a half."""
        weight = torch.tensor([[0.0, 200.0, 255.0]])
        assert read(weight, 8, group=3).tolist() == [[0.0, 200.0, 255.0]]
        assert read(weight, 3, group=3).tolist() == [[15.5, 192 + 15.5, 224 + 15.5]]

    def test_what_is_dropped_counts_as_half(self):
        """S4-23: reading mid-rise leaves no bias; truncating would leave 15.5 of 255 at 3 bits."""
        weight = torch.arange(256.0).reshape(1, 256)
        assert (read(weight, 3, group=256) - weight).mean().abs() < 1e-3

    @settings(max_examples=20, deadline=None)
    @given(
        st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(2, 8), st.integers()
    )
    def test_any_shape_and_group_equals_the_slow_way(self, rows, inputs, group, bits, seed):
        """S4-23: the stored numbers give, in every precision, what the formula gives."""
        generator = torch.Generator().manual_seed(seed % 2**31)
        weight = torch.randn(rows, inputs, generator=generator)
        slow = slowly(weight, bits, group=group)
        torch.testing.assert_close(read(weight, bits, group=group), slow, atol=1e-6, rtol=0)

    def test_a_constant_group_stays_what_it_is(self):
        """S4-23: a group without a range has scale 0, and divides by nothing."""
        weight = torch.full((2, 4), 0.5)
        assert read(weight, 3, group=4).equal(weight)

    def test_more_bits_are_closer(self):
        """S4-23: the error halves, about, with each bit."""
        weight = torch.randn(64, 64)
        errors = [(read(weight, bits, group=64) - weight).norm().item() for bits in range(3, 9)]
        assert all(1.8 < few / more < 2.2 for few, more in pairwise(errors))


class TestNestedLinear:
    def test_it_multiplies_with_the_weight_of_its_precision(self):
        """S4-09: a forward in a precision is the product with that weight, plus the bias."""
        linear = nn.Linear(6, 4)
        made = NestedLinear.from_linear(linear, group=3)
        x = torch.randn(2, 6)
        with made.precision.at(3):
            found = made(x)
        torch.testing.assert_close(found, x @ made.weight_at(3, x.dtype).T + linear.bias)

    def test_its_gradient_is_that_of_the_same_precision(self):
        """S4-09: the backward runs later, when another precision is set, and does not see it."""
        made = NestedLinear.from_linear(nn.Linear(6, 4), group=3)
        x = torch.randn(2, 6, requires_grad=True)
        with made.precision.at(3):
            loss = made(x).sum()
        with made.precision.at(8):
            loss.backward()
        torch.testing.assert_close(x.grad, made.weight_at(3, x.dtype).sum(0).expand(2, 6))
