"""Memory layouts: when a tensor is channels_last, when a kernel can address it, when it is dense."""

import pytest
import torch
from vologan_kernels.layouts import addressable, is_channels_last, is_dense, lying_as, output_layout, view_of

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def image(*shape, layout=CONTIGUOUS):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape).contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (image(2, 3, 4, 5), False),
        (image(2, 3, 4, 5, layout=CHANNELS_LAST), True),
        (image(2, 8, 4, 5, layout=CHANNELS_LAST)[:, 2:5], True),
        (image(2, 8, 4, 5)[:, 2:5], False),
        (image(2, 1, 4, 5, layout=CHANNELS_LAST), False),  # one channel is contiguous too
        (image(2, 3, 4, 5).transpose(2, 3), False),
    ],
)
def test_the_layout_of_an_image(x, expected):
    assert is_channels_last(x) is expected
    assert output_layout(x) == (CHANNELS_LAST if expected else CONTIGUOUS)


@pytest.mark.parametrize(
    ("x", "layout"),
    [
        (image(2, 3, 4, 5), CONTIGUOUS),
        (image(2, 3, 4, 5, layout=CHANNELS_LAST), CHANNELS_LAST),
        (image(2, 8, 4, 5, layout=CHANNELS_LAST)[:, 2:5], CHANNELS_LAST),
        (image(2, 8, 4, 5)[:, 2:5], CONTIGUOUS),
        (image(3, 2, 4, 5)[1:].expand(2, 2, 4, 5), CONTIGUOUS),
        (torch.ones(()).expand(2, 3, 4, 5), CHANNELS_LAST),
        (image(2, 3, 1, 5), CONTIGUOUS),
        (image(2, 3, 4, 1), CONTIGUOUS),
    ],
)
def test_an_image_that_a_kernel_can_address_is_not_copied(x, layout):
    assert addressable(x, layout) is x
    assert values_by(view_of(x), x).equal(x)


@pytest.mark.parametrize(
    ("x", "layout"),
    [
        (image(2, 3, 4, 5), CHANNELS_LAST),
        (image(2, 3, 4, 5, layout=CHANNELS_LAST), CONTIGUOUS),
        (image(2, 3, 4, 6)[..., :5], CONTIGUOUS),
        (image(2, 3, 5, 4).transpose(2, 3), CONTIGUOUS),
        (image(2, 6, 4, 5, layout=CHANNELS_LAST)[:, ::2], CHANNELS_LAST),
    ],
)
def test_other_images_are_copied(x, layout):
    copy = addressable(x, layout)
    assert copy is not x and copy.is_contiguous(memory_format=layout)
    assert values_by(view_of(copy), copy).equal(x)


def values_by(view, x):
    """The image as a kernel reads it: by sample, position and channel."""
    n, c, h, w = x.shape
    read = view.pointer.as_strided((n, h * w, c), view[1:], x.storage_offset())
    return read.transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("x", "dense"),
    [
        (image(2, 3, 4, 5), True),
        (image(2, 3, 4, 5).permute(3, 1, 0, 2), True),
        (image(1, 3, 4, 5)[:, :1], True),
        (image(2, 3, 4, 5)[:, :2], False),
        (torch.ones(()).expand(2, 3), False),
        (torch.ones(3, 0), True),
    ],
)
def test_dense_tensors(x, dense):
    assert is_dense(x.shape, x.stride()) is dense


def test_lying_as():
    x = image(2, 3, 4, 5)
    assert lying_as(x, x.stride()) is x
    other = x.contiguous(memory_format=CHANNELS_LAST).stride()
    copy = lying_as(x, other, torch.float64)
    assert copy.stride() == other and copy.dtype == torch.float64 and copy.equal(x.double())
    assert lying_as(image(2, 1, 4, 5), (20, 7, 5, 1)).stride() == (20, 20, 5, 1)  # a stride of one index is free
