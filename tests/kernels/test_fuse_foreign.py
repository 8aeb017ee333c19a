"""Whatever works for a network of another repository works after `fuse`, to the same result.

Each test is one use of a network. It runs for every network of `foreign_gans.py`. Where the plain network cannot be
used so (torch raises), nothing is asked of the fused one.
"""

import copy
import io
import pickle
import socket
import warnings

import foreign_gans
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves
from vologan_kernels import fuse, unfuse

EVERY = pytest.mark.parametrize("name", foreign_gans.NETWORKS)
QUICK = ["FeatureGenerator", "SkipUnet", "ResBlk", "FunctionalNorms", "Views"]
SOME = pytest.mark.parametrize("name", QUICK)
FEW_QUICK = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in foreign_gans.NETWORKS]
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:input's size at dim:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def pair(name):
    """The plain network, the fused one and the arguments."""
    plain, arguments = foreign_gans.make(name)
    fused, report = fuse(copy.deepcopy(plain))
    return plain, fused, arguments, report


def tensors(result):
    return [each.detach() for each in tree_leaves(result) if isinstance(each, torch.Tensor)]


def gradients(network, arguments):
    """The outputs, and the gradients of the arguments and parameters."""
    arguments = [argument.clone().requires_grad_() for argument in arguments]
    outputs = [each for each in tree_leaves(network(*arguments)) if isinstance(each, torch.Tensor)]
    loss = sum(
        (each * torch.linspace(-1, 1, each.numel(), dtype=each.dtype).reshape(each.shape)).sum() for each in outputs
    )
    wanted = [*arguments, *(p for p in network.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [*(each.detach() for each in outputs), *(torch.zeros(()) if g is None else g for g in found)]


def assert_same(found, expected, rtol=1e-7, atol=1e-9):
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:  # no gradient, and a gradient of zeros
            assert not a.any()
            assert not b.any()
            continue
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def use(name, function, **tolerances):
    """`function(network, arguments)` gives the same for the plain and the fused network, if it works for the plain."""
    plain, fused, arguments, _ = pair(name)
    try:
        expected = function(plain, arguments)
    except Exception as error:
        pytest.skip(f"does not work for the plain network: {type(error).__name__}")
    if name == "Casting":  # it computes in float32
        tolerances = {"rtol": 1e-3, "atol": 1e-5}
    assert_same(function(fused, arguments), expected, **tolerances)


# ---- the same values ------------------------------------------------------------------------------------------------


def test_networks_are_many_and_nearly_all_are_fused():
    counts = {name: len(pair(name)[3].fused) for name in foreign_gans.NETWORKS}
    assert len(counts) >= 30
    without = {name for name, count in counts.items() if count == 0}
    assert without == {"with BatchNorm", "AutocastOff", "Conditional"}


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients(name, training):
    use(name, lambda network, arguments: gradients(network.train(training), arguments))


@EVERY
def test_values_and_gradients_in_channels_last(name):
    def run(network, arguments):
        arguments = [a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a for a in arguments]
        return gradients(network.to(memory_format=torch.channels_last), arguments)

    use(name, run)


@EVERY
def test_strides_for_permuted_images(name):
    """Images that were read as (N, H, W, C) and permuted, in a model that nobody moved to channels_last."""
    plain, fused, arguments, _ = pair(name)
    arguments = [a.contiguous(memory_format=torch.channels_last) if a.dim() == 4 else a for a in arguments]
    for a, b in zip(tensors(fused(*arguments)), tensors(plain(*arguments)), strict=True):
        assert a.stride() == b.stride()


@pytest.fixture(params=["fused", "left to torch"])
def small_images(request):
    """Small images in float32 and bfloat16 are left to torch. In float64 they are not."""
    if request.param == "fused":
        request.getfixturevalue("no_image_is_small")


@EVERY
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_gradients_in_float32(name, layout):
    plain, fused, arguments, _ = pair(name)
    try:
        exact = gradients(plain, arguments)
        arguments = [a.float().contiguous(memory_format=layout) if a.dim() == 4 else a.float() for a in arguments]
        torch.manual_seed(0)
        expected = gradients(plain.float().to(memory_format=layout), arguments)
    except RuntimeError:
        pytest.skip("does not work for the plain network")
    torch.manual_seed(0)
    found = gradients(fused.float().to(memory_format=layout), arguments)
    largest = max(truth.norm() for truth in exact)  # the gradient of a bias in front of a norm is 0 but for roundings
    if name != "Casting":  # its result in float64 comes from float32, too
        for a, b, truth in zip(found, expected, exact, strict=True):
            if a.shape == b.shape == truth.shape:
                assert (a - truth).norm() <= 3 * (b - truth).norm() + 1e-5 * truth.norm() + 1e-6 * largest


@EVERY
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_in_other_types(name, dtype):
    plain, fused, arguments, _ = pair(name)
    exact = tensors(plain(*arguments))
    arguments = [argument.to(dtype) for argument in arguments]
    try:
        expected = tensors(plain.to(dtype)(*arguments))
    except RuntimeError:
        pytest.skip("does not work for the plain network")
    for a, b, truth in zip(tensors(fused.to(dtype)(*arguments)), expected, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - truth).norm() <= 3 * (b - truth).norm() + 4 * torch.finfo(dtype).eps * truth.norm()


@EVERY
@pytest.mark.usefixtures("small_images")
def test_values_under_autocast(name):
    plain, fused, arguments, _ = pair(name)
    exact = tensors(plain(*arguments))
    arguments = [argument.float() for argument in arguments]
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = tensors(plain.float()(*arguments)), tensors(fused.float()(*arguments))
    for a, b, truth in zip(found, expected, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - truth).norm() <= 3 * (b - truth).norm() + 4 * torch.finfo(a.dtype).eps * truth.norm()


# ---- state and classes ----------------------------------------------------------------------------------------------


@EVERY
def test_state_names_and_classes(name):
    plain, fused, _, _ = pair(name)
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict(), strict=True)
    for before, after in zip(plain.modules(), fused.modules(), strict=True):
        assert after.__class__.__name__ == before.__class__.__name__
        assert type(after).__module__ == type(before).__module__
        assert isinstance(after, type(before))
        if isinstance(before, nn.InstanceNorm2d):
            assert type(after) is type(before)
            assert repr(after) == repr(before)
    for find in (
        lambda m: m.__class__.__name__.find("InstanceNorm2d") != -1,
        lambda m: isinstance(m, nn.InstanceNorm2d),
        lambda m: type(m) is nn.InstanceNorm2d,
        lambda m: "InstanceNorm" in str(m).split("(")[0],
        lambda m: m._get_name() == "InstanceNorm2d",
    ):
        assert [find(m) for m in fused.modules()] == [find(m) for m in plain.modules()]


@EVERY
def test_initialising_by_class_name(name):
    def run(network, arguments):
        torch.manual_seed(3)
        return foreign_gans.init_weights(network)(*arguments)

    use(name, run)


@EVERY
def test_copies_and_files(name):
    use(name, lambda network, arguments: gradients(copy.deepcopy(network), arguments))
    use(name, lambda network, arguments: gradients(copy.copy(network), arguments))
    use(name, lambda network, arguments: gradients(pickle.loads(pickle.dumps(network)), arguments))

    def saved(network, arguments):
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        return gradients(torch.load(file, weights_only=False), arguments)

    use(name, saved)


@EVERY
def test_unfused_it_is_the_plain_network(name):
    plain, fused, arguments, _ = pair(name)
    unfuse(fused)
    assert [type(m) for m in fused.modules()] == [type(m) for m in plain.modules()]
    assert repr(fused) == repr(plain)
    for a, b in zip(gradients(fused, arguments), gradients(plain, arguments), strict=True):
        assert torch.equal(a, b)


# ---- wrappers and hooks ---------------------------------------------------------------------------------------------


@EVERY
def test_hooks(name):
    def run(network, arguments):
        seen = []
        for module in network.modules():
            module.register_forward_hook(
                lambda module, inputs, output: seen.extend(each.clone() for each in tensors(output))
            )
        return [gradients(network, arguments), seen]

    use(name, run)


@EVERY
def test_full_backward_hooks(name):
    def run(network, arguments):
        seen = []
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm2d | nn.Conv2d):
                module.register_full_backward_hook(
                    lambda module, grad_in, grad_out: seen.extend(each.clone() for each in grad_out)
                )
        return [gradients(network, arguments), seen]

    use(name, run)


@EVERY
def test_data_parallel(name):
    use(name, lambda network, arguments: gradients(nn.DataParallel(network), arguments))
    plain, _, _, report = pair(name)
    assert len(fuse(nn.DataParallel(plain))[1].fused) == len(report.fused)


@pytest.fixture(scope="module")
def one_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@EVERY
def test_distributed_data_parallel(name, one_process):
    def run(network, arguments):
        if not any(p.requires_grad for p in network.parameters()):
            return network(*arguments)
        wrapped = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
        loss = sum(each.sum() for each in tree_leaves(wrapped(*arguments)))
        loss.backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    use(name, run)


@EVERY
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(name, use_reentrant):
    def run(network, arguments):
        arguments = [argument.clone().requires_grad_() for argument in arguments]
        outputs = tree_leaves(checkpoint.checkpoint(network, *arguments, use_reentrant=use_reentrant))
        sum(each.square().mean() for each in outputs).backward()
        used = [*arguments, *network.parameters()]
        return [*outputs, *(each.grad for each in used if each.grad is not None)]

    use(name, run)


@EVERY
def test_functional_call_and_gradients_of_torch_func(name):
    def run(network, arguments):
        def loss(parameters):
            outputs = tree_leaves(torch.func.functional_call(network, parameters, tuple(arguments)))
            return sum(each.square().mean() for each in outputs)

        parameters = {key: value.detach() for key, value in network.named_parameters()}
        found = torch.func.grad(loss)(parameters)
        tangents = {key: torch.ones_like(value) for key, value in parameters.items()}
        return [found, torch.func.jvp(loss, (parameters,), (tangents,))]

    use(name, run)


@EVERY
def test_vmap_and_make_fx(name):
    def over_groups(network, arguments):
        groups = [torch.stack([argument, argument * 2]) for argument in arguments]
        return torch.vmap(network, randomness="error")(*groups)

    use(name, over_groups)
    use(name, lambda network, arguments: make_fx(network)(*arguments)(*arguments))


# ---- compilers and exporters ----------------------------------------------------------------------------------------


@EVERY
def test_symbolic_trace(name):
    use(name, lambda network, arguments: gradients(torch.fx.symbolic_trace(network), arguments))


@EVERY
def test_jit_trace_and_save(name):
    def run(network, arguments):
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(network, tuple(arguments), check_trace=False), file)
        file.seek(0)
        return torch.jit.load(file)(*arguments)

    use(name, run)


@EVERY
def test_jit_script(name):
    def run(network, arguments):
        scripted = torch.jit.script(network)
        return [scripted(*arguments), network(*arguments)]

    use(name, run)


@FEW_QUICK
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export(name, strict):
    def run(network, arguments):
        program = torch.export.export(network, tuple(arguments), strict=strict)
        assert "vologan_kernels" not in str(program.graph)
        return program.module()(*arguments)

    use(name, run)


@EVERY
@pytest.mark.slow
def test_compiled(name):
    def run(network, arguments):
        torch._dynamo.reset()
        return gradients(torch.compile(network, backend="aot_eager"), arguments)

    use(name, run)


@SOME
@pytest.mark.slow
def test_compiled_by_inductor(name):
    def run(network, arguments):
        torch._dynamo.reset()
        return gradients(torch.compile(network), arguments)

    use(name, run)


def to_onnx(network, arguments, dynamo):
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments, network = [a.float() for a in arguments], network.float().eval()
        file = io.BytesIO()
        if dynamo:
            torch.onnx.export(network, tuple(arguments), dynamo=True, verbose=False).save(file)
        else:
            torch.onnx.export(network, tuple(arguments), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    inputs = {each.name: a.numpy() for each, a in zip(session.get_inputs(), arguments, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, inputs)]


@FEW_QUICK
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx(name, dynamo):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    use(name, lambda network, arguments: to_onnx(network, arguments, dynamo), rtol=1e-3, atol=1e-4)
